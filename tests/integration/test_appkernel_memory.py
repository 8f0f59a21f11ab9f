"""Memory in the application kernel: stacks that grow, what is locked, barriers, others' memory; as on Linux."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.integration.test_appkernel import PYTHON, _platform, alike

pytestmark = pytest.mark.root
__all__ = ["_platform"]

CALL = """
import ctypes, mmap, os, resource, signal, sys, tempfile
libc = ctypes.CDLL(None, use_errno=True); libc.mmap.restype = ctypes.c_void_p
def call(number, *args):
    ctypes.set_errno(0); got = libc.syscall(number, *[ctypes.c_long(arg) for arg in args])
    return got if got >= 0 else -ctypes.get_errno()
"""
PROGRAMS = {
    "stack": """
def down(n): return max([n - 1], key=down) if n else 0
def run(megabytes, depth):
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_STACK, (megabytes << 20, resource.RLIM_INFINITY))
        sys.setrecursionlimit(depth * 3); down(depth); os._exit(0)
    return os.waitstatus_to_exitcode(os.wait()[1])
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
print(run(64, 1000), run(64, 40000), run(8, 40000))
""",
    "small stack": """
resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, 1 << 20)); resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
deep = "import sys; sys.setrecursionlimit(90000)\\ndef f(n): return max([n - 1], key=f) if n else 0\\nf(%d)"
print([os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-I", "-c", deep % n]) for n in (100, 9000)])
""",
    "growing": """
DOWN, FIXED, PRIVATE = 0x100, 0x10, 0x22; page = 4096; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
at = libc.mmap(None, ctypes.c_size_t(1 << 21), 0, PRIVATE, -1, 0); base = at + (1 << 21) - 4 * page
print(libc.mmap(ctypes.c_void_p(base), ctypes.c_size_t(page), 3, PRIVATE | FIXED | DOWN, -1, 0) == base)
print(libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t((1 << 21) - 4 * page)))
ctypes.memset(base - page, 1, 2 * page); ctypes.memset(base - 20 * page, 7, page)
print(ctypes.string_at(base - 20 * page, 2))
if os.fork() == 0: ctypes.memset(base - (9 << 20), 1, 1)
print(os.wait()[1] & 127)
""",
    "locked": """
memory = mmap.mmap(-1, 64 * 4096); at = ctypes.addressof(ctypes.c_char.from_buffer(memory)); page = 4096
def held(): return [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmLck")]
resource.setrlimit(resource.RLIMIT_MEMLOCK, (8 * page, 8 * page)); os.setuid(65534)
print(call(149, at, 4 * page), call(149, at, 9 * page), call(149, at + page, 2 * page), held())
print(call(150, at + page, page), held(), call(149, at + 1, page), held())
print(call(151, 1), call(151, 0), call(152), held())
if os.fork() == 0: print(held(), flush=True); os._exit(0)
os.wait(); memory2 = mmap.mmap(-1, page); print(call(149, at, page), held())
resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0)); print(call(149, at, page), call(151, 1), call(325, at, page, 5))
""",
    "there": """
memory = mmap.mmap(-1, 64 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS); vector = ctypes.create_string_buffer(64)
at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t(64 * 4096), 15)
memory[0:1] = b"x"; memory[3 * 4096:3 * 4096 + 1] = b"y"
print(call(27, at, 64 * 4096, ctypes.addressof(vector)), [byte & 1 for byte in vector.raw[:5]])
print(call(27, 4096, 4096, 0), call(27, 1, 4096, 0))
""",
    "zeros": """
PRIVATE, SHARED = mmap.MAP_PRIVATE, mmap.MAP_SHARED
for how, mode, access in (PRIVATE, os.O_RDONLY, 1), (PRIVATE, os.O_RDWR, 3), (SHARED, os.O_RDWR, 3):
    memory = mmap.mmap(os.open("/dev/zero", mode), 8192, flags=how, prot=access); print(memory[0], memory[8191])
if os.fork() == 0: memory[5] = 7; os._exit(0)
os.wait(); print(memory[5])
""",
    "frames": """
