"""File operations where mounts are involved, in a mount namespace that goes away with its process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

SETUP = """
import os, subprocess, sys, io, tarfile, threading
from pathlib import Path
from drupe.errors import DrupeError
from drupe.resources import files
top = Path(sys.argv[1])
root = top / "root"
(root / "etc").mkdir(parents=True)
(root / "data").mkdir()
(top / "volume").mkdir()
(top / "volume/keep").write_text("precious")
(top / "hosts").write_text("old")
(root / "etc/hosts").touch()
def mount(*args): subprocess.run(["mount", *map(str, args)], check=True)
mount("--bind", top / "volume", root / "data")
mount("--bind", top / "hosts", root / "etc/hosts")
fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
def feed(data):
    r, w = os.pipe()
    os.write(w, data)
    os.close(w)
    return r
def failed(work):
    try:
        work()
    except DrupeError as error:
        return type(error).__name__ + ": " + str(error)
    return "no error"
"""


def run(body: str, directory: Path) -> str:
    argv = ["unshare", "-m", "--propagation", "private", sys.executable, "-c", SETUP + body, str(directory)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_mounted_file_is_written_in_place(tmp_path: Path) -> None:
    """As the runtime mounts /etc/hosts: a rename over it is impossible."""
    body = """
files.write(fd, "/etc/hosts", feed(b"new"))
out = io.BytesIO()
with tarfile.open(fileobj=out, mode="w") as tar:
    info = tarfile.TarInfo("hosts")
    info.size = 6
    tar.addfile(info, io.BytesIO(b"packed"))
print((top / "hosts").read_text(), sorted(os.listdir(root / "etc")))
files.put_archive(fd, "/etc", feed(out.getvalue()))
print((top / "hosts").read_text())
"""
    assert run(body, tmp_path) == "new ['hosts']\npacked\n"


def test_removing_a_tree_stops_at_a_mount(tmp_path: Path) -> None:
    body = """
print(failed(lambda: files.remove(fd, "/data", recursive=True)))
(root / "tree/sub").mkdir(parents=True)
mount("--bind", top / "volume", root / "tree/sub")
print(failed(lambda: files.remove(fd, "/tree", recursive=True)))
print((top / "volume/keep").read_text())
"""
    first, second, kept = run(body, tmp_path).splitlines()
    assert first.startswith("InvalidState: /data: is a mount point")
    assert second.startswith("InvalidState: /tree/sub: is a mount point")
    assert kept == "precious"


def test_an_archive_of_a_live_root_holds_volumes_but_not_the_kernels_files(tmp_path: Path) -> None:
    body = """
for name in ("proc", "sys", "dev"):
    (root / name).mkdir()
mount("-t", "proc", "proc", root / "proc")
mount("-t", "tmpfs", "dev", root / "dev")
(root / "dev/node").touch()
r, w = os.pipe()
got = []
def drain():
    with os.fdopen(r, "rb") as file:
        got.append(file.read())
thread = threading.Thread(target=drain)
thread.start()
files.get_archive(fd, "/", w)
thread.join()
with tarfile.open(fileobj=io.BytesIO(got[0])) as tar:
    print(" ".join(tar.getnames()))
"""
    names = run(body, tmp_path).split()
    assert {"./data/keep", "./etc/hosts", "./proc", "./dev"} <= set(names)
    assert not [name for name in names if name.startswith(("./proc/", "./dev/"))]


def test_read_only_mounts_and_full_disks_are_said(tmp_path: Path) -> None:
    body = """
mount("-o", "remount,bind,ro", root / "data")
print(failed(lambda: files.write(fd, "/data/x", feed(b"x"))))
(root / "small").mkdir()
mount("-t", "tmpfs", "-o", "size=16k", "small", root / "small")
print(failed(lambda: files.write(fd, "/small/x", feed(b"x" * 60000))), os.listdir(root / "small"))
"""
    read_only, full = run(body, tmp_path).splitlines()
    assert read_only.startswith("PermissionDenied: /data/x: is on a read-only file system")
    assert full.startswith("ResourceExhausted: /small/x: no space left")
    assert full.endswith("[]")
