"""containerd's runc shim with drupe-oci in runc's place: ctr runs, execs, pauses, kills."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.bundles import COMMAND, make_rootfs
from framework.leaks import wait_until
from framework.private_host import PrivateHost
from framework.probes import needs_program, needs_root

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

CONFIG = """
version = 2
root = "{directory}/containerd"
state = "/run/containerd-state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "/run/containerd.sock"
[ttrpc]
  address = "/run/containerd.sock.ttrpc"
"""


class Containerd(PrivateHost):
    """containerd in there; `ctr` talks to it."""

    def load(self) -> None:
        """Start it, and have a root file system."""
        make_rootfs(self.directory / "rootfs")
        (self.directory / "config.toml").write_text(CONFIG.format(directory=self.directory))
        argv = ("containerd", "--config", str(self.directory / "config.toml"))
        self._services.append(self.serve(*argv, log="containerd.log"))
        self.wait_for("/run/drupe/drupe.sock")
        self.wait_for("/run/containerd.sock")

    def ctr(self, *words: str, **options: object) -> str:
        """Its standard output."""
        done = self.inside("ctr", "--address", "/run/containerd.sock", *words, **options)
        return done.stdout

    def run(self, name: str, *args: str, flags: tuple[str, ...] = ("--rm",), **options: object) -> str:
        """ctr run, of the root file system as it is."""
        ours = ("--env", "PATH=/bin", "--runc-binary", str(COMMAND), "--rootfs")
        return self.ctr("run", *flags, *ours, str(self.directory / "rootfs"), name, *args, **options)


@pytest.fixture
def containerd(tmp_path: Path) -> Iterator[Containerd]:
    needs_root()
    needs_program("containerd", "ctr", "containerd-shim-runc-v2", "crun", "unshare", "nsenter")
    place = Containerd(tmp_path)
    try:
        place.load()
        yield place
    finally:
        place.close()
        for controller in Path("/sys/fs/cgroup").iterdir():
            if (made := controller / "default").is_dir() and not list(made.glob("*/")):
                made.rmdir()  # containerd's namespace: it keeps it for the next one


def test_a_tasks_life(containerd: Containerd) -> None:
    assert containerd.run("a", "echo", "hello") == "hello\n"
    failed = containerd.inside(
        "ctr", "--address", "/run/containerd.sock", "run", "--rm", "--runc-binary", str(COMMAND), "--rootfs",
        str(containerd.directory / "rootfs"), "b", "/bin/sh", "-c", "exit 5", check=False,
    )  # fmt: skip
    assert failed.returncode == 5
    containerd.run("c", "sleep", "1000", flags=("-d",))
    assert containerd.ctr("task", "exec", "--exec-id", "e", "c", "echo", "in exec") == "in exec\n"
    assert "RUNNING" in containerd.ctr("task", "ls")
    containerd.ctr("task", "pause", "c")
    assert "PAUSED" in containerd.ctr("task", "ls")
    containerd.ctr("task", "resume", "c")
    pids = containerd.ctr("task", "ps", "c").split()
    state = json.loads(containerd.inside(str(COMMAND), "--root", "/run/containerd/runc/default", "state", "c").stdout)
    assert str(state["pid"]) in pids and state["status"] == "running"
    assert "memory" in containerd.ctr("task", "metrics", "c")
    containerd.ctr("task", "kill", "--signal", "SIGKILL", "c")
    wait_until(lambda: "STOPPED" in containerd.ctr("task", "ls"), what="the end of the task")
    containerd.ctr("task", "rm", "c", check=False)  # exits with the task's own code
    containerd.ctr("container", "rm", "c")
    assert containerd.ctr("container", "ls", "-q") == ""
