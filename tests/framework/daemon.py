"""A real daemon for a test: started as a user would, in a network namespace of its own, so that its bridge, addresses
and nftables rules never touch the host."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from drupe.errors import NotFound
from drupe.rpc.client import Client
from drupe.runtime.paths import Paths
from drupe.spec import ContainerSpec, NetworkSpec, PodSpec, PodStatus
from drupe.spec.control import Delete, Empty, ListFilter, PodRun
from framework.leaks import daemon_cgroups, wait_until

START_TIMEOUT_S = 20.0
CALL_TIMEOUT_S = 60.0
COMMAND = Path(sys.executable).with_name("drupe")


class Daemon:
    """`python -m drupe serve` with its state below one directory. `kill` and `start` again tests recovery."""

    program: Sequence[str] = (sys.executable, "-m", "drupe", "serve")

    def __init__(self, directory: Path) -> None:
        self.root = directory / "root"
        self.run = directory / "run"
        self.log = directory / "daemon.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.cgroup = Paths(root=self.root, run=self.run).cgroup
        daemon_cgroups.add(self.cgroup)
        self._netns = make_netns()

    def start(self, *, env: dict[str, str] | None = None, kept: bool = True) -> None:
        """Start it and wait until it answers; its log is the failure when it does not. kept: as systemd does it, who
        starts it again by himself."""
        argv = self._inside(as_systemd(self.program) if kept else self.program)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=self.environment() | (env or {}),
            )  # fmt: skip
        wait_until(self._answers, what="the daemon answers", timeout_s=START_TIMEOUT_S)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the daemon ended:\n{self.log.read_text()}"
        with suppress(Exception), Client.connect(str(self.run / "drupe.sock"), timeout_s=1.0):
            return True
        return False

    def client(self) -> Client:
        """A blocking client; the caller closes it (a context manager)."""
        return Client.connect(str(self.run / "drupe.sock"))

    @property
    def pid(self) -> int:
        """The daemon's process."""
        assert self.process is not None
        return self.process.pid

    @property
    def keeper_pid(self) -> int:
        """The keeper's process; 0 when there is none."""
        with suppress(OSError, ValueError):
            return int((self.run / "keeper.pid").read_text())
        return 0

    def command(
        self, *argv: str, input: str | None = None, check: bool = False, timeout_s: float = CALL_TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        """Run `drupe ARGV` against this daemon. check: a non-zero exit is an AssertionError with its output."""
        done = subprocess.run(
            [COMMAND, *argv], env=self.environment(), input=input, stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, (
            f"drupe {' '.join(argv)}: {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done

    def environment(self) -> dict[str, str]:
        """What makes the command line and the library use this daemon."""
        return os.environ | {"DRUPE_ROOT": str(self.root), "DRUPE_RUN": str(self.run)}

    def on_host(self, *argv: str, timeout_s: float = CALL_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        """Run a program in the daemon's network namespace: what "the host" is to its pods."""
        return subprocess.run(self._inside(argv), capture_output=True, text=True, timeout=timeout_s, check=False)

    def run_pod(self, *argv: str, image: str = "busybox", **options: object) -> PodStatus:
        """Create and start a pod with one container and no network."""
        spec = PodSpec(network=NetworkSpec(mode="none"), containers=(ContainerSpec(image=image, argv=argv, **options),))  # type: ignore[arg-type]
        with self.client() as client:
            pod: PodStatus = client.call("pod.run", PodRun(spec=spec), timeout_s=CALL_TIMEOUT_S)
        return pod

    def delete_pods(self) -> None:
        """Remove every pod, running or not."""
        with self.client() as client:
            for pod in client.call("pod.list", ListFilter(), timeout_s=CALL_TIMEOUT_S).pods:
                with suppress(NotFound):  # one of --rm is gone by itself
                    client.call("pod.delete", Delete(ref=pod.id, force=True), timeout_s=CALL_TIMEOUT_S)

    def kill(self) -> None:
        """kill -9: no clean-up of any kind."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Remove the pods, end daemon and keeper, let go of the network namespace."""
        assert self.process is not None
        if self.process.poll() is None and not self._answers():
            self.process.terminate()  # why it has not begun is what a test is to tell
            self.process.wait(START_TIMEOUT_S)
        if self.process.poll() is None:
            self.delete_pods()
            with self.client() as client:
                client.call("system.shutdown", Empty(), timeout_s=CALL_TIMEOUT_S)
            self.process.wait(START_TIMEOUT_S)
        self._end_keeper()
        self._remove_cgroup()
        os.close(self._netns)

    def _remove_cgroup(self) -> None:
        # the parent stays when a daemon ends, for the next one; rmdir fails, and the test, when a pod is left in it
        tree = Path("/sys/fs/cgroup")
        for directory in (*tree.glob(f"*{self.cgroup}"), tree / self.cgroup[1:]):
            if directory.is_dir():
                directory.rmdir()
        daemon_cgroups.discard(self.cgroup)

    def _end_keeper(self) -> None:
        if not (pid := self.keeper_pid):
            return
        with suppress(ProcessLookupError):
            fd = os.pidfd_open(pid)
            try:
                # again and again: it stays while something of its own ends, such as what waited for a dead daemon
                wait_until(lambda: has_ended(pid, fd), what="the keeper ends")
            finally:
                os.close(fd)

    def _inside(self, argv: Sequence[object]) -> list[str]:
        return ["nsenter", f"--net=/proc/{os.getpid()}/fd/{self._netns}", *map(str, argv)]


def has_ended(pid: int, fd: int) -> bool:
    """Whether a process has; if not it is told to."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(fd, signal.SIGTERM)
    return not Path(f"/proc/{pid}").exists()


def as_systemd(argv: Sequence[str]) -> list[str]:
    """A service as systemd starts it (systemd.exec(5), $SYSTEMD_EXEC_PID)."""
    return ["sh", "-c", 'SYSTEMD_EXEC_PID=$$ exec "$@"', "sh", *argv]


def make_netns() -> int:
    """A descriptor of a new network namespace with its loopback up; closing it ends the namespace."""
    ready = "ip link set lo up && echo ready && exec sleep 60"
    with subprocess.Popen(["unshare", "--net", "sh", "-c", ready], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == b"ready\n"
            return os.open(f"/proc/{holder.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            holder.kill()
