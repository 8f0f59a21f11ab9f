"""Sessions on a real pseudo-terminal and with real signals: `drupe` as a process, against a scripted control server."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from drupe.cli.terminal import detach_keys, split_at_keys
from drupe.rpc.call import Call
from drupe.spec import ExitStatus
from drupe.spec.control import Empty, ExecStarted
from framework.leaks import wait_until
from framework.scripted import container, pod
from framework.serving import serving


class Workload:
    """What the client is told about, and what it did: descriptors taken, sizes, signals."""

    def __init__(self) -> None:
        self.fds: dict[str, int] = {}
        self.sizes: list[tuple[int, int]] = []
        self.signals: list[str] = []
        self.hold_start = asyncio.Event()
        self.hold_start.set()
        self.code: int | None = None

    async def handle(self, call: Call) -> Any:
        params = call.params
        if call.method in ("pod.run", "exec.start"):
            self.fds = {name: call.take_fd(name) for name in list(call.fds)}
            self.sizes.append(
                (params.rows, params.cols) if call.method == "pod.run" else (params.spec.rows, params.spec.cols)
            )
            while not self.hold_start.is_set():  # noqa: ASYNC110 (set by another thread)
                await asyncio.sleep(0.01)
            if call.method == "pod.run":
                return pod(container(tty=params.spec.containers[0].tty))
            await call.send_item(ExecStarted(exec_id="e1", pid=9))
            return await self._end()
        if call.method == "container.wait":
            return await self._end()
        if call.method == "container.resize":
            self.sizes.append((params.rows, params.cols))
        elif call.method in ("container.kill", "exec.kill"):
            self.signals.append(params.signal)
        return Empty()

    async def _end(self) -> ExitStatus:
        while self.code is None:  # noqa: ASYNC110 (set by another thread)
            await asyncio.sleep(0.01)
        self.close()
        return ExitStatus(code=self.code)

    def close(self) -> None:
        for fd in self.fds.values():
            os.close(fd)
        self.fds = {}


@pytest.fixture
def workload(tmp_path: Path) -> Iterator[Workload]:
    work = Workload()
    with serving(tmp_path / "drupe.sock", work.handle):
        yield work
    work.close()


@pytest.fixture
def drupe(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start `drupe ARGV`; whatever still runs at the end is killed."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*argv: str, **options: Any) -> subprocess.Popen[bytes]:
        env = os.environ | {"DRUPE_RUN": str(tmp_path)}
        started.append(subprocess.Popen([sys.executable, "-m", "drupe", *argv], env=env, **options))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


class Terminal:
    """A pseudo-terminal with us as the user at its master side."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(24, 80)
        self.before = termios.tcgetattr(self.slave)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.slave)[3] & (termios.ECHO | termios.ICANON | termios.ISIG)

    def is_as_before(self) -> bool:
        return bool(termios.tcgetattr(self.slave) == self.before)

    def stdio(self) -> dict[str, Any]:
        """Options of Popen: all three streams, and the terminal controls the new session."""

        def take() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        return {"stdin": self.slave, "stdout": self.slave, "stderr": self.slave, "preexec_fn": take}

    def press(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def shown(self) -> bytes:
        """What appeared on the screen so far."""
        text = b""
        while select.select([self.master], [], [], 0.05)[0]:
            text += os.read(self.master, 4096)
        return text


@pytest.fixture
def screen() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    os.close(terminal.master)
    os.close(terminal.slave)


def typed(workload: Workload, count: int) -> bytes:
    """The next `count` bytes that the workload can read from its input."""
    data = b""
    while len(data) < count:
        ready, _, _ = select.select([workload.fds["stdin"]], [], [], 5)
        assert ready, f"only {data!r} arrived"
        data += os.read(workload.fds["stdin"], count - len(data))
    return data


@contextmanager
def session(workload: Workload, screen: Terminal, drupe: Any, *argv: str) -> Iterator[subprocess.Popen[bytes]]:
    """An interactive client that has reached its workload."""
    process = drupe(*(argv or ("run", "-it", "busybox", "sh")), **screen.stdio())
    wait_until(lambda: bool(workload.fds) and screen.is_raw(), what="the session begins")
    yield process


def test_raw_mode_keys_output_and_exit_code(workload: Workload, screen: Terminal, drupe: Any) -> None:
    with session(workload, screen, drupe) as process:
        assert sorted(workload.fds) == ["stdin", "stdout"]
        assert workload.sizes == [(24, 80)]
        screen.press(b"ls\r\x03\x1a\x04")
        assert typed(workload, 6) == b"ls\r\x03\x1a\x04"  # Ctrl-C, Ctrl-Z and Ctrl-D belong to the workload
        os.write(workload.fds["stdout"], b"hello")
        assert screen.shown() == b"hello"  # written by the workload itself, and no echo of ours
        workload.code = 42
        assert process.wait(5) == 42
    assert screen.is_as_before()


def test_exec_with_a_terminal(workload: Workload, screen: Terminal, drupe: Any) -> None:
    with session(workload, screen, drupe, "exec", "-it", "web", "sh") as process:
        assert workload.sizes == [(24, 80)]
        screen.press(b"x")
        assert typed(workload, 1) == b"x"
        workload.code = 130
        assert process.wait(5) == 130
    assert screen.is_as_before()


def test_resize(workload: Workload, screen: Terminal, drupe: Any) -> None:
    with session(workload, screen, drupe) as process:
        screen.resize(50, 132)
        wait_until(lambda: (50, 132) in workload.sizes, what="the size arrives")
        workload.code = 0
        assert process.wait(5) == 0


def test_detach_keys(workload: Workload, screen: Terminal, drupe: Any) -> None:
    with session(workload, screen, drupe) as process:
        screen.press(b"a\x10b\x10\x11c")
        assert typed(workload, 3) == b"a\x10b"  # one Ctrl-P alone is the workload's
        assert process.wait(5) == 0
        assert b"detached from web" in screen.shown()
    assert screen.is_as_before()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_the_terminal_is_given_back_when_killed(
    workload: Workload, screen: Terminal, drupe: Any, number: signal.Signals
) -> None:
    with session(workload, screen, drupe) as process:
        process.send_signal(number)
        assert process.wait(5) == -number
    assert screen.is_as_before()


def test_the_terminal_is_given_back_while_stopped(workload: Workload, screen: Terminal, drupe: Any) -> None:
    with session(workload, screen, drupe) as process:
        process.send_signal(signal.SIGTSTP)
        assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
        assert screen.is_as_before()
        screen.resize(10, 20)
        process.send_signal(signal.SIGCONT)
        wait_until(screen.is_raw, what="raw mode again")
        wait_until(lambda: (10, 20) in workload.sizes, what="the new size arrives")
        workload.code = 0
        assert process.wait(5) == 0
    assert screen.is_as_before()


def test_the_terminal_is_given_back_when_the_daemon_dies(tmp_path: Path, screen: Terminal, drupe: Any) -> None:
    work = Workload()
    with serving(tmp_path / "drupe.sock", work.handle), session(work, screen, drupe) as process:
        pass
    assert process.wait(5) == 125
    assert b"drupe: " in screen.shown()
    assert screen.is_as_before()
    work.close()


def test_signals_are_passed_on_and_the_third_ctrl_c_gives_up(workload: Workload, drupe: Any) -> None:
    process = drupe("run", "busybox", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(lambda: bool(workload.fds), what="the session begins")
    for count, number in enumerate((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGINT), start=1):
        process.send_signal(number)
        wait_until(lambda n=count: len(workload.signals) == n, what="the signal arrives")
    assert workload.signals == ["TERM", "INT", "USR1", "INT"]
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130
    workload.close()
    assert process.stderr is not None
    assert process.stderr.read() == b"drupe: the workload goes on in spite of Ctrl-C; once more leaves it running\r\n"


def test_a_signal_before_the_start_is_passed_on_after_it(workload: Workload, drupe: Any) -> None:
    workload.hold_start.clear()
    process = drupe("run", "busybox", stdout=subprocess.DEVNULL)
    wait_until(lambda: bool(workload.fds), what="the start is asked for")
    process.send_signal(signal.SIGTERM)
    workload.hold_start.set()
    wait_until(lambda: workload.signals == ["TERM"], what="the signal arrives")
    workload.code = 143
    assert process.wait(5) == 143


def test_input_from_a_pipe_is_handed_over_as_it_is(workload: Workload, drupe: Any) -> None:
    process = drupe("run", "-i", "busybox", "cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    wait_until(lambda: bool(workload.fds), what="the session begins")
    assert process.stdin is not None
    assert os.fstat(workload.fds["stdin"]) == Path(f"/proc/{process.pid}/fd/0").stat()
    process.stdin.write(b"x\n")
    process.stdin.flush()
    assert typed(workload, 2) == b"x\n"
    workload.code = 0
    assert process.wait(5) == 0


def test_closed_streams_become_the_null_device(workload: Workload, tmp_path: Path) -> None:
    workload.code = 5
    command = f"{sys.executable} -m drupe run -i busybox <&- >&-"
    env = os.environ | {"DRUPE_RUN": str(tmp_path)}
    done = subprocess.run(["sh", "-c", command], env=env, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (5, "")


@pytest.mark.parametrize(
    ("text", "keys"), [("ctrl-p,ctrl-q", b"\x10\x11"), ("a,ctrl-@", b"a\x00"), ("", b""), ("ctrl-[", b"\x1b")]
)
def test_detach_key_words(text: str, keys: bytes) -> None:
    assert detach_keys(text) == keys


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-1", "ab", "ctrl-aa", "é"])
def test_bad_detach_key_words(text: str) -> None:
    with pytest.raises(ValueError, match="unknown key"):
        detach_keys(text)


def test_keys_split_over_reads() -> None:
    keys = b"\x10\x11"
    assert split_at_keys(b"", b"ab\x10", keys) == (b"ab", b"\x10", False)
    assert split_at_keys(b"\x10", b"\x11", keys) == (b"", b"", True)
    assert split_at_keys(b"\x10", b"x", keys) == (b"\x10x", b"", False)
    assert split_at_keys(b"\x10", b"\x10", keys) == (b"\x10", b"\x10", False)
    assert split_at_keys(b"\x10", b"", keys) == (b"\x10", b"", False)
    assert split_at_keys(b"", b"abc", b"") == (b"abc", b"", False)
