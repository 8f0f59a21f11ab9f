"""Terminals of the application kernel: `run -t` from outside, pseudo terminals and signalfd inside, as on Linux."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.integration.test_appkernel import KERNEL, PYTHON, _platform, alike

pytestmark = pytest.mark.root
__all__ = ["_platform"]
PATIENCE_S = 30


class Session:
    """A program on a terminal, and who types there."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.shown = b""

    def see(self, wanted: bytes) -> bytes:
        """What is shown up to and with `wanted`."""
        end = time.monotonic() + PATIENCE_S
        while wanted not in self.shown:
            assert select.select([self.descriptor], [], [], max(0, end - time.monotonic()))[0], self.shown
            self.shown += os.read(self.descriptor, 4096)
        seen, _, self.shown = self.shown.partition(wanted)
        return seen + wanted

    def type(self, text: bytes) -> None:
        os.write(self.descriptor, text)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


@contextmanager
def on_a_terminal(*command: str) -> Iterator[Session]:
    """Run a command in the application kernel on a new terminal; it must end with 3."""
    pid, descriptor = pty.fork()
    if pid == 0:
        os.execv(KERNEL, [str(KERNEL), "run", "-t", "--root", "/", "--env", "PS1=>>", "--", *command])
    try:
        yield Session(descriptor)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    finally:
        os.close(descriptor)


def test_a_shell_has_a_terminal_and_jobs() -> None:
    """Keys stop and end the job in front, the background is stopped when it reads, and a new size is told."""
    with on_a_terminal("/bin/bash", "--norc", "--noprofile", "-i") as session:
        session.see(b">>")
        session.type(b"tty; sleep 60\n")
        session.see(b"/dev/pts/0\r\n")
        time.sleep(0.3)  # until the shell has put it in front; no harm when it has not: the shell ignores the key
        for _ in range(50):
            session.type(b"\x1a")
            if select.select([session.descriptor], [], [], 0.5)[0]:
                break
        session.see(b"Stopped")
        session.type(b"cat & sleep 0.2; jobs; kill -9 %1 %2; wait\n")
        session.see(b"Stopped                 cat")
        session.see(b">>")
        session.resize(41, 101)
        for _ in range(100):
            session.type(b"stty size\n")
            if b"41 101" in session.see(b">>"):
                break
        else:
            pytest.fail("the new size was not told")
        session.type(b"exec 2>&-; exit 3\n")


def test_output_waits_for_its_reader() -> None:
    """What is shown faster than it is read is all there, in order."""
    with on_a_terminal("/bin/sh", "-c", "stty -onlcr; seq 1 60000; exit 3") as session:
        time.sleep(0.5)
        seen = session.see(b"60000\n")
    assert seen.split() == [str(n).encode() for n in range(1, 60001)]


PROGRAMS = {
    "pty": """
import os, pty, signal, struct, sys, fcntl, termios, tty
pid, master = pty.fork()
if pid == 0:
    sys.stdout.reconfigure(line_buffering=True)
    print(os.isatty(0), os.tcgetpgrp(0) == os.getpgrp() == os.getsid(0) == os.getpid(), os.ttyname(0)[:9])
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH])
    print("ready", flush=True)
    print("got", input(), flush=True)
    print("size", signal.sigwait([signal.SIGWINCH]), os.get_terminal_size(), flush=True)
    try: input()
    except EOFError: print("end", flush=True)
    os._exit(5)
def read(word):
    got = b""
    while word not in got: got += os.read(master, 1)
    return got
print(read(b"ready\\r\\n"))
os.write(master, b"lime\\x7f\\x7fne\\n"); print(read(b"got line\\r\\n"))
fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 90, 0, 0)); print(read(b")\\r\\n"))
os.write(master, b"\\x04"); print(read(b"end\\r\\n"), os.waitpid(pid, 0)[1])
""",
    "background": """
import os, pty, signal
pid, master = pty.fork()
if pid == 0:
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os.read(0, 1)
        os._exit(1)
    print(os.WSTOPSIG(os.waitpid(child, os.WUNTRACED)[1]) == signal.SIGTTIN)
    os.kill(child, 9); print(os.waitpid(child, 0)[1])
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0); os.tcsetpgrp(0, os.getpgrp()); os._exit(os.tcgetpgrp(0) == os.getpid())
    print(os.waitpid(child, 0)[1] >> 8, flush=True)
    os._exit(0)
text = b""
while True:
    try: text += os.read(master, 100)
    except OSError: break
print(text, os.waitpid(pid, 0)[1])
""",
    "raw": """
import os, pty, termios, tty, select
master, slave = pty.openpty()
before = termios.tcgetattr(slave)
tty.setraw(slave)
os.write(master, b"\\x03x"); print(os.read(slave, 9), termios.tcgetattr(slave)[:4])
new = termios.tcgetattr(slave); new[6][termios.VMIN] = 0; new[6][termios.VTIME] = 1
termios.tcsetattr(slave, termios.TCSANOW, new); print(os.read(slave, 9), before[:4])
os.close(master); print(os.read(slave, 1), select.select([slave], [], [], 1)[0] == [slave])
""",
    "signalfd": """
import ctypes, os, select, signal, struct
libc = ctypes.CDLL(None)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGCHLD])
mask = ctypes.c_ulong(1 << signal.SIGUSR1 - 1 | 1 << signal.SIGCHLD - 1)
fd = libc.syscall(289, -1, ctypes.byref(mask), 8, 0o4000)
poll = select.epoll(); poll.register(fd, select.EPOLLIN)
try: os.read(fd, 128)
except BlockingIOError: print("nothing")
print(poll.poll(0)); os.kill(os.getpid(), signal.SIGUSR1)
info = os.read(fd, 256)
print(len(info), struct.unpack_from("IiI", info)[0], struct.unpack_from("II", info, 12) == (os.getpid(), os.getuid()))
if os.fork() == 0: os._exit(7)
print(len(poll.poll(5)), struct.unpack_from("i", os.read(fd, 128), 40), poll.poll(0), os.wait()[1])
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_python(name: str) -> None:
    """Terminals and signalfd as CPython uses them."""
    if not Path(PYTHON).exists():
        pytest.skip(f"{PYTHON} is not installed")
    alike(PYTHON, "-I", "-c", PROGRAMS[name])
