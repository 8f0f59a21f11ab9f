"""Calls that are made to break a kernel: lengths that overflow, control messages that lie, chains without an end. What
they get is what they get in a container of runc's, and whoever made them goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.appkernels import PYTHON, leaves_nothing
from framework.daemon import Daemon
from framework.probes import needs_path

pytestmark = pytest.mark.root
DEBIAN = tuple(word for name in ("usr", "lib", "lib64") for word in ("-v", f"/{name}:/{name}:ro"))

START = """
import array, ctypes, errno, mmap, os, select, signal, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def of(call, *args, **more):
    try: got = call(*args, **more)
    except OSError as error: return errno.errorcode[error.errno]
    return got
def raw(number, *args):
    ctypes.set_errno(0)
    got = libc.syscall(number, *[ctypes.c_ulong(a % 2**64) if isinstance(a, int) else a for a in args])
    return errno.errorcode[ctypes.get_errno()] if got == -1 else got
def say(what, *got): print(what, *got, flush=True)
def ends(act):
    'How a child ends that does this.'
    pid = os.fork()
    if pid == 0:
        act(); os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
def address(buffer): return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
FAR, NONE, KERNEL = 1 << 46, 0x10, 0xffffffff81000000
memory = mmap.mmap(-1, 1 << 20); at = address(memory)
"""

PROGRAMS = {
    "programs in memory": """
