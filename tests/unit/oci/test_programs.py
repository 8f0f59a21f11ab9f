"""What an exec asks for is looked up in the container before it is tried."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drupe.errors import DrupeError, InvalidArgument, NotFound, PermissionDenied
from drupe.oci import formats
from drupe.oci.programs import check_process, check_program

STATIC = b"\x7fELF\x02\x01" + bytes(12) + bytes([62 if os.uname().machine == "x86_64" else 183, 0]) + bytes(44)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    """A root with a program, a script through an absolute link, a file that is no program, and a directory."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "srv/bin").mkdir(parents=True)
    for name, mode in (("bin/true", 0o755), ("bin/data", 0o644), ("srv/tool", 0o700)):
        (tmp_path / name).write_bytes(STATIC)
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


def loaded_by(loader: str) -> bytes:
    """The beginning of an ELF file with one program header, which names its loader."""
    header = bytearray(STATIC)
    struct.pack_into("<Q", header, 32, 64)  # e_phoff
    struct.pack_into("<HH", header, 54, 56, 1)  # e_phentsize, e_phnum
    path = loader.encode() + b"\0"
    return bytes(header) + struct.pack("<IIQQQQQQ", 3, 4, 120, 0, 0, len(path), len(path), 1) + path


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b"", "126", "format is unknown"),
        (b"echo hello\n", "126", "format is unknown"),
        (STATIC[:18] + b"\x16\x00" + STATIC[20:], "126", "another processor"),
        (b"#!/nowhere/sh -e\n", "127", "needs '/nowhere/sh'"),
        (b"#!/srv/file\n", "126", "an interpreter, and so on"),
        (loaded_by("/lib/ld-none.so.1"), "127", "needs '/lib/ld-none.so.1'"),
    ],
)
def test_what_cannot_be_loaded_is_said_before_it_starts(
    root: int, tmp_path: Path, content: bytes, code: str, words: str
) -> None:
    executable(tmp_path / "srv/file", content)
    with pytest.raises(DrupeError, match=words) as raised:
        check(root, "/srv/file")
    assert raised.value.details["exit_code"] == code


@pytest.mark.parametrize(
    "content",
    [
        b"#! /bin/true x\n",
        b"#!\n",
        b"#!/proc/self/exe\n",
        b"#!/srv\n",
        loaded_by("/bin/true"),
        loaded_by("/lib/ld-none.so.1")[:90],
        STATIC[:32] + b"\xff" * 32,
    ],
)
def test_what_is_not_sure_is_left_to_the_kernel(root: int, tmp_path: Path, content: bytes) -> None:
    executable(tmp_path / "srv/file", content)
    check(root, "/srv/file")


def executable(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o755)


def test_formats_of_the_administrators_own_are_left_to_the_kernel(
    root: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "srv/tool").write_text("anything")
    (tmp_path / "qemu-arm").touch()
    monkeypatch.setattr(formats, "_HANDLERS", tmp_path)
    check(root, "/srv/tool")


@pytest.mark.parametrize("link", ["bin/tool", "opt"])
def test_what_a_link_leads_to_may_be_mounted(root: int, tmp_path: Path, link: str) -> None:
    """A program that an image looks for in a volume."""
    (tmp_path / link).symlink_to("/data/tool" if link == "bin/tool" else "/data")
    process: dict[str, Any] = {"args": ["/bin/tool" if link == "bin/tool" else "/opt/tool"], "cwd": "/", "env": []}
    check_program(root, process, covered=("/data",))
    with pytest.raises(NotFound):
        check_program(root, process)
    with pytest.raises(NotFound):
        check_program(root, {"args": ["/bin/nosuch"], "cwd": "/"}, covered=("/data",))
