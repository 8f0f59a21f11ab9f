"""Floods from inside a pod: of timers, processes, signals, of what is kept in the memory of its kernel. Who sends them
is slowed or ended; the kernel stays answerable, and the others go on."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.test_appkernel import PYTHON, alike

from framework.appkernels import KERNEL, leaves_nothing, memory_cgroup, run, skip_without_platform
from framework.daemon import Daemon
from framework.leaks import wait_until

pytestmark = pytest.mark.root
LONG = bool(os.environ.get("DRUPE_TEST_FULL"))
TIMEOUT_S = 120


@pytest.fixture(scope="module", autouse=True)
def _platform() -> None:
    skip_without_platform()


TIMERS = """
import ctypes, signal, struct
libc, got, spec = ctypes.CDLL(None), [0], struct.pack("qqqq", 0, 1000, 0, 1000)
def heard(*_): got[0] += 1
def make(number):
    timer = ctypes.c_int(); event = ctypes.create_string_buffer(struct.pack("Qii", 7, number, 0), 64)
    assert libc.syscall(222, 1, event, ctypes.byref(timer)) == 0
    return timer.value
"""
# Linux itself does not come to an end under these: its handlers take longer than the intervals.
NEVER_BETWEEN = {
    "setitimer": """
signal.signal(signal.SIGALRM, heard); signal.setitimer(signal.ITIMER_REAL, 1e-6, 1e-6)
total = sum(number for number in range(300_000)); signal.setitimer(signal.ITIMER_REAL, 0)
print(total, got[0] > 0)
""",
    "timer_create": """
for number in (signal.SIGUSR1, signal.SIGRTMIN): signal.signal(number, heard)
timers = [make(number) for number in [signal.SIGUSR1, signal.SIGRTMIN] * 20]
for timer in timers: assert libc.syscall(223, timer, 0, spec, None) == 0
total = sum(number for number in range(300_000)); overrun = max(libc.syscall(225, timer) for timer in timers)
for timer in timers: libc.syscall(226, timer)
print(total, got[0] > 0 and overrun > 0)
""",
}


@pytest.mark.parametrize("name", NEVER_BETWEEN)
def test_timers_of_a_microsecond_leave_the_program_time(name: str) -> None:
    """It goes on between their signals, and is told how many it has missed."""
    done = run(program=TIMERS + NEVER_BETWEEN[name], timeout_s=TIMEOUT_S)
    assert done.stdout.split() == [str(sum(range(300_000))), "True"], done.stderr


COUNTED = {
    "blocked": """
import time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN, signal.SIGALRM]); timer = make(signal.SIGRTMIN)
begun = time.monotonic(); libc.syscall(223, timer, 0, spec, None)
signal.setitimer(signal.ITIMER_REAL, 1e-6, 1e-6); time.sleep(0.2); signal.sigwait([signal.SIGRTMIN])
overrun, passed_us = libc.syscall(225, timer), (time.monotonic() - begun) * 1e6
print(100_000 < overrun <= passed_us, signal.sigwait([signal.SIGALRM]) == signal.SIGALRM)
signal.signal(signal.SIGRTMIN, signal.SIG_IGN); signal.signal(signal.SIGRTMIN, heard)
print(signal.sigwait([signal.SIGRTMIN]) == signal.SIGRTMIN)
""",
    "descriptors": """
import os, select, time
fds = [libc.timerfd_create(1, 0o4000) for _ in range(50)]; begun = time.monotonic()
for fd in fds: libc.timerfd_settime(fd, 0, spec, None)
epoll = select.epoll(); total = 0
for fd in fds: epoll.register(fd, select.EPOLLIN)
for _ in range(20): total += sum(struct.unpack("Q", os.read(fd, 8))[0] for fd, _ in epoll.poll(5))
print(len(fds) <= total <= len(fds) * (time.monotonic() - begun) * 1e6)
""",
    "queued": """
