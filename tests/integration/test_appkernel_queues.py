"""Queues, tables and limits of processes in the application kernel: what they say here is what they say on Linux."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.integration.test_appkernel import PYTHON, _platform, alike, here

pytestmark = pytest.mark.root
__all__ = ["_platform"]

START = """
import ctypes, errno, os, resource, select, signal, socket, struct, time
libc = ctypes.CDLL(None, use_errno=True)
def of(name, *args):
    ctypes.set_errno(0)
    value = libc.syscall(name, *args) if isinstance(name, int) else getattr(libc, name)(*args)
    return errno.errorcode[ctypes.get_errno()] if value == -1 else value
"""

MESSAGES = """
NAME = b"/drupe-%d" % os.getpid()
def attributes(messages, size): return struct.pack("8q", 0, messages, size, *[0] * 5)
def make(name, flags, messages=3, size=16):
    return of("mq_open", name, flags | os.O_CREAT, 0o600, attributes(messages, size))
def send(queue, text, priority=0, due=None): return of("mq_timedsend", queue, text, len(text), priority, due)
def take(queue, size=16, due=None):
    room, priority = ctypes.create_string_buffer(16), ctypes.c_uint()
    return of("mq_timedreceive", queue, room, size, ctypes.byref(priority), due), room.value, priority.value
past, bad = struct.pack("qq", 1, 0), struct.pack("qq", 1, -1)
queue = make(NAME, os.O_RDWR | os.O_EXCL)
"""

PROGRAMS = {
    "messages": MESSAGES
    + """
print(queue > 2, os.get_inheritable(queue), make(NAME, os.O_RDWR | os.O_EXCL), of("mq_open", b"/drupe-none", 0))
print(of("mq_open", b"none", 0), of("mq_open", b"/a/b", 0), make(b"/drupe-bad", os.O_RDWR, 0))
print(of("mq_unlink", b"/drupe-none"))
poll = select.poll(); poll.register(queue, select.POLLIN | select.POLLOUT)
print(poll.poll(0)[0][1], send(queue, b"low", 1), send(queue, b"high", 9), send(queue, b"high too", 9))
print(poll.poll(0)[0][1], send(queue, b"full", 0, past), send(queue, b"full", 0, bad), send(queue, b"x" * 17))
print(send(queue, b"x", 40000), take(queue, 15), [take(queue) for _ in range(3)], take(queue, due=past))
reader = of("mq_open", NAME, os.O_RDONLY | os.O_NONBLOCK)
print(take(reader), send(reader, b"x"), take(of("mq_open", NAME, os.O_WRONLY)), take(0), os.read(queue, 100)[:9])
state = ctypes.create_string_buffer(64)
print(of("mq_getattr", reader, state), struct.unpack("4q", state[:32]))
print(of(245, queue, struct.pack("8q", 5, *[0] * 7), 0))
print(of(245, queue, struct.pack("8q", os.O_NONBLOCK, *[0] * 7), state), take(queue)[0], struct.unpack("q", state[:8]))
of(245, queue, bytes(64), 0)
if os.fork() == 0: print(take(queue), flush=True); os._exit(send(queue, b"back"))
send(queue, b"forth"); os.wait(); print(take(queue))
signal.signal(signal.SIGALRM, lambda *_: None); signal.siginterrupt(signal.SIGALRM, True)
signal.setitimer(signal.ITIMER_REAL, 0.05); print(take(queue)[0])
if os.fork() == 0:
    os.setresuid(1000, 1000, 1000); print(of("mq_open", NAME, 0), of("mq_unlink", NAME), flush=True); os._exit(0)
os.wait(); print(of("mq_unlink", NAME), of("mq_unlink", NAME), send(queue, b"still there"), take(queue)[1])
resource.setrlimit(resource.RLIMIT_MSGQUEUE, (1000, 1000)); print(make(NAME, os.O_RDWR, 10, 100))
""",
    "told of messages": MESSAGES
    + """
