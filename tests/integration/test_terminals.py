"""Terminals and input over a real daemon: the first size, and attachments that come and go."""

from __future__ import annotations

import os
import pty
import select
import struct
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fcntl import ioctl
from termios import TIOCSWINSZ

import pytest

from drupe.spec import ContainerSpec, ContainerStatus, ExecSpec, NetworkSpec, PodSpec, PodStatus
from drupe.spec.control import ExecStart, PodRun, Ref, Wait
from framework.daemon import CALL_TIMEOUT_S, COMMAND, Daemon

pytestmark = pytest.mark.root

RUNS = 50
AT_ONCE = 4  # more than processors: the runtime's steps and the workload's are torn apart


@pytest.fixture(autouse=True)
def no_pods_left(daemon: Daemon) -> Iterator[None]:
    """Each test starts and ends without pods."""
    yield
    daemon.delete_pods()


def output_of(daemon: Daemon, method: str, params: object) -> str:
    """What a workload wrote to its terminal, up to its end: we stay on the line until then."""
    read, write = os.pipe()
    with os.fdopen(read, "rb") as output:
        try:
            with daemon.client() as client:
                made = client.call(method, params, fds={"stdout": write}, timeout_s=CALL_TIMEOUT_S)
                if isinstance(made, PodStatus):
                    client.call("container.wait", Wait(ref=made.containers[0].id), timeout_s=CALL_TIMEOUT_S)
        finally:
            os.close(write)
        return output.read().decode()


def many(daemon: Daemon, method: str, params: object) -> Counter[str]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return Counter(pool.map(lambda _: output_of(daemon, method, params), range(RUNS)))


def test_a_terminal_has_its_size_before_the_workload_looks(daemon: Daemon) -> None:
    containers = (ContainerSpec(image="busybox", argv=("stty", "size"), tty=True),)
    spec = PodSpec(network=NetworkSpec(mode="none"), containers=containers)
    assert many(daemon, "pod.run", PodRun(spec=spec, rows=33, cols=99)) == {"33 99\r\n": RUNS}


def test_an_execs_terminal_has_its_size_before_the_program_looks(daemon: Daemon) -> None:
    ref = daemon.run_pod("sleep", "1000").containers[0].id
    spec = ExecSpec(argv=("stty", "size"), tty=True, rows=33, cols=99)
    assert many(daemon, "exec.start", ExecStart(ref=ref, spec=spec)) == {"33 99\r\n": RUNS}


def test_what_an_exec_starts_is_scheduled_as_usual(daemon: Daemon) -> None:
    """The runtime itself runs ahead for a moment: neither it nor the workload may keep that."""
    ref = daemon.run_pod("sleep", "1000").containers[0].id
    policy = ("cut", "-d", " ", "-f", "40,41", "/proc/self/stat")
    spec = ExecSpec(argv=policy, tty=True, rows=33, cols=99)
    assert output_of(daemon, "exec.start", ExecStart(ref=ref, spec=spec)) == "0 0\r\n"
    assert os.sched_getscheduler(daemon.keeper_pid) == os.SCHED_OTHER


# -- attachments that come and go ---------------------------------------------------------------------------------


