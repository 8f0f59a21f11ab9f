"""Calls that few programs make, in the application kernel: what they say here is what they say on Linux."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.integration.test_appkernel import PYTHON, _platform, alike

pytestmark = pytest.mark.root
__all__ = ["_platform"]

PROGRAMS = {
    "timers": """
import ctypes, signal, struct, time
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *args): return libc.syscall(number, *args), ctypes.get_errno()
def make(clock, signal_number, how=0, value=77):
    timer = ctypes.c_int(); event = ctypes.create_string_buffer(struct.pack("Qii", value, signal_number, how), 64)
    return call(222, clock, event, ctypes.byref(timer)), timer.value
def spec(interval, first): return struct.pack("qqqq", 0, int(interval * 1e9), 0, int(first * 1e9))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGRTMIN])
done, timer = make(1, signal.SIGRTMIN)
print(done[0], make(1, 99)[0], make(77, 1)[0], call(223, 99, 0, spec(0, 1), None))
print(call(223, timer, 0, spec(0, 0.02), None)[0])
info = signal.sigwaitinfo([signal.SIGRTMIN]); print(info.si_signo, info.si_code)
old = ctypes.create_string_buffer(32)
print(call(223, timer, 0, spec(0.005, 0.005), None)[0]); time.sleep(0.2)
info = signal.sigwaitinfo([signal.SIGRTMIN])
print(call(223, timer, 0, spec(0, 0), old)[0], struct.unpack("qqqq", old)[:2])
print(call(225, timer)[0], call(226, timer)[0], call(226, timer))
first, second = make(0, signal.SIGUSR1)[1], make(0, signal.SIGUSR1)[1]
print(second - first, call(224, first, old)[0], struct.unpack("qqqq", old))
print(call(223, first, 1, spec(0, 0.001), None)[0], signal.sigtimedwait([signal.SIGUSR1], 5).si_signo)
""",
    "titles": """
import ctypes, os, re
def shown(name): return open("/proc/self/" + name, "rb").read()
before = shown("cmdline"); size = len(before)
top = int(re.search(rb"-([0-9a-f]+) .*\\[stack\\]", shown("maps"))[1], 16)
start = top - 65536 + ctypes.string_at(top - 65536, 65536).rindex(before)
def rename(title):
    ctypes.memmove(start, title, len(title))
    return shown("cmdline")
print(rename(b"worker 1".ljust(size, b"\\0")) == b"worker 1".ljust(size, b"\\0"))
print(rename(b"x" * size + b"yy\\0") == b"x" * size + b"yy\\0", shown("environ")[:3], rename(before) == before)
pid = os.fork()
if pid == 0: print(rename(b"child".ljust(size, b"\\0")).strip(b"\\0"), flush=True); os._exit(0)
os.waitpid(pid, 0); print(shown("cmdline") == before)
libc = ctypes.CDLL(None, use_errno=True)
print(libc.prctl(35, 8, ctypes.c_ulong(start), 1, 0), ctypes.get_errno())
""",
    "lengths of control messages": """
import array, ctypes, os, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
one, two = socket.socketpair(); two.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
alone, other = socket.socketpair(); descriptor = array.array("i", [0]).tobytes()
def length(into, room):
    control, data = ctypes.create_string_buffer(room), ctypes.create_string_buffer(1)
    piece = ctypes.create_string_buffer(struct.pack("QQ", ctypes.addressof(data), 1))
    header = struct.pack("7Q", 0, 0, ctypes.addressof(piece), 1, ctypes.addressof(control), room, 0)
    header = ctypes.create_string_buffer(header)
    assert libc.recvmsg(into.fileno(), header, 0) == 1
    return struct.unpack_from("QQ", header, 40)
for room in (28, 31, 32, 33, 100): one.send(b"x"); print(room, length(two, room))
for room in (20, 23, 24, 100):
    alone.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptor)]); print(room, length(other, room))
for room in (52, 56, 100):
    one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptor)]); print(room, length(two, room))
""",
    "pidfd": """
import os, select, signal
def of(call, *args):
    try: return call(*args)
    except OSError as error: return error.errno
pid = os.fork()
if pid == 0: signal.pause()
fd = os.pidfd_open(pid); poll = select.poll(); poll.register(fd, select.POLLIN)
print(poll.poll(0), of(os.pidfd_open, 2**22), of(os.pidfd_open, -1), of(os.read, fd, 1), os.get_inheritable(fd))
signal.pidfd_send_signal(fd, 0); signal.pidfd_send_signal(fd, signal.SIGTERM)
print([events for _, events in poll.poll(5000)])
done = os.waitid(os.P_PIDFD, fd, os.WEXITED); print(done.si_pid == pid, done.si_status, done.si_code)
print(of(signal.pidfd_send_signal, fd, 0), of(os.waitid, os.P_PIDFD, fd, os.WEXITED), len(poll.poll(0)))
""",
    "no pidfd": """
