"""Filters of system calls in the application kernel: what programs set for themselves does what it does on Linux."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.integration.test_appkernel import PYTHON, _platform, alike

pytestmark = pytest.mark.root
__all__ = ["_platform"]

TOOLS = """
import ctypes, os, random, signal, struct, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
ERRNO, TRAP, LOG, TRACE, NOTIF = 0x50000, 0x30000, 0x7ffc0000, 0x7ff00000, 0x7fc00000
ALLOW, PROCESS, THREAD = 0x7fff0000, 0x80000000, 0
GETPPID, GETPGID = 110, 121
def call(number, *args):
    ctypes.set_errno(0)
    got = libc.syscall(number, *(ctypes.c_ulong(one) if isinstance(one, int) else one for one in args))
    return -ctypes.get_errno() if got == -1 else got
def program(*codes): return b"".join(struct.pack("HBBI", *code) for code in codes)
def fprog(data):
    kept = ctypes.create_string_buffer(data, len(data) or 1)
    one = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(data) // 8, ctypes.addressof(kept)), 16)
    one.kept = kept
    return one
def install(data, flags=0): return call(317, 1, flags, fprog(data))
def on(number, verdict, rest=ALLOW):
    'A filter that answers one call with this verdict.'
    return program((0x20, 0, 0, 0), (0x15, 0, 1, number), (6, 0, 0, verdict), (6, 0, 0, rest))
def nnp(): return call(157, 38, 1, 0, 0, 0)
def status(*names):
    return [l.split()[1] for l in open("/proc/thread-self/status") if l.split(":")[0] in names]
def child(work):
    'What the exit status of a child is that does this.'
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try: work()
        except BaseException as error: print(repr(error))
        sys.stdout.flush(); os._exit(0)
    return os.waitpid(pid, 0)[1] & ~0x80
"""

PROGRAMS = {
    "verdicts": """
nnp()
for verdict in (ERRNO, ERRNO | 5, ERRNO | 4095, ERRNO | 0xffff, TRACE, NOTIF, LOG, ALLOW):
    def one():
        assert install(on(GETPPID, verdict)) == 0
        got = call(GETPPID)
        print(hex(verdict), "as before" if got == os.getppid() and got > 0 else got)
    print(child(one))
for verdict in (PROCESS, THREAD, TRAP | 7, 0x12340000, 0x7ffe0000):
    print(child(lambda: (install(on(GETPPID, verdict)), call(GETPPID))))
""",
    "trap": """
nnp()
keep = []
Handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
def handler(number, info, context):
    raw = ctypes.string_at(info, 40)
    where = struct.unpack_from("Q", raw, 16)[0]
    print(number, struct.unpack_from("iii", raw), struct.unpack_from("iI", raw, 24), where > 0)
    registers = (ctypes.c_ulong * 23).from_address(context + 40)
    print("rax", registers[13], "at", registers[16] == where)
    registers[13] = 4242
keep.append(Handler(handler))
class Action(ctypes.Structure):
    _fields_ = [("handler", Handler), ("mask", ctypes.c_ulong * 16), ("flags", ctypes.c_int), ("to", ctypes.c_void_p)]
libc.sigaction(signal.SIGSYS, ctypes.byref(Action(keep[0], (ctypes.c_ulong * 16)(), 4)), None)
print(install(on(GETPPID, TRAP | 99)), [call(GETPPID) for _ in range(3)])
for _ in range(100): call(39)
print(call(GETPPID))
""",
    "refusals": """
good, user = on(GETPPID, ERRNO), os.getuid()
def plain():
    print(call(317, 9, 0, 0), call(317, 0, 1, 0), call(317, 0, 0, fprog(good)), call(317, 1, 1 << 20, fprog(good)))
    print(call(317, 1, 0, 8), call(157, 22, 3, 0), call(157, 21, 0), install(b""), install(good * 1025))
    os.setresuid(99, 99, 99)
    print(install(good), call(157, 22, 2, fprog(good)), nnp(), call(157, 22, 2, fprog(good)), call(157, 21))
    print(call(317, 0, 0, 0), call(157, 22, 1, 0), status("NoNewPrivs", "Seccomp", "Seccomp_filters"))
print(child(plain))
for action in (0, PROCESS, TRAP, ERRNO, TRACE, LOG, ALLOW, 1, 0x7ffe0000):
    print(hex(action), call(317, 2, 0, ctypes.byref(ctypes.c_uint32(action))), end=" ")
print(call(317, 2, 1, ctypes.byref(ctypes.c_uint32(0))), call(317, 2, 0, 8))
def long():
    nnp(); data = program(*[(6, 0, 0, ALLOW)] * 4096); print(install(data), [install(data) for _ in range(9)][-1])
print(child(long))
""",
    "strict": """
def strict(): call(317, 0, 0, 0); os.write(1, b"written\\n"); call(60, 7)
print(child(strict) >> 8)
def other(): call(157, 22, 1, 0); call(39)
print(child(other))
""",
    "inherited": """