area = mmap.mmap(-1, 1 << 16); at = ctypes.addressof(ctypes.c_char.from_buffer(area)); libc.signal(11, 0)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
class Stack(ctypes.Structure): _fields_ = [("at", ctypes.c_ulong), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
print(libc.sigaltstack(ctypes.byref(Stack(at, 0, 1 << 16)), None)); here, there = os.pipe()
def protect(how): return libc.mprotect(ctypes.c_void_p(at), ctypes.c_size_t(1 << 16), how)
NUMBERS = ctypes.c_ulong * 16
class Action(ctypes.Structure): _fields_ = [("handler", ctypes.c_void_p), ("mask", NUMBERS), ("flags", ctypes.c_int)]
HANDLER, kept = ctypes.CFUNCTYPE(None, ctypes.c_int), []
def handle(number, function, flags):
    kept.append(HANDLER(function)); room = ctypes.create_string_buffer(256)
    ctypes.memmove(room, ctypes.byref(Action(ctypes.cast(kept[-1], ctypes.c_void_p).value, NUMBERS(), flags)), 144)
    return libc.sigaction(number, room, None)
print(handle(11, lambda number: (protect(3), os.write(there, b"fault")), 0))
print(handle(10, lambda number: os.write(there, b"signal"), 0x8000000), protect(1), os.kill(os.getpid(), 10))
print(os.read(here, 99))
""",
    "barriers": """
print(call(324, 8, 0), call(324, 16, 0), call(324, 8, 0), call(324, 64, 0), call(324, 32, 0), call(324, 1 << 20, 0))
print(call(324, 0, 0) & 0x78)
""",
    "others' memory": """
data, out = ctypes.create_string_buffer(b"parent memory", 16), ctypes.create_string_buffer(16); here, there = os.pipe()
def vector(address, size): vectors.append((ctypes.c_ulong * 2)(address, size)); return ctypes.addressof(vectors[-1])
vectors, mine, its = [], ctypes.addressof(out), ctypes.addressof(data)
pid = os.fork()
if pid == 0: data.value = b"child's own"; os.write(there, b"1"); signal.pause()
os.read(here, 1); print(call(310, pid, vector(mine, 12), 1, vector(its, 12), 1, 0), out.value)
out.value = b"WRITTEN"; print(call(311, pid, vector(mine, 7), 1, vector(its, 7), 1, 0))
print(call(310, pid, vector(mine, 12), 1, vector(its, 12), 1, 0), out.value, data.value)
print(call(310, pid, vector(mine, 12), 1, vector(4096, 12), 1, 0))
print(call(310, 4194000, vector(mine, 1), 1, vector(its, 1), 1, 0))
print(call(310, pid, vector(mine, 12), 1, vector(its, 12), 1, 9)); os.kill(pid, 9); os.wait()
""",
    "signals that wait": """
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGRTMIN]); pid = os.getpid(); os.setuid(54321)
resource.setrlimit(resource.RLIMIT_SIGPENDING, (2, 2)); number = int(signal.SIGRTMIN)
print([call(234, pid, pid, number) for _ in range(4)], call(234, pid, pid, 10), call(234, pid, pid, 10))
print(signal.sigtimedwait([number], 1).si_signo, call(234, pid, pid, number), call(234, pid, pid, number))
""",
    "files": """
import fcntl, socket, struct
file = tempfile.TemporaryFile(buffering=0); file.write(b"x" * 100)
def of(function, *args):
    try: return function(*args)
    except OSError as error: return -error.errno
fd = file.fileno(); print(of(os.copy_file_range, fd, fd, 50, 0, 20), os.copy_file_range(fd, fd, 50, 0, 60))
os.chdir(tempfile.mkdtemp()); open("a", "w"); print(of(os.link, "a", "b/"), os.listdir(), os.unlink("a"))
full = os.open("/dev/full", os.O_RDWR); print(os.lseek(full, 9, 0), os.lseek(full, -5, 1), os.lseek(full, -5, 2))
one, two = socket.socketpair(); one.send(b"x"); print(hex(two.recvmsg(9, 100, socket.MSG_CMSG_CLOEXEC)[2]))
time = ctypes.create_string_buffer(208)
print(call(159, ctypes.addressof(time)) >= 0, struct.unpack_from("q", time, 88))
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_as_on_linux(name: str) -> None:
    """Values, errors, ends."""
    if not Path(PYTHON).exists():
        pytest.skip(f"{PYTHON} is not installed")
    alike(PYTHON, "-I", "-c", CALL + PROGRAMS[name])
