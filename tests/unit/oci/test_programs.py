"""What an exec asks for is looked up in the container before it is tried."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drupe.errors import DrupeError, InvalidArgument, NotFound, PermissionDenied
from drupe.oci.programs import check_process


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    """A root with a program, a script through an absolute link, a file that is no program, and a directory."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "srv/bin").mkdir(parents=True)
    for name, mode in (("bin/true", 0o755), ("bin/data", 0o644), ("srv/tool", 0o700)):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(mode)
    (tmp_path / "bin/link").symlink_to("/srv/tool")
    (tmp_path / "bin/dangling").symlink_to("/usr/bin/env")
    descriptor = os.open(tmp_path, os.O_PATH)
    yield descriptor
    os.close(descriptor)


def check(root: int, program: str, *, cwd: str = "/", path: str = "/sbin:/bin") -> None:
    process: dict[str, Any] = {"args": [program], "cwd": cwd, "env": ["A=1", f"PATH={path}"]}
    check_process(root, process)


@pytest.mark.parametrize("program", ["true", "/bin/true", "link", "bin/true", "./bin/../bin/true", "/proc/self/exe"])
def test_what_can_be_run_passes(root: int, program: str) -> None:
    check(root, program)


def test_a_name_is_relative_to_the_working_directory(root: int) -> None:
    check(root, "./tool", cwd="/srv")
    check(root, "tool", cwd="/srv", path="bin:.")
    with pytest.raises(NotFound):
        check(root, "./tool")


def test_without_path_the_usual_places_count(root: int) -> None:
    check_process(root, {"args": ["true"]})


def test_a_later_program_is_found_behind_what_cannot_be_run(root: int, tmp_path: Path) -> None:
    (tmp_path / "srv/bin/true").mkdir()
    check(root, "true", path="/srv/bin:/bin")


@pytest.mark.parametrize(
    ("program", "kind", "code"),
    [
        ("nosuch", NotFound, "127"),
        ("/nosuch/at/all", NotFound, "127"),
        ("/bin/true/below", NotFound, "127"),
        ("dangling", NotFound, "127"),
        ("data", PermissionDenied, "126"),
        ("/srv", PermissionDenied, "126"),
    ],
)
def test_what_cannot_be_run_is_said_with_the_shells_exit_code(
    root: int, program: str, kind: type[DrupeError], code: str
) -> None:
    with pytest.raises(kind, match=repr(program)) as raised:
        check(root, program)
    assert raised.value.details["exit_code"] == code


def test_the_working_directory_must_be_one(root: int) -> None:
    with pytest.raises(NotFound, match="working directory"):
        check(root, "true", cwd="/nosuch")
    with pytest.raises(InvalidArgument, match="not a directory"):
        check(root, "true", cwd="/bin/true")


def test_what_a_mount_covers_is_left_to_the_runtime(root: int) -> None:
    """Program and working directory; beside it they are looked for as ever."""
    check_process(root, {"args": ["/data/tool"], "cwd": "/data/new"}, covered=["/data"])
    check_process(root, {"args": ["tool"], "cwd": "/", "env": ["PATH=/bin:/data/../data"]}, covered=["/data"])
    with pytest.raises(NotFound):
        check_process(root, {"args": ["/database/tool"], "cwd": "/"}, covered=["/data"])
