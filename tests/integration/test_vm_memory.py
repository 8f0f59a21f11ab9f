"""A kubelet's volumes of medium Memory in a machine: the guest's own memory, one file system for all containers."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drupe.runtime.memorydirs import memory_dir
from framework.daemon import Daemon
from framework.machines import leaves_nothing

pytestmark = [pytest.mark.root, pytest.mark.timeout(400)]
SIZE = 8 << 20
POD = "pods/12ab-34cd"


@pytest.fixture
def daemon(machine_daemon: Daemon) -> Iterator[Daemon]:
    yield from leaves_nothing(machine_daemon)


@contextmanager
def volume(directory: Path, name: str) -> Iterator[Path]:
    """As a kubelet makes it, with what it binds for `subPath: part` of a container."""
    whole = directory / POD / "volumes/kubernetes.io~empty-dir" / name
    part = directory / POD / "volume-subpaths" / name / "two/0"
    for path in (whole, part):
        path.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=2777,gid=4711", "tmpfs", whole], check=True)
    try:
        (whole / "part").mkdir()
        (whole / "part").chmod(0o2770)
        subprocess.run(["mount", "--bind", whole / "part", part], check=True)
        yield whole
    finally:
        for path in (part, whole):
            subprocess.run(["umount", "--lazy", path], check=False)


def test_volumes_in_memory(daemon: Daemon, tmp_path: Path) -> None:
    """Written by one container, read by another, not there on the host, and no larger than on the host. A part of it is
    the same part for who has all of it. What has a file already stays the host's."""

    def out(*argv: str) -> str:
        said: str = daemon.command(*argv, check=True, timeout_s=120).stdout.strip()
        return said

    with volume(tmp_path, "fast") as fast, volume(tmp_path / "other", "filled") as filled:
        part = fast.parents[2] / "volume-subpaths/fast/two/0"
        (filled / "file").write_text("of the host\n")
        flags = ("-v", f"{fast}:/fast", "-v", f"{filled}:/filled", "-v", f"{fast}:/dev/shm")
        out("run", "-d", "--name", "one", "--sandbox", "vm", "--network", "none", *flags, "busybox", "sleep", "1000")
        out("exec", "one", "sh", "-c", "echo mine >/fast/file; echo more >>/filled/file; cat /dev/shm/file")
        more = ("-v", f"{fast}:/again:ro", "-v", f"{part}:/part")
        out("run", "-d", "--pod", "one", "--name", "two", *more, "busybox", "sleep", "1000")
        assert out("exec", "two", "cat", "/again/file") == "mine"
        out("exec", "two", "sh", "-c", "echo below >/part/file; ! touch /again/x")
        assert out("exec", "one", "cat", "/fast/part/file") == "below"
        assert out("exec", "one", "stat", "-c", "%a %u %g", "/fast", "/fast/part") == "2777 0 4711\n2770 0 4711"
        assert [path.name for path in fast.iterdir()] == ["part"] and not any(part.iterdir())
        assert (filled / "file").read_text() == "of the host\nmore\n"
        full = daemon.command("exec", "one", "dd", "if=/dev/zero", "of=/fast/big", "bs=1M", "count=20")
        assert full.returncode and "No space left on device" in full.stderr
        out("restart", "-t", "0", "two")
        assert out("exec", "two", "cat", "/part/file") == "below"
        daemon.delete_pods()


def test_what_is_such_a_volume(tmp_path: Path) -> None:
    with volume(tmp_path, "fast") as fast:
        whole, part = memory_dir(str(fast)), memory_dir(str(fast.parents[2] / "volume-subpaths/fast/two/0"))
        assert whole is not None and part is not None
        assert (whole.below, part.below, whole.volume) == ("", "part", part.volume)
        assert whole.size_bytes == SIZE and whole.is_new and part.is_new
        assert memory_dir(str(fast / "part")) is None
        (fast / "part/file").touch()
        again = memory_dir(str(fast))
        assert again is not None and not again.is_new
    secret = tmp_path / POD / "volumes/kubernetes.io~secret/token"
    secret.mkdir(parents=True)
    assert memory_dir(str(secret)) is None  # the kubelet writes there while the pod runs
    assert memory_dir(str(fast)) is None  # on a disk
    assert memory_dir("/pods/../volumes/kubernetes.io~empty-dir/..") is None