program = os.memfd_create("program", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
os.write(program, open("/usr/bin/true", "rb").read())
words = (ctypes.c_char_p * 2)(b"true", None)
say("run", ends(lambda: raw(322, program, b"", words, None, 0x1000)))
say("no path", ends(lambda: os._exit(raw(322, program, b"", words, None, 0) == "ENOENT")))
script = os.memfd_create("script", os.MFD_CLOEXEC); os.write(script, b"#!/usr/bin/env true\\n")
say("script", raw(322, script, b"", words, None, 0x1000))
import fcntl; say("sealed", fcntl.fcntl(program, 1033, 0xf), of(os.write, program, b"x"), of(os.ftruncate, program, 0))
say("still", ends(lambda: raw(322, program, b"", words, None, 0x1000)), of(os.execve, "/proc/self/fd/999", ["x"], {}))
place = os.open("/usr/bin/true", os.O_PATH); say("by place", ends(lambda: raw(322, place, b"", words, None, 0x1000)))
say("directory", raw(322, os.open("/usr", 0), b"", words, None, 0x1000), raw(322, place, None, words, None, 0))
""",
    "control messages": """
def send(control, fds=1, size=None):
    a, b = socket.socketpair()
    room = mmap.mmap(-1, 1 << 20); base = address(room)
    room[:len(control)] = control; room[0x10000] = 7
    vector = struct.pack("QQ", base + 0x10000, 1); room[0x11000:0x11010] = vector
    header = struct.pack("QIiQQQQii", 0, 0, 0, base + 0x11000, 1, base, len(control) if size is None else size, 0, 0)
    return raw(46, a.fileno(), header, 0)
def message(length, *fds, kind=1): return struct.pack("QII", length, 1, kind) + struct.pack(f"{len(fds)}i", *fds)
good = message(20, 0)
say("lengths", *[send(message(length, 0) + bytes(4)) for length in (0, 1, 15, 16, 17, 19, 20, 21, 24, 25, 2**31,
    2**63, 2**64 - 1)])
say("sizes", *[send(good, size=size) for size in (0, 1, 15, 16, 19, 20, 2**31, 2**40, 2**64 - 1)])
say("fds", send(message(20, -1)), send(message(20, 999)), send(message(16 + 4 * 253, *[0] * 253)),
    send(message(16 + 4 * 254, *[0] * 254)))
say("kinds", send(message(20, 0, kind=9)), send(message(28, os.getpid(), 0, 0, kind=2)), send(message(28, 1, 0, 0,
    kind=2) + bytes(4)) in ("EPERM", 1))
say("twice", send(good + bytes(4) + good), send(message(16)))
a, b = socket.socketpair(); a.sendmsg([b"x"], [(1, 1, array.array("i", [0, 1, 2]))])
got = b.recvmsg(9, 16 + 4); say("room", got[2], len(got[1][0][2]) if got[1] else 0)
a.sendmsg([b"x"], [(1, 1, array.array("i", [0]))]); say("none", b.recvmsg(9, 0)[1:3])
""",
    "vectors": """
fd = os.memfd_create("x"); os.write(fd, bytes(1 << 16))
def vector(*pairs):
    data = b"".join(struct.pack("QQ", *(n % 2**64 for n in pair)) for pair in pairs)
    memory[0x40000:0x40000 + len(data)] = data
    return at + 0x40000
def both(count, *pairs):
    where = vector(*pairs)
    return [raw(number, fd, where, count, 0, 0) for number in (295, 296)]
one = (at, 1)
say("counts", *[both(count, *[one] * 1024) for count in (0, 1, 1024, 1025, 2**31, 2**32 - 1, 2**63)])
say("lengths", both(1, (at, -1)), both(2, one, (at, 2**63)), both(1, (at, 2**63 - 1)) != 0)
sums = both(2, (at, 2**63 - 1), (at, 2**63 - 1)), both(2, (at, 2**62), (at, 2**62))
say("sums", {error in ("EINVAL", "EFAULT") for pair in sums for error in pair}, both(1, (NONE, 0)), both(1, (FAR, 5)))
say("places", [raw(19, fd, where, 1) for where in (0, NONE, FAR, KERNEL, 2**64 - 8)], [raw(20, fd, FAR, count)
    for count in (0, 1, -1)])
own = os.getpid()
def vm(number, here, heres, there, theres, flags=0):
    memory[0x60000:0x60000 + 16 * len(here)] = b"".join(struct.pack("QQ", *(n % 2**64 for n in pair)) for pair in here)
    memory[0x80000:0x80000 + 16 * len(there)] = b"".join(struct.pack("QQ", *(n % 2**64 for n in pair))
        for pair in there)
    return raw(number, own, at + 0x60000, heres, at + 0x80000, theres, flags)
for number in (310, 311):
    say("counts", *[vm(number, [one] * 1024, n, [one] * 1024, m) for n, m in ((1, 1024), (1024, 1024), (1025, 1), (1,
        1025), (0, 1), (1, 0))])
    say("lengths", vm(number, [(at, -1)], 1, [one], 1), vm(number, [one], 1, [(at, -1)], 1), vm(number, [one], 1,
        [one], 1, 1))
    say("places", vm(number, [one], 1, [(NONE, 8)], 1), vm(number, [(at, 16)], 1, [(at, 8), (FAR, 8)], 2), vm(number,
        [(NONE, 8)], 1, [one], 1))
    say("overlap", vm(number, [(at + 4, 4096)], 1, [(at, 4096)], 1))
""",
    "names": """
os.chdir("/data")
say("long", of(os.mkdir, "n" * 256), of(os.mkdir, "n" * 255), of(os.stat, "x/" * 2048), of(os.stat,
    "./" * 2047 + ".") != "ENAMETOOLONG", of(os.stat, "/" * 4095) != "ENAMETOOLONG")
say("links", of(os.symlink, "t" * 4095, "l1"), of(os.symlink, "t" * 4096, "l2"), len(os.readlink("l1")),
    of(os.symlink, "", "l3"))
os.symlink(".", "s0")
for number in range(1, 45): os.symlink(f"s{number - 1}", f"s{number}")
say("chain", [of(os.access, f"s{number}", 0) for number in (38, 39, 40, 44)], of(os.stat, "s39/" * 3) != 0,
    of(os.stat, "s44"))
os.symlink("round", "round"); say("round", of(os.stat, "round"), of(os.open, "round/x", os.O_CREAT | os.O_RDWR),
    of(os.rmdir, "round"))
for _ in range(40): os.mkdir("d" * 200); os.chdir("d" * 200)
say("deep", len(of(os.getcwd)) > 8000, of(os.mkdir, "e"), of(os.stat, "../" * 39 + "../n") != 0)
say("bytes", of(os.stat, b"\\xff\\xfe"), of(os.mkdir, b"a\\nb"), raw(2, NONE, 0), raw(2, 0, 0), raw(2, FAR, 0), raw(2,
    KERNEL, 0))
""",
    "chains": """
chain = [select.epoll() for _ in range(8)]
read, write = os.pipe()
say("self", of(chain[0].register, chain[0].fileno(), 1))
say("depth", [of(above.register, below.fileno(), 1) for below, above in zip(chain, chain[1:])])
say("round", of(chain[0].register, chain[3].fileno(), 1), of(chain[0].register, read, 1))
wide = select.epoll(); others = [select.epoll() for _ in range(600)]; wide.register(read, 1)
asked = [of(one.register, wide.fileno(), 1) for one in others]; say("wide", asked.count(None), set(asked[500:]))
os.write(write, b"x"); say("told", sum(len(one.poll(0)) for one in others), len(wide.poll(0)), len(chain[3].poll(0)))
say("less", of(others[0].unregister, wide.fileno()), of(others[500].register, wide.fileno(), 1),
    of(others[501].register, wide.fileno(), 1))
levels = [[select.epoll() for _ in range(12)] for _ in range(4)]
other, _ = os.pipe()
for one in levels[0]: one.register(other, 1)
got = [of(above.register, below.fileno(), 1) for lower, upper in zip(levels, levels[1:]) for below in lower
    for above in upper]
say("levels", got[:144] == [None] * 144, "EINVAL" in got, got.count(None) < 400)
say("file", of(wide.register, os.open("/usr/bin/true", 0), 1), of(wide.register, 999, 1))
for one in others: one.close()
""",
    "in flight": """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
os.setgid(77); os.setuid(77)
def flood():
    a, b = socket.socketpair(); a.setblocking(False); sent = 0
    while True:
        try: a.sendmsg([b"x"], [(1, 1, array.array("i", [a.fileno(), b.fileno(), 0]))]); sent += 3
        except OSError as error: return errno.errorcode[error.errno], sent
say("limit", flood()[0]); say("again", flood()[0])
""",
    "futexes": """
def futex(where, op, value=0, *more): return raw(202, where, op, value, *(more or (0, 0, 0)))
memory[:8] = bytes(8)
bad = (1, 2, 3, NONE, FAR, KERNEL, 2**64 - 4, 0x7dfffffff000)
say("wait", [futex(where, 128, 1) for where in bad], [futex(at + off, 128, 1) for off in (0, 1, 2, 3)])
say("wake", [futex(where, 129, 1) for where in bad], futex(at, 129, 2**31 - 1), futex(at, 129, 2**32 - 1))
say("requeue", [raw(202, at, 128 | 4, 1, 1, where, 0) for where in (NONE + 1, FAR, at + 4)], raw(202, at, 128 | 3, -1,
    -1, at + 4, 0))
say("kinds", [futex(at, op) for op in (14, 99, 127, 0x1000)], raw(202, at, 128 | 9, 1, 0, 0, 0))
time = struct.pack("qq", 0, 10**9); say("times", raw(202, at, 128, 0, time), raw(202, at, 128, 0, struct.pack("qq",
    -1, 0)), raw(202, at, 128, 0, FAR))
say("robust", raw(273, at, 23), raw(273, FAR, 24), raw(273, 0, 24))
def dies(): raw(273, FAR, 24); raw(218, FAR); os._exit(3)
say("died", ends(dies))
""",
    "stacks of signals": """
def stack(where, size, flags=0): return raw(131, struct.pack("QiiQ", where % 2**64, flags, 0, size), 0)
say("sizes", stack(at, 0), stack(at, 2047), stack(at, 2048) in (0, "ENOMEM"), stack(at, 65536), stack(at, 65536, 4),
    stack(at, 65536, 99))
def on(where, size):
    def act():
        stack(where, size)
        class Action(ctypes.Structure): _fields_ = [("h", ctypes.c_void_p), ("f", ctypes.c_ulong), ("r",
            ctypes.c_void_p), ("m", ctypes.c_ulong)]
        signal.signal(signal.SIGUSR1, lambda *_: None)
        got = Action(); raw(13, 10, None, ctypes.byref(got), 8); got.f |= 0x08000000; raw(13, 10, ctypes.byref(got),
            None, 8)
        os.kill(os.getpid(), signal.SIGUSR1)
        signal.pthread_sigmask(signal.SIG_BLOCK, []); os._exit(5)
    return act
say("used", ends(on(at, 1 << 16)), ends(on(FAR, 1 << 16)), ends(on(KERNEL, 1 << 16)), ends(on(2**64 - 65536, 65536)),
    ends(on(0x10000, 1 << 16)))
def frame(): libc.syscall(15)
say("sigreturn", ends(frame) < 0)
""",
    "segments": """
SET_GS, SET_FS, GET_FS, GET_GS = 0x1001, 0x1002, 0x1003, 0x1004
say("set", [raw(158, SET_GS, where) for where in (KERNEL, 2**63, 1 << 47, 2**64 - 1)], [raw(158, SET_FS, where)
    for where in (KERNEL, 1 << 47)])
say("get", raw(158, GET_GS, FAR), raw(158, GET_GS, NONE), raw(158, 0x9999, 0))
say("own", raw(158, SET_GS, at), raw(158, GET_GS, at), struct.unpack("Q", memory[:8])[0] == at, raw(158, SET_GS, 0))
""",
    "numbers": """
X32 = 0x40000000
say("none", [raw(number) for number in (600, 4095, 2**31, 2**63, 2**64 - 1, 423)])
say("x32", [raw(X32 | number, 0, 0, 0) for number in (0, 1, 39, 59, 512, 520, 546)] == ["ENOSYS"] * 7)
say("modes", raw(157, 99, 0), raw(157, 38, 2, 0, 0, 0), raw(317, 9, 0, 0), raw(317, 1, 1, 0), raw(317, 1, 0, FAR))
""",
}


@pytest.fixture
def pods(daemon: Daemon, tmp_path: Path) -> Iterator[Daemon]:
    with leaves_nothing(daemon, tmp_path):
        yield daemon


def said(pods: Daemon, directory: Path, kind: str, program: str) -> list[str]:
    (directory / "data").mkdir(parents=True)
    (directory / "program.py").write_text(START + program)
    given = ("-v", f"{directory}/data:/data", "-v", f"{directory}/program.py:/p.py:ro")
    words = ("run", "--rm", "--sandbox", kind, "--network", "none", *DEBIAN, *given, "busybox", PYTHON, "-I", "/p.py")
    return pods.command(*words, check=True).stdout.splitlines()


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_call_gets_what_it_gets_under_runc(pods: Daemon, tmp_path: Path, name: str) -> None:
    """Errors and values, and how those end that nothing can help."""
    needs_path(PYTHON)
    linux, here = (said(pods, tmp_path / kind, kind, PROGRAMS[name]) for kind in ("runc", "appkernel"))
    assert here == linux and linux