import os
signal.pthread_sigmask(signal.SIG_BLOCK, [40])
libc, sent = ctypes.CDLL(None, use_errno=True), 0
import resource; resource.setrlimit(resource.RLIMIT_SIGPENDING, (500, 500))
info = ctypes.create_string_buffer(struct.pack("iii", 40, 0, -1), 128)
while sent < 5000 and libc.syscall(129, os.getpid(), 40, info) == 0: sent += 1
print(0 < sent < 5000, ctypes.get_errno())
""",
}


@pytest.mark.parametrize("name", COUNTED)
def test_what_is_missed_is_counted_as_on_linux(name: str) -> None:
    """Of signals that are blocked, of descriptors; a queue that is full says so."""
    alike(PYTHON, "-I", "-c", TIMERS + COUNTED[name])


# -- memory of the kernel's ------------------------------------------------------------------------------------------

KEPT = {
    "sockets": "while True:\n    a, b = socket.socketpair(); a.setblocking(False); held.append((a, b))\n"
    "    try:\n        while True: a.send(bytes(65536))\n    except BlockingIOError: pass\n",
    "notices": "fds = [libc.inotify_init1(0o4000) for _ in range(100)]; os.mkdir('/tmp/q')\n"
    "for fd in fds: assert libc.inotify_add_watch(fd, b'/tmp/q', 0xfff) > 0\n"
    "for number in range(40000): open('/tmp/q/' + 'n' * 200 + str(number % 10), 'w').close()\n",
    "attributes": "for number in range(10000):\n    path = f'/tmp/x{number}'; open(path, 'w').close()\n"
    "    for key in range(30): os.setxattr(path, f'user.{key}', bytes(60000))\n",
    "processes": "while os.fork() == 0: pass\nwhile True: os.fork()\n",
    "files in memory": "while True:\n    held.append(os.memfd_create('x')); os.write(held[-1], bytes(1 << 20))\n",
    "files": "number = 0\nwhile True: open(f'/tmp/{number:0200}', 'w').close(); number += 1\n",
    "links": "number = 0\nwhile True: os.symlink('t' * 4000, f'/tmp/{number}'); number += 1\n",
}
QUICK = ("sockets", "processes", "files in memory")


@pytest.mark.parametrize("name", KEPT if LONG else QUICK)
def test_what_a_pod_makes_its_kernel_keep_is_the_pods_own(name: str) -> None:
    """At the pod's limit it is refused (ENOSPC, EAGAIN), or a program of the pod is killed; another pod goes on."""
    program = (
        "import ctypes, os, resource, socket\nresource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))\n"
        "libc, held = ctypes.CDLL(None), []\n"
        "def flood():\n" + "".join(f"    {line}\n" for line in KEPT[name].splitlines()) + "try: flood()\n"
        "except OSError as error: os._exit(error.errno)\n"
    )
    with subprocess.Popen([KERNEL, "run", "--root", "/", "--", "/bin/cat"], stdin=-1, stdout=-1) as other:
        try:
            with memory_cgroup(128 << 20) as members:
                argv = ["/bin/sh", "-c", f'echo $$ >{members}; exec "$@"', "sh", str(KERNEL), "run"]
                argv += ["--memory", str(128 << 20), "--root", "/", "--", PYTHON, "-I", "-c", program]
                done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
                assert "a bug of the kernel" not in done.stderr and "panicked" not in done.stderr, done.stderr
                assert done.returncode in (-9, 137, errno.ENOSPC, errno.EAGAIN), done
            assert other.stdin is not None and other.stdout is not None
            other.stdin.write(b"alive")
            other.stdin.close()
            assert other.stdout.read() == b"alive"
        finally:
            other.kill()


# -- processes -------------------------------------------------------------------------------------------------------


@pytest.fixture
def pods(daemon: Daemon, tmp_path: Path) -> Iterator[Daemon]:
    with leaves_nothing(daemon, tmp_path):
        yield daemon


def test_a_crowd_that_forks_does_not_keep_an_operator_out(pods: Daemon) -> None:
    """`exec` and `rm` have their turns beside a hundred shells that do nothing but fork."""
    crowd = "n=0; while [ $n -lt 100 ]; do n=$((n + 1)); (while :; do (true); done) & done; echo all; wait"
    pods.command("run", "-d", "--name", "crowd", "--sandbox", "appkernel", "busybox", "sh", "-c", crowd, check=True)
    wait_until(lambda: "all" in pods.command("logs", "crowd").stdout, what="the crowd forks", timeout_s=TIMEOUT_S)
    for _ in range(3):
        assert pods.command("exec", "crowd", "sh", "-c", "true | cat; echo heard", check=True).stdout == "heard\n"
    pods.command("rm", "-f", "crowd", check=True)