nnp()
def stacked():
    print(install(on(GETPPID, ERRNO | 3)), install(on(GETPGID, ERRNO | 4)), install(on(GETPPID, ERRNO | 5)))
    print(call(GETPPID), call(GETPGID, 0), status("Seccomp", "Seccomp_filters"))
    print(child(lambda: print(call(GETPPID), status("Seccomp_filters"))))
    install(on(GETPPID, ALLOW)); print(call(GETPPID))
    os.execv(sys.executable, [sys.executable, "-I", "-c", "import ctypes; c = ctypes.CDLL(None, use_errno=True);"
        "print(c.syscall(110), ctypes.get_errno());"
        "print([l.split()[1] for l in open('/proc/self/status') if 'Secc' in l])"])
print(child(stacked))
""",
    "threads": """
nnp()
def run(work):
    thread = threading.Thread(target=work); thread.start(); return thread
def one_thread():
    results = []
    run(lambda: results.append((install(on(GETPPID, ERRNO | 6)), call(GETPPID)))).join()
    print(results, call(GETPPID) == os.getppid(), status("Seccomp"))
print(child(one_thread))
def together():
    go, results = threading.Event(), []
    def wait(): go.wait(); results.append(call(GETPPID))
    threads = [run(wait) for _ in range(3)]
    print(install(on(GETPPID, ERRNO | 8), 1)); go.set()
    for thread in threads: thread.join()
    print(results, call(GETPPID))
print(child(together))
def apart():
    ready, go, tids = threading.Event(), threading.Event(), []
    def other(): install(on(GETPGID, ERRNO | 1)); tids.append(threading.get_native_id()); ready.set(); go.wait()
    thread = run(other); ready.wait()
    print(install(on(GETPPID, ERRNO), 1) == tids[0], install(on(GETPPID, ERRNO), 17), call(GETPPID) > 0)
    go.set(); thread.join()
print(child(apart))
def kill_one():
    r, w = os.pipe()
    def last(): install(on(GETPPID, THREAD)); os.write(w, b"x"); call(GETPPID); os.write(w, b"never")
    thread = threading.Thread(target=last, daemon=True); thread.start()
    print(os.read(r, 1))
    while len(os.listdir("/proc/self/task")) > 1: os.sched_yield()
    print("the others go on"); os._exit(5)
print(child(kill_one))
""",
    "arguments": """
nnp()
def looks():
    'getpgid of an argument whose halves are so and so; and where the call comes from is known.'
    low, high = 16, 20
    print(install(program((0x20, 0, 0, 0), (0x15, 0, 5, GETPGID), (0x20, 0, 0, low), (0x35, 0, 3, 1 << 20),
        (0x20, 0, 0, high), (0x54, 0, 0, 0xff), (0x16, 0, 0, 0), (6, 0, 0, ALLOW))))
    print([call(GETPGID, value) for value in (2**22 - 1, 0)])
    print(install(program((0x20, 0, 0, 0), (0x15, 0, 4, GETPPID), (0x20, 0, 0, 12), (0x15, 2, 0, 0),
        (6, 0, 0, ERRNO | 21), (6, 0, 0, ALLOW), (6, 0, 0, ERRNO | 22))))
    print(call(GETPPID))
print(child(looks))
""",
    "by chance": """
# Programs made by chance: which are taken, and what they say of a few calls.
nnp()
chance = random.Random(7)
CODES = [0x20, 0x20, 0x20, 0x80, 0x81, 0, 1, 0x60, 0x61, 2, 3, 4, 0x0c, 0x14, 0x1c, 0x24, 0x2c, 0x34, 0x3c, 0x44,
    0x4c, 0x54, 0x5c, 0x64, 0x6c, 0x74, 0x7c, 0x84, 0x94, 0xa4, 0xac, 5, 0x15, 0x1d, 0x25, 0x2d, 0x35, 0x3d, 0x45, 0x4d,
    7, 0x87, 0x28, 0x40]
NUMBERS = (0, 1, 2, 4, 16, 20, 31, 40, 60, 2**31)
def body():
    codes = [(chance.choice(CODES), chance.randrange(4), chance.randrange(4), chance.choice(NUMBERS))
        for _ in range(chance.randrange(1, 14))]
    # At the end: an errno of what is in the accumulator, but for other calls than the one asked for.
    end = [(0x54, 0, 0, 0xff), (0x44, 0, 0, ERRNO), (0x16, 0, 0, 0)]
    return program((0x20, 0, 0, 0), (0x15, 1, 0, GETPGID), (6, 0, 0, ALLOW), *codes, *end)
def ask(data):
    said = [install(data), *[call(GETPGID, n) for n in (2**22 + 5, 2**33 + 2**22 + 16, 0xdeadbeef)]]
    sys.stdout.write(f"{said}\\n")
for _ in range(60):
    data = body()
    print(child(lambda: ask(data)))
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_as_on_linux(name: str) -> None:
    """What is taken and refused, what calls answer, how processes and threads end."""
    if not Path(PYTHON).exists():
        pytest.skip(f"{PYTHON} is not installed")
    alike(PYTHON, "-I", "-c", TOOLS + PROGRAMS[name])