class Session:
    """The command line at work on our pipes, or on a terminal of ours."""

    def __init__(self, daemon: Daemon, *argv: str, tty: bool = False) -> None:
        self.master = -1
        streams: dict[str, int] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        if tty:
            self.master, end = pty.openpty()
            ioctl(end, TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
            streams = dict.fromkeys(streams, end)
        self.process = subprocess.Popen([COMMAND, *argv], env=daemon.environment(), start_new_session=True, **streams)  # type: ignore[call-overload]
        if tty:
            os.close(end)
        self.seen = b""

    def type(self, data: bytes) -> None:
        if self.master >= 0:
            os.write(self.master, data)
        else:
            os.write(self.process.stdin.fileno(), data)

    def read(self, timeout_s: float = 10.0) -> bytes:
        """What came meanwhile; b"" after `timeout_s` without any."""
        fd = self.master if self.master >= 0 else self.process.stdout.fileno()
        if not select.select([fd], [], [], timeout_s)[0]:
            return b""
        with suppress(OSError):  # EIO: nobody has the other end any more
            return os.read(fd, 65536)
        return b""

    def until(self, text: bytes) -> None:
        while text not in self.seen:
            more = self.read()
            assert more, f"no {text!r} in {self.seen!r}"
            self.seen += more
        self.seen = self.seen.partition(text)[2]

    def close(self) -> None:
        for end in (self.process.stdin, self.process.stdout):
            if end is not None:
                end.close()
        if self.master >= 0:
            os.close(self.master)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture
def session(daemon: Daemon) -> Iterator[Callable[..., Session]]:
    """Start the command line in the foreground of a terminal (tty=True) or of pipes."""
    opened: list[Session] = []

    def start(*argv: str, tty: bool = False) -> Session:
        opened.append(Session(daemon, *argv, tty=tty))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


LINES = "while read x; do echo got-$x; done; echo over"
DETACH = b"\x10\x11"  # ctrl-p ctrl-q


def state_of(daemon: Daemon, name: str) -> str:
    with daemon.client() as client:
        status: ContainerStatus = client.call("container.status", Ref(ref=name))
    return status.state


def test_a_terminal_is_left_and_taken_again(daemon: Daemon, session: Callable[..., Session]) -> None:
    first = session("run", "-it", "--name", "t", "--network", "none", "busybox", "sh", "-c", LINES, tty=True)
    first.type(b"one\n")
    first.until(b"got-one")
    first.type(DETACH)
    first.until(b"detached from t")
    assert first.process.wait(10) == 0
    second = session("attach", "t", tty=True)
    second.type(b"two\n")
    second.until(b"got-two")
    assert b"got-two" not in first.read(0.3), "a terminal that was left is written to"
    second.type(DETACH)
    second.until(b"detached from t")
    third = session("attach", "t", tty=True)
    third.type(b"three\n")
    third.until(b"got-three")
    third.type(b"\x04")  # ctrl-d: the terminal's own end of input
    third.until(b"over")
    assert third.process.wait(10) == 0


def test_a_client_that_dies_leaves_the_terminals_input_open(daemon: Daemon, session: Callable[..., Session]) -> None:
    first = session("run", "-it", "--name", "t", "--network", "none", "busybox", "sh", "-c", LINES, tty=True)
    first.type(b"one\n")
    first.until(b"got-one")
    first.process.kill()
    first.process.wait()
    second = session("attach", "t", tty=True)
    second.type(b"two\n")
    second.until(b"got-two")
    assert b"got-two" not in first.read(0.3), "the terminal of a dead client is written to"
    assert state_of(daemon, "t") == "running"


def test_piped_input_ends_with_who_started_it(daemon: Daemon, session: Callable[..., Session]) -> None:
    first = session("run", "-i", "--name", "t", "--network", "none", "busybox", "sh", "-c", LINES)
    first.type(b"one\n")
    first.until(b"got-one")
    second = session("attach", "t")
    second.type(b"two\n")
    second.until(b"got-two")
    first.until(b"got-two")
    second.process.stdin.close()  # the end of a later one's input is not the container's
    first.type(b"three\n")
    first.until(b"got-three")
    first.process.stdin.close()
    first.until(b"over")
    assert first.process.wait(10) == 0
    assert second.process.wait(10) == 0


def test_piped_input_of_a_detached_container_stays_open(daemon: Daemon, session: Callable[..., Session]) -> None:
    daemon.command("run", "-di", "--name", "t", "--network", "none", "busybox", "sh", "-c", LINES, check=True)
    for word in (b"one", b"two"):
        client = session("attach", "t")
        client.type(word + b"\n")
        client.process.stdin.close()
        client.until(b"got-" + word)
        client.process.kill()
    with daemon.client() as client:
        client.call("container.close_stdin", Ref(ref="t"))
        assert client.call("container.wait", Wait(ref="t"), timeout_s=10).code == 0
    assert daemon.command("logs", "t").stdout == "got-one\ngot-two\nover\n"


def test_a_killed_client_ends_the_piped_input_it_gave(daemon: Daemon, session: Callable[..., Session]) -> None:
    """Its standard input is a pipe whose writer lives on."""
    first = session("run", "-i", "--name", "t", "--network", "none", "busybox", "sh", "-c", LINES)
    first.type(b"one\n")
    first.until(b"got-one")
    first.process.kill()
    with daemon.client() as client:
        assert client.call("container.wait", Wait(ref="t"), timeout_s=10).code == 0


def test_a_slow_reader_gets_the_last_words_of_a_workload_that_has_ended(daemon: Daemon) -> None:
    """The client is gone long before its reader has read what the workload wrote last."""
    write = "dd if=/dev/zero bs=1024 count=100 2>/dev/null"
    client = subprocess.Popen(
        [COMMAND, "run", "--rm", "--network", "none", "busybox", "sh", "-c", write],
        env=daemon.environment(), stdout=subprocess.PIPE,
    )  # fmt: skip
    assert client.stdout is not None
    with client.stdout as output:
        assert client.wait(20) == 0
        assert len(output.read()) == 100 * 1024