import ctypes, os, resource
libc = ctypes.CDLL(None, use_errno=True)
CLONE_PIDFD, SIGCHLD = 0x1000, 17
def clone(address):
    got = libc.syscall(56, CLONE_PIDFD | SIGCHLD, 0, address, 0, 0)
    if got == 0: os._exit(0)
    return got, ctypes.get_errno()
def children():
    try: return os.wait()[1]
    except ChildProcessError: return "none"
print(clone(ctypes.c_void_p(16)), children())
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard)); room = ctypes.c_int(-1)
print(clone(ctypes.byref(room)), room.value, children())
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
print(clone(ctypes.byref(room))[0] > 0, room.value, children(), os.read(os.pipe()[0], 0))
""",
    "splice": """
import os, tempfile
def of(call, *args, **more):
    try: return call(*args, **more)
    except OSError as error: return error.errno
r, w = os.pipe(); other, into = os.pipe()
file = tempfile.TemporaryFile(buffering=0); file.write(b"abcdefgh"); file.seek(2)
print(os.splice(file.fileno(), w, 4), os.read(r, 9), file.tell())
print(os.splice(file.fileno(), w, 100, offset_src=1), file.tell())
print(os.splice(r, into, 3), os.read(other, 9), os.splice(r, file.fileno(), 100, offset_dst=20))
print(os.pread(file.fileno(), 9, 18))
print(of(os.splice, r, w, 1), of(os.splice, file.fileno(), file.fileno(), 1), of(os.splice, w, r, 1))
print(of(os.splice, r, into, 1, offset_src=0), of(os.splice, r, into, 5, flags=2))
os.set_blocking(r, False); print(of(os.splice, r, into, 5)); os.close(w); print(os.splice(r, into, 5))
import ctypes; libc = ctypes.CDLL(None)
r, w = os.pipe(); os.write(w, b"twice"); print(libc.tee(r, into, 3, 0), os.read(r, 9), os.read(other, 9))
data = ctypes.create_string_buffer(b"mapped"); vector = (ctypes.c_ulong * 2)(ctypes.addressof(data), 6)
print(libc.vmsplice(w, vector, 1, 0), os.read(r, 9)); os.close(r)
print(of(os.splice, os.open("/etc/passwd", 0), w, 5), libc.vmsplice(file.fileno(), vector, 1, 0))
""",
    "limits": """
import os, resource, signal, tempfile
def of(call, *args):
    try: return call(*args)
    except OSError as error: return error.errno
got = []; signal.signal(signal.SIGXFSZ, lambda *_: got.append("signal"))
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 20))
file = tempfile.TemporaryFile(buffering=0); fd = file.fileno()
print(os.write(fd, b"x" * 15), of(os.write, fd, b"y"), of(os.pwrite, fd, b"abc", 9), of(os.ftruncate, fd, 11), got)
print(of(os.posix_fallocate, fd, 0, 30), os.ftruncate(fd, 10), len(got), os.write(os.pipe()[1], b"z" * 99))
""",
    "sysv": """
import ctypes, os, struct, time
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
def of(name, *args):
    ctypes.set_errno(0)
    value = getattr(libc, name)(*args)
    return ctypes.get_errno() or value
memory = of("shmget", 0, 5000, 0o600); at = libc.shmat(memory, None, 0)
print(memory >= 0, of("shmget", 1234, 99, 0o600), at % 4096)
if os.fork() == 0: ctypes.memmove(at + 4990, b"child", 5); os._exit(0)
os.wait(); print(ctypes.string_at(at + 4990, 5))
status = ctypes.create_string_buffer(112)
print(of("shmctl", memory, 2, status), struct.unpack_from("Q", status, 48), struct.unpack_from("Q", status, 88))
print(of("shmctl", memory, 0, None), of("shmdt", ctypes.c_void_p(at)), of("shmdt", ctypes.c_void_p(at)))
print(of("shmctl", memory, 2, status))
def operate(one, *operations, limit=None):
    packed = b"".join(struct.pack("Hhh", *operation) for operation in operations)
    spec = struct.pack("qq", 0, int(limit * 1e9)) if limit else None
    return of("semtimedop", one, packed, len(operations), spec)
