"""Call sites that the application kernel rewrites: programs that call often, with and without it, see what they see on
Linux."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.root
KERNEL = Path(__file__).parents[2] / "src/drupe/_bin/drupe-appkernel"
TIMEOUT_S = 60
PYTHON = "/usr/bin/python3"

# Every call of these is made often enough to be rewritten.
OFTEN = """
import ctypes, os, signal, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
file = os.open("/etc/passwd", os.O_RDONLY)
first, pid = os.pread(file, 64, 0), os.getpid()
def often(count=100):
    for _ in range(count):
        assert os.pread(file, 64, 0) == first and os.stat("/etc/passwd").st_size > 0
        assert libc.syscall(39) == os.getpid()
often()
"""
PROGRAMS = {
    "signals": """
seen = []
signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
while len(seen) < 50: often()
signal.setitimer(signal.ITIMER_REAL, 0)
print("signals")
""",
    "blocked": """
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
there, back = os.pipe(), os.pipe()
if os.fork() == 0:
    for _ in range(200): os.write(back[1], os.read(there[0], 1))
    os._exit(0)
for n in range(200):
    os.write(there[1], bytes([n]))
    assert os.read(back[0], 1) == bytes([n])
signal.setitimer(signal.ITIMER_REAL, 0)
print(os.wait()[1])
""",
    "signals of several": """
import time
for n in range(6):
    if os.fork() == 0:
        seen = []
        signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
        end = time.monotonic() + 3
        while time.monotonic() < end:
            signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0006); often(3)
        os._exit(0 if seen else 1)
print([os.wait()[1] for _ in range(6)])
""",
    "forks and threads": """
for n in range(5):
    if os.fork() == 0:
        often(); os._exit(n)
print(sorted(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(5)))
threads = [threading.Thread(target=often) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
often()
print("threads")
""",
    "while another waits there": """
import time
(r, w), got = os.pipe(), bytearray(1)
waiting = threading.Thread(target=lambda: os.readv(r, [got]))
waiting.start(); time.sleep(0.1)
zero = os.open("/dev/zero", os.O_RDONLY)
for _ in range(200): os.readv(zero, [bytearray(1)])
os.write(w, b"x"); waiting.join()
print(got)
""",
    "while others run there": """
def read_on(call, count):
    for _ in range(count):
        buffer = bytearray(64)
        assert call(file, [buffer], 0) == 64 and bytes(buffer) == first
idle = threading.Event()
for call in (os.preadv, lambda fd, b, o: os.pread(fd, 64, o) and os.preadv(fd, b, o)):
    threads = [threading.Thread(target=read_on, args=(call, 400)) for _ in range(4)]
    threads.append(threading.Thread(target=idle.wait))
    [t.start() for t in threads]; [t.join() for t in threads[:4]]; idle.set()
print("read on")
""",
    "bad addresses": """
def fails(*arguments):
    assert libc.syscall(*arguments) == -1
    return ctypes.get_errno()
print({fails(0, os.open("/dev/zero", os.O_RDONLY), 8, 8), fails(4, 8, 8), fails(257, -100, 16, 0)})
print({fails(5, file, 8), fails(1, os.pipe()[1], 8, 8), fails(999)})
""",
    "calls of the host": """
word = ctypes.c_int(5)
for _ in range(100):
    assert libc.syscall(202, ctypes.byref(word), 1, 1, None, None, 0) == 0      # FUTEX_WAKE
    assert libc.syscall(202, ctypes.byref(word), 0, 4, None, None, 0) == -1     # FUTEX_WAIT, another value
    assert ctypes.get_errno() == 11 and libc.syscall(24) == 0
print(libc.syscall(202, 8, 0, 4, None, None, 0), ctypes.get_errno())            # no such memory
""",
}
WAYS: dict[str, list[str]] = {"rewritten": [], "as they are": ["--no-rewriting"]}


def python(program: str, *before: str | Path) -> subprocess.CompletedProcess[str]:
    """CPython, after these words."""
    argv = [*before, PYTHON, "-I", "-c", program]
    return subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def here(way: str, program: str) -> subprocess.CompletedProcess[str]:
    """CPython in the application kernel."""
    return python(program, KERNEL, "run", "--root", "/", *WAYS[way], "--")


@pytest.fixture(autouse=True)
def _there() -> None:
    if not KERNEL.exists() or subprocess.run([KERNEL, "probe"], capture_output=True, check=False).returncode != 0:
        pytest.skip("the application kernel is not built, or its platform does not work here")
    if not Path(PYTHON).exists():
        pytest.skip(f"{PYTHON} is not installed")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_that_call_often(name: str, way: str) -> None:
    """What they print is what they print on Linux."""
    program = OFTEN + PROGRAMS[name]
    expected, got = python(program), here(way, program)
    assert expected.returncode == 0, expected.stderr
    assert (got.stdout, got.returncode) == (expected.stdout, expected.returncode), got.stderr


@pytest.mark.parametrize("way", WAYS)
def test_the_switch(way: str) -> None:
    """Trampolines are in the program's map where calls are rewritten, and only there."""
    done = here(way, OFTEN + "print('[calls]' in open('/proc/self/maps').read())")
    assert done.stdout == f"{way == 'rewritten'}\n", done.stderr