of("mq_unlink", NAME); signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
def ask(how, number): return of("mq_notify", queue, struct.pack("Qii", 7, number, how) + bytes(48))
print(ask(0, signal.SIGUSR1), ask(0, signal.SIGUSR1), ask(0, 99), ask(9, 1), send(queue, b"a"), send(queue, b"b"))
info = signal.sigtimedwait([signal.SIGUSR1], 20); print(info.si_signo, info.si_code, info.si_pid == os.getpid())
print(signal.sigtimedwait([signal.SIGUSR1], 0), take(queue)[1], take(queue)[1], ask(1, 0), of("mq_notify", queue, None))
print(ask(0, signal.SIGUSR1), os.close(os.dup(queue)), ask(0, signal.SIGUSR1))
if os.fork() == 0: os._exit(ask(0, signal.SIGUSR1) == "EBUSY")
print(os.wait()[1])
""",
    "what there is of System V": """
def one(get, control, stat, mode=0o600):
    made = of(*get, mode); room = ctypes.create_string_buffer(512)
    last = of(*control(0, 3, room)); found = [of(*control(place, stat, room)) for place in range(last + 1)]
    again = of(*control(found.index(made), stat, room)) == made, struct.unpack_from("I", room, 20)
    return last >= 0, found.count(made), again, of(*control(99999, stat, room)), of(*control(made, 0, None))
print(one(("shmget", 0, 5000), lambda i, c, r: ("shmctl", i, c, r), 13))
print(one(("semget", 0, 3), lambda i, c, r: ("semctl", i, 0, c, r), 18))
print(one(("msgget", 0), lambda i, c, r: ("msgctl", i, c, r), 11))
room = ctypes.create_string_buffer(512)
for name, commands in (("shmctl", (14,)), ("msgctl", (12,))):
    print([of(name, 0, command, room) != "EINVAL" for command in commands])
print(of("semctl", 0, 0, 19, room) != "EINVAL", struct.unpack_from("10i", room)[8])
sets = of("semget", 0, 2, 0o600); children = []
for index, change in ((0, -1), (0, -2), (1, -1)):
    children.append(os.fork())
    if children[-1] == 0: os._exit(of("semop", sets, struct.pack("Hhh", index, change, 0), 1) != "EIDRM")
while [of("semctl", sets, index, 14) for index in (0, 1)] != [2, 1]: time.sleep(0.01)
print([of("semctl", sets, index, 15) for index in (0, 1)], of("semctl", sets, 0, 0))
print([os.waitpid(c, 0)[1] for c in children])
""",
    "descriptors of others": """
one, two = socket.socketpair(); r, w = os.pipe()
child = os.fork()
if child == 0:
    one.send(struct.pack("i", os.open("/etc/passwd", os.O_RDONLY))); signal.pause()
number = struct.unpack("i", two.recv(4))[0]; held = os.pidfd_open(child)
mine = of(438, held, number, 0)
print(os.get_inheritable(mine), os.pread(mine, 4, 0), os.lseek(mine, 3, 0))
print(of(438, held, 999, 0), of(438, held, number, 1))
print(of(438, r, number, 0))
other = os.fork()
if other == 0: os.setresuid(1000, 1000, 1000); print(of(438, held, number, 0), flush=True); os._exit(0)
os.waitpid(other, 0); os.kill(child, 9); os.waitpid(child, 0); print(of(438, held, number, 0))
""",
    "processor time": """
def end(soft, hard, handler=None):
    child = os.fork()
    if child == 0:
        if handler: signal.signal(signal.SIGXCPU, handler)
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
        if os.fork() == 0: os._exit(resource.getrlimit(resource.RLIMIT_CPU) != (soft, hard))
        while True: pass
    return signal.Signals(os.waitpid(child, 0)[1]).name
print(end(1, 9), end(1, 1, signal.SIG_IGN))
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_as_on_linux(name: str) -> None:
    """Values, errors, signals."""
    if not Path(PYTHON).exists():
        pytest.skip(f"{PYTHON} is not installed")
    alike(PYTHON, "-I", "-c", START + PROGRAMS[name])


def test_queues_take_no_more_than_their_share() -> None:
    """Whatever a user may have by its limits, what its queues hold in the kernel's memory is bounded."""
    script = START + (
        "resource.setrlimit(resource.RLIMIT_MSGQUEUE, (resource.getrlimit(resource.RLIMIT_MSGQUEUE)[1],) * 2)\n"
        "made = [of('mq_open', b'/q%d' % i, 0o102, 0o600, None) for i in range(300)]; print(made.count('EMFILE') > 0)"
    )
    done = here(PYTHON, "-I", "-c", script)
    assert done.stdout == "True\n", done.stderr
