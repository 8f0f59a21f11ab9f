"""`drupe guest`: what it says, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drupe.cli.main import main
from drupe.guest import store
from drupe.guest.store import GuestInfo

Capture = pytest.CaptureFixture[str]
DIGEST = "ab" * 32


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with one image of two names."""
    monkeypatch.setenv("DRUPE_ROOT", str(tmp_path))
    work = tmp_path / "guests/.work"
    work.mkdir(parents=True)
    for name in ("kernel", "initrd"):
        (work / name).write_bytes(b"x")
    info = GuestInfo(
        digest=DIGEST, form="initramfs", release="6.1.0-1", agent="0.1.0 (protocol 1)", kernel_source="a-package",
        kernel_bytes=3 << 20, root_bytes=1 << 20, modules=("virtio",), created_at=1.0,
    )  # fmt: skip
    store.put(tmp_path, work, info, "default")
    store.name_it(tmp_path, DIGEST, "mine")
    return tmp_path


def test_ls_and_inspect(root: Path, capsys: Capture) -> None:
    assert main(["guest", "ls"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["NAME", "DIGEST", "KERNEL", "FORM", "AGENT", "SIZE", "CREATED"]
    assert row.split()[:4] == ["default,mine", DIGEST[:12], "6.1.0-1", "initramfs"]
    assert "4 MiB" in row
    assert main(["guest", "ls", "-q"]) == 0
    assert capsys.readouterr().out == DIGEST[:12] + "\n"
    assert main(["guest", "inspect", "mine"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert (shown["digest"], shown["names"], shown["modules"]) == (DIGEST, ["default", "mine"], ["virtio"])
    assert main(["guest", "inspect", "-f", "{{.Release}}", DIGEST[:8]]) == 0
    assert capsys.readouterr().out == "6.1.0-1\n"


def test_rm_does_what_it_can(root: Path, capsys: Capture) -> None:
    assert main(["guest", "rm", "nobody", "mine"]) == 1
    said = capsys.readouterr()
    assert said.out == "mine\n"
    assert "there is no guest image 'nobody'" in said.err
    assert main(["guest", "rm", "-f", "nobody", "default"]) == 0
    assert list((root / "guests").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--modules", "/lib"], "--modules without --kernel"),
        (["--kernel", "/x", "--package", "y"], "exclude each other"),
        (["--kernel", "/nowhere"], "there is no kernel /nowhere"),
        (["--kernel", "/etc/passwd"], "/etc/passwd is no kernel"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(root: Path, capsys: Capture, words: list[str], said: str) -> None:
    assert main(["guest", "build", *words]) != 0
    lines = capsys.readouterr().err.splitlines()
    assert said in lines[0]
    assert len(lines) <= 2


def test_a_place_that_cannot_be_written_is_no_bug(root: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/sys")  # where nobody makes directories
    assert main(["guest", "build", "--package", "linux-image-6.1.0-1-amd64"]) != 0
    lines = capsys.readouterr().err.splitlines()
    assert "cannot build the guest image" in lines[0]
    assert len(lines) <= 2
