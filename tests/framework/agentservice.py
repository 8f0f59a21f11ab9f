"""The guest's agent without a guest: a service on a socket, in namespaces of its own that it may change."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from drupe.errors import DrupeError
from drupe.guest.build import find_agent
from framework import probes
from framework.leaks import wait_until

# cgroups are hidden: the agent must not find those of this host. A veth pair is what it may configure.
_MAKE = (
    "mount --make-rprivate / && mount -t tmpfs tmpfs /sys/fs/cgroup && mount -t sysfs sysfs /mnt && ip link set lo up"
    " && ip link add eth5 address 52:54:00:00:00:05 type veth peer name other && umount /mnt"
    " && mount -t sysfs sysfs /sys && mount -t tmpfs tmpfs /sys/fs/cgroup"
    ' && exec "$0" --service --channel unix:"$1" --run-dir "$2"'
)


class AgentService:
    """It lives until `close`; `path` is its socket."""

    def __init__(self, directory: Path) -> None:
        probes.needs_root()
        probes.needs_program("unshare", "nsenter", "ip")
        try:
            agent = find_agent()
        except DrupeError as error:
            pytest.skip(f"{error.message} ({error.hint})")
        self.path = directory / "agent.sock"
        argv = ["unshare", "--mount", "--net", "--uts", "--ipc", "sh", "-c", _MAKE, agent, self.path, directory / "run"]
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            wait_until(lambda: self.path.exists() or self.process.poll() is not None, what="the agent's socket")
            assert self.process.poll() is None, self.errors()
        except BaseException:
            self.close()
            raise

    def errors(self) -> str:
        """What it said on standard error, once it has ended."""
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def inside(self, *argv: str) -> str:
        """What a program says in the agent's namespaces."""
        enter = ["nsenter", "--target", str(self.process.pid), "--net", "--uts", "--"]
        return subprocess.run([*enter, *argv], capture_output=True, text=True, check=True).stdout

    def rss_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) << 10

    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/task").iterdir()))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()