one = of("semget", 0x77, 2, 0o1600)
print(of("semget", 0x77, 3, 0), of("semget", 0x77, 1, 0o3600), of("semctl", one, 0, 16, 2), of("semctl", one, 0, 12))
print(operate(one, (0, -1, 0), (1, 1, 0)), operate(one, (0, -5, 0o4000)), operate(one, (0, -5, 0), limit=0.02))
if os.fork() == 0: operate(one, (0, 1, 0x1000), (1, -1, 0)); os._exit(0)
os.wait(); print(of("semctl", one, 0, 12), of("semctl", one, 1, 12), of("semctl", one, 9, 12))
child = os.fork()
if child == 0: os._exit(operate(one, (1, -1, 0)))
time.sleep(0.1); print(of("semctl", one, 0, 0))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), operate(one, (0, 1, 0)))
queue = of("msgget", 0, 0o600)
def send(kind, text): return of("msgsnd", queue, struct.pack("q", kind) + text, len(text), 0o4000)
def take(kind, size=99, flags=0o4000):
    room = ctypes.create_string_buffer(200); got = of("msgrcv", queue, room, size, kind, flags)
    return got, room.raw[:16]
print(send(3, b"three"), send(1, b"one"), send(2, b"two"), send(0, b"x"))
print(take(2), take(-3), take(0, 2), take(0, 2, 0o14000), take(0))
if os.fork() == 0: time.sleep(0.05); send(5, b"late"); os._exit(0)
print(take(5, flags=0), os.wait()[1], of("msgctl", queue, 0, None), take(0))
""",
    "interrupted": """
import os, signal, socket, threading
one, two = socket.socketpair()
data, got = os.urandom(4_000_000), []
signal.signal(signal.SIGALRM, lambda *_: None); signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
def take():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    while part := two.recv(30_000, socket.MSG_WAITALL): got.append(part)
reader = threading.Thread(target=take); reader.start()
rest = memoryview(data)
while rest: rest = rest[one.sendmsg([rest]):]
signal.setitimer(signal.ITIMER_REAL, 0); one.shutdown(socket.SHUT_WR); reader.join()
print(b"".join(got) == data)
""",
    "untold": """
import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def held(): return len(os.listdir("/proc/self/fd"))
def of(number, *args):
    before = held(); got = libc.syscall(number, *args)
    return got, ctypes.get_errno(), held() - before
bad, room = ctypes.c_void_p(16), ctypes.create_string_buffer(128)
for family, name in ((socket.AF_UNIX, "/tmp/drupe-%d" % os.getpid()), (socket.AF_INET, ("127.0.0.1", 0))):
    listener = socket.socket(family); listener.bind(name); listener.listen(9)
    clients = [socket.socket(family) for _ in range(4)]
    for client in clients: client.connect(listener.getsockname())
    length, wrong = ctypes.c_int(128), ctypes.c_int(-1)
    print(of(288, listener.fileno(), bad, ctypes.byref(length), 0), of(43, listener.fileno(), room, bad))
    print(of(288, listener.fileno(), room, ctypes.byref(wrong), 0))
    print(of(288, listener.fileno(), room, ctypes.byref(length), 0)[1:], length.value)
os.unlink("/tmp/drupe-%d" % os.getpid())
print(of(53, 1, 1, 0, bad), of(293, bad, 0), of(22, bad))
""",
    "robust": """
import ctypes, mmap, os
libc = ctypes.CDLL(None)
memory = mmap.mmap(-1, 4096); lock = ctypes.c_char.from_buffer(memory)
kind = ctypes.create_string_buffer(64); libc.pthread_mutexattr_init(kind)
print(libc.pthread_mutexattr_setpshared(kind, 1), libc.pthread_mutexattr_setrobust(kind, 1))
libc.pthread_mutex_init(ctypes.byref(lock), kind)
r, w = os.pipe()
if os.fork() == 0:
    libc.pthread_mutex_lock(ctypes.byref(lock)); os.write(w, b"x"); os._exit(0)
os.read(r, 1)
print(libc.pthread_mutex_lock(ctypes.byref(lock)), libc.pthread_mutex_consistent(ctypes.byref(lock)))
print(libc.pthread_mutex_unlock(ctypes.byref(lock)), libc.pthread_mutex_trylock(ctypes.byref(lock)), os.wait()[1])
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_as_on_linux(name: str) -> None:
    """Values, errors, signals."""
    if not Path(PYTHON).exists():
        pytest.skip(f"{PYTHON} is not installed")
    alike(PYTHON, "-I", "-c", PROGRAMS[name])
