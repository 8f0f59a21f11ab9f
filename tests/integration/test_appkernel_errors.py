"""Errors and corners of calls that suites by others ask for: what programs see here is what they see on Linux."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.integration.test_appkernel import PYTHON, _platform, alike, here

pytestmark = pytest.mark.root
__all__ = ["_platform"]

START = """
import ctypes, fcntl, os, signal, struct, sys, tempfile, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def of(number, *args):
    ctypes.set_errno(0)
    value = libc.syscall(number, *[ctypes.c_ulong(a % 2**64) if isinstance(a, int) else a for a in args])
    return ctypes.get_errno() or value
def error(call, *args):
    try: return call(*args)
    except OSError as error: return error.errno
def child(work):
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        try: os.write(w, repr(work()).encode())
        finally: os._exit(0)
    os.close(w); os.waitpid(pid, 0)
    return os.read(r, 4096).decode()
"""

PROGRAMS = {
    "capabilities": """
PRCTL, CHOWN, RAW = 157, 0, 13
def sets():
    lines = dict(line.split(":") for line in open("/proc/self/status") if line.startswith("Cap"))
    return [int(lines[f"Cap{kind}"], 16) >> RAW & 1 for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")]
def shown():
    return os.popen("grep -E '^Cap(Prm|Eff|Amb)' /proc/self/status | cut -c 17-21").read().split()
def set_caps(effective, permitted, inheritable):
    words = [v >> s & 0xffffffff for s in (0, 32) for v in (effective, permitted, inheritable)]
    return of(126, struct.pack("Ii", 0x20080522, 0), struct.pack("6I", *words))
def keeps(keep):
    kept = of(PRCTL, 8, keep), of(PRCTL, 7)
    os.setresuid(1000, 1000, 1000)
    return kept, sets(), shown()
def ambient():
    of(PRCTL, 8, 1); os.setresuid(1000, 1000, 1000)
    early = of(PRCTL, 47, 2, RAW, 0, 0)
    caps = set_caps(1 << RAW, 1 << RAW, 1 << RAW)
    return early, caps, of(PRCTL, 47, 2, RAW, 0, 0), of(PRCTL, 47, 1, RAW, 0, 0), sets(), shown()
def secure():
    return of(PRCTL, 27), of(PRCTL, 28, 3), of(PRCTL, 28, 0), of(PRCTL, 27), shown(), of(PRCTL, 28, 1 << 9)
print(child(lambda: keeps(0)), child(lambda: keeps(1)), child(ambient), child(secure), sep="\\n")
print(of(PRCTL, 8, 2), of(PRCTL, 24, 99), of(PRCTL, 47, 9, 0, 0, 0), of(PRCTL, 38, 1, 1, 0, 0), of(PRCTL, 4, 7))
room = ctypes.create_string_buffer(24)
print([of(125, struct.pack("Ii", version, 0), room) for version in (0x19980330, 0x20071026, 0x20080522, 5)])
print(of(125, struct.pack("Ii", 0x20080522, -1), room))
print(of(PRCTL, 29, 70000), of(PRCTL, 30), of(PRCTL, 29, 0), of(PRCTL, 30))
""",
    "set-id": """
import shutil
with tempfile.TemporaryDirectory(dir="/srv") as home:
    os.chmod(home, 0o755)
    copy = shutil.copy(os.path.realpath(sys.executable), home + "/python"); os.chmod(copy, 0o4755)
    ask = "import ctypes, os; print(os.getresuid(), ctypes.CDLL(None).getauxval(23), ctypes.CDLL(None).getauxval(11))"
    def run():
        os.setresgid(1000, 1000, 1000); os.setresuid(1000, 1000, 1000)
        return os.popen(f"{copy} -I -c '{ask}'").read(), os.popen(f"{sys.executable} -I -c '{ask}'").read()
    print(child(run))
    print(child(lambda: (of(157, 38, 1, 0, 0, 0), run())))
""",
    "busy": """
import shutil, subprocess
with tempfile.TemporaryDirectory(dir="/var/tmp") as home:
    copy = shutil.copy("/bin/sleep", home + "/sleep")
    with open(copy, "r+b"): print(error(subprocess.call, [copy, "0"]))
    running = subprocess.Popen([copy, "60"])
    print(error(open, copy, "r+b"), error(os.truncate, copy, 1), os.chmod(copy, 0o700))
    running.kill(); running.wait(); print(os.truncate(copy, 1))
program = os.memfd_create("program"); os.write(program, open("/bin/true", "rb").read())
print(subprocess.call([f"/proc/self/fd/{program}"], pass_fds=[program]))
""",
    "places": """
import socket, select
place = os.open("/tmp", os.O_PATH); file = os.open("/etc/passwd", os.O_PATH)
print(of(43, file, 0, 0), of(0, file, 0, 1), of(8, file, 0, 0), of(16, file, 0x5401, 0), of(91, file, 0o644))
print(of(9, 0, 4096, 1, 1, file, 0), of(72, file, 4, 0), of(72, file, 3, 0) & os.O_PATH > 0, os.fstat(file).st_size > 0)
print(os.fchdir(place), os.getcwd(), error(os.listdir, place))
print(os.stat("passwd", dir_fd=os.open("/etc", os.O_PATH)).st_uid)
epoll = select.epoll(); print(error(epoll.register, file, 1), os.dup(file) > file, os.close(file))
""",
    "deadlock": """
one, two = (tempfile.NamedTemporaryFile() for _ in range(2))
fcntl.lockf(one, fcntl.LOCK_EX)
r, w = os.pipe()
pid = os.fork()
if pid == 0:
    fcntl.lockf(two, fcntl.LOCK_EX); os.write(w, b"x")
    fcntl.lockf(one, fcntl.LOCK_EX); os._exit(0)
os.read(r, 1); state = ""
while state != "S": state = open(f"/proc/{pid}/stat").read().rpartition(") ")[2][0]
while (got := error(fcntl.lockf, two, fcntl.LOCK_EX | fcntl.LOCK_NB)) != 11: print(got)
print(error(fcntl.lockf, two, fcntl.LOCK_EX)); fcntl.lockf(one, fcntl.LOCK_UN); print(os.waitpid(pid, 0)[1])
print(fcntl.lockf(two, fcntl.LOCK_EX))
if os.fork() == 0: os.execv("/bin/sh", ["sh", "-c", "exit 0"])
print(os.wait()[1])
""",
    "processor timers": """
got = []
signal.signal(signal.SIGPROF, lambda *_: got.append("prof"))
signal.signal(signal.SIGVTALRM, lambda *_: got.append("virtual"))
signal.setitimer(signal.ITIMER_PROF, 0.02, 0.02); signal.setitimer(signal.ITIMER_VIRTUAL, 0.02)
while got.count("prof") < 3 or "virtual" not in got: pass
left, interval = signal.setitimer(signal.ITIMER_PROF, 0)
print(0 < left <= 0.02, interval, signal.getitimer(signal.ITIMER_PROF), got.count("virtual"))
print(signal.getitimer(signal.ITIMER_VIRTUAL), error(signal.setitimer, 7, 1))
""",
    "asleep": """
lock = threading.Lock(); lock.acquire()
thread = threading.Thread(target=lock.acquire, daemon=True); thread.start()
def state(task): return open(f"/proc/self/task/{task}/stat").read().rpartition(") ")[2][0]
while state(thread.native_id) != "S": pass
print(state(threading.get_native_id()))
""",
    "odds": """
import socket
print(of(121, -5), of(124, -5), of(109, -5, 0), of(204, -1, 8, ctypes.create_string_buffer(8)))
print(of(229, -1, 0), of(228, 99, 0), of(322, -100, b"/bin/true", 0, 0, 0x8000))
print(of(435, ctypes.create_string_buffer(bytes(95) + b"1", 96), 96), of(435, 0, 8))
print(of(56, 0x20200, 0, 0, 0, 0), of(221, 1, 0, 0, 9), of(187, os.open("/dev/zero", 0), 0, 9), of(158, 0x1012, 0))
how = ctypes.create_string_buffer(64); how[40] = 1
print(of(437, -100, b"/etc/passwd", how, 64), of(437, -100, b"/etc/passwd", struct.pack("QQQ", 1 << 31, 0, 0), 24))
print(of(437, -100, b"/etc/passwd", struct.pack("QQQ", 0, 0o644, 0), 24))
print(of(151, 0), of(151, 9), of(150, 4096 * 99, 4096))
fd = os.pipe()[1]; print(of(72, fd, 1031, 2**32 - 1), of(72, fd, 10, 99), of(72, fd, 8, 2**21 + 99))
fcntl.fcntl(fd, 15, struct.pack("ii", 1, os.getpid())); got = struct.unpack("ii", fcntl.fcntl(fd, 16, bytes(8)))
print(got == (1, os.getpid()), fcntl.fcntl(fd, fcntl.F_GETOWN) == os.getpid())
print(error(fcntl.fcntl, fd, 15, struct.pack("ii", 7, 1)))
signal.pidfd_send_signal(os.open("/proc/self", 0), 0); print(error(signal.pidfd_send_signal, os.open("/tmp", 0), 0))
sock = socket.socket()
print(error(sock.getsockopt, 500, 1), error(sock.getsockopt, 17, 1), of(51, sock.fileno(), 0, b"\\x10" + bytes(3)))
print(of(135, 0xffffffff), of(135, 0x40000), of(135, 0), of(251, 1, 0, 2 << 13 | 3), of(252, 1, 0), of(251, 9, 0, 0))
print(of(452, -100, b"/nowhere", 0, 0x100), of(452, -100, b"/tmp", 0o1777, 1), of(272, 0x400), of(272, 1))
print(of(9, 0, 4096, 3, 3 | 0x20, -1, 0), open("/proc/sys/kernel/domainname").read())
""",
    "signals": """
done = []
thread = threading.Thread(target=lambda: (done.append(signal.sigwait([signal.SIGUSR1]))))
signal.signal(signal.SIGUSR1, lambda *_: done.append("handler"))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
thread.start(); os.kill(thread.native_id, signal.SIGUSR1); thread.join(); print(done)
pid = os.fork()
if pid == 0:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    print(signal.sigwait([signal.SIGUSR1]), done, flush=True); os._exit(0)
state = ""
while state != "S": state = open(f"/proc/{pid}/stat").read().rpartition(") ")[2][0]
os.kill(pid, signal.SIGUSR1); print(os.waitpid(pid, 0)[1])
other = struct.pack("iiiiq", signal.SIGUSR2, 0, -1, 0, 0) + bytes(104)
print(of(424, os.pidfd_open(os.getpid()), signal.SIGUSR1, other, 0))
child = os.fork()
if child == 0: signal.pause()
waiting = of(434, child, os.O_NONBLOCK); print(error(os.waitid, os.P_PIDFD, waiting, os.WEXITED))
os.kill(child, 9); os.waitpid(child, 0)
""",
    "never waited for": """
import socket
one, two = socket.socketpair()
print(error(one.recv, 1, socket.MSG_DONTWAIT))
header = struct.pack("QiiQQQQi", 0, 0, 0, 0, 2000, 0, 0, 0) + bytes(4)
print(of(47, one.fileno(), header, 0), of(47, one.fileno(), struct.pack("QiiQQQQi", 16, -1, *[0] * 6), 0))
print(of(299, one.fileno(), 0, 1, 0, struct.pack("qq", -1, 0)))
queue, room = of(68, 0, 0o600), ctypes.create_string_buffer(64)
of(69, queue, struct.pack("q", 5) + b"abc", 3, 0)
print(of(70, queue, room, 9, 0, 0o44000), room.raw[8:11], of(70, queue, room, 9, 1, 0o44000))
print(of(70, queue, room, 9, 0, 0o40000))
print(of(70, queue, room, 9, 0, 0o4000), of(71, queue, 0, 0))
""",
    "scheduling": """
attributes = ctypes.create_string_buffer(48)
print(of(315, 0, attributes, 48, 0), struct.unpack_from("II", attributes))
print(of(315, 0, attributes, 40, 0), of(315, 0, 0, 48, 0))
print(of(314, 0, struct.pack("IIQiIQQQ", 48, 3, *[0] * 6), 0), of(145, 0), of(314, 0, attributes, 1), of(143, 0, 0))
def stranger():
    os.seteuid(1000)
    return error(os.sched_setaffinity, os.getppid(), [0]), of(142, os.getppid(), bytes(4))
print(child(stranger))
""",
    "corners of input and output": """
import socket
SPLICE, VMSPLICE, SYNC = 275, 278, 277
file = tempfile.TemporaryFile(buffering=0); room = ctypes.create_string_buffer(64)
import mmap
memory = mmap.mmap(-1, 200_704); at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
print(of(20, file.fileno(), struct.pack("6Q", at, 64, 16, 64, at, 64), 3), file.tell(), os.fstat(file.fileno()).st_size)
r, w = os.pipe()
print(of(VMSPLICE, w, struct.pack("2Q", at, 200_000), 1, 0), of(VMSPLICE, w, struct.pack("2Q", at, 9), 1, 2))
print(len(os.read(r, 200_000)), of(VMSPLICE, w, struct.pack("2Q", 16, 9), 1, 0))
appended = os.open("/tmp", os.O_TMPFILE | os.O_RDWR | os.O_APPEND, 0o600); os.write(w, b"bytes")
event, directory = of(290, 0, 0), os.open("/tmp", os.O_RDONLY)
print([of(SPLICE, r, 0, fd, 0, 5, 0) for fd in (appended, event)])
print([of(SPLICE, fd, 0, w, 0, 5, 0) for fd in (directory, event)])
print([of(SYNC, file.fileno(), *more) for more in ((0, 1, 7), (-1, 1, 1), (0, -1, 2), (0, 1, 8))], of(SYNC, r, 0, 1, 4))
print(of(17, w, room, 1, 0), of(18, r, room, 1, 0), of(61, -2**31, 0, 0, 0))
path = tempfile.mktemp(); os.mkfifo(path); print(error(os.setxattr, path, "user.x", b"1")); os.unlink(path)
one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); two.send(b"x")
print(of(45, one.fileno(), room, 1, 0, room, struct.pack("i", -1)))
print(of(53, 2, 1, 1, room), of(53, 2, 1, 0, room), of(53, 2, 75, 0, room))
os.mkdir(path); script = path + "/named.script"
open(script, "w").write("#!/bin/sh\\ncat /proc/$$/comm\\n"); os.chmod(script, 0o755)
os.symlink("/bin/cat", path + "/other"); print(os.popen(f"{script}; {path}/other /proc/self/comm").read())
""",
    "processor clocks": """
def make(clock, how=0, number=signal.SIGUSR1, thread=0):
    timer, event = ctypes.c_int(), struct.pack("Qiii", 7, number, how, thread) + bytes(48)
    return of(222, clock, event, ctypes.byref(timer)), timer.value
def spec(interval, first): return struct.pack("qqqq", 0, int(interval * 1e9), 0, int(first * 1e9))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGALRM])
def burn(until, clock):
    while clock() < until: pass
for clock, now in ((2, time.process_time), (3, time.thread_time)):
    made, timer = make(clock); old = ctypes.create_string_buffer(32)
    print(made, of(223, timer, 0, None, None), of(223, timer, 0, spec(0, 0.05), old), old.raw == bytes(32))
    print(signal.sigtimedwait([signal.SIGUSR1], 0), of(224, timer, old), 0 < struct.unpack("4q", old)[3] <= 5e7)
    start = now(); burn(start + 0.03, now); burn(start + 0.2, now)
    print(signal.sigtimedwait([signal.SIGUSR1], 30).si_code, of(224, timer, old), old.raw == bytes(32), of(226, timer))
print(make(1, 2)[0], make(1, 3)[0], make(-1)[0], make((~os.getppid() << 3) | 2)[0] != 0)
def other(): mine.append((time.thread_time(), time.process_time()))
mine = []; burn(time.process_time() + 0.1, time.process_time)
thread = threading.Thread(target=other); thread.start(); thread.join()
print(mine[0][0] < 0.05, mine[0][1] >= 0.1)
""",
    "users of files": """
FSUID, FSGID = 122, 123
place = tempfile.mkdtemp(); os.chmod(place, 0o777); secret = place + "/secret"
open(secret, "w").close(); os.chmod(secret, 0o600)
def seen(): return [l.split()[1:] for l in open("/proc/self/status") if l[:3] in ("Uid", "Gid")]
def rights(): return int([l for l in open("/proc/self/status") if l.startswith("CapEff")][0].split()[1], 16) & 0x1f
def apart():
    changed = of(FSUID, 1000), of(FSUID, -1), of(FSGID, 1001), of(FSGID, -1), seen(), rights()
    os.close(os.open(place + "/made", os.O_CREAT)); made = os.stat(place + "/made")
    kept = error(os.open, secret, os.O_RDONLY), made.st_uid, made.st_gid, os.geteuid(), os.access(secret, os.R_OK)
    return changed, kept, of(FSUID, 0), rights() == before, error(os.open, secret, os.O_RDONLY) != 13
def user():
    os.setresgid(5, 6, 7); os.setresuid(1000, 1001, 1002)
    return [of(FSUID, n) for n in (1000, 1002, 99, 0, -1)], [of(FSGID, n) for n in (5, 7, 99, -1)], seen()
def back():
    of(FSUID, 1000); os.seteuid(0)
    return seen(), of(FSUID, 5), child(lambda: os.popen("grep Uid /proc/self/status").read())
before = rights(); print(child(apart)); print(child(user)); print(child(back))
import shutil; shutil.rmtree(place)
""",
    "scores": """
path = "/proc/self/oom_score_adj"
def put(value):
    with open(path, "w", buffering=1) as file: file.write(f"{value}\\n")
def user(): os.setresuid(1000, 1000, 1000); return error(put, -5) == 13
print(put(7), open(path).read(), error(put, 1001), error(put, "x"), child(user), child(lambda: open(path).read()))
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_as_on_linux(name: str) -> None:
    """Values and errors."""
    if not Path(PYTHON).exists():
        pytest.skip(f"{PYTHON} is not installed")
    alike(PYTHON, "-I", "-c", START + PROGRAMS[name])


def test_what_no_container_may() -> None:
    """EPERM as in a container without the right, whoever asks; never that the call is not there."""
    numbers = [103, 155, 163, 165, 166, 167, 168, 169, 171, 172, 175, 227, 300, 308]
    ask = f"print([of(n, 0, 0, 0, 0, 0) for n in {numbers}], of(272, 0x20000), of(56, 0x10000000, 0, 0, 0, 0))"
    assert here(PYTHON, "-I", "-c", START + ask).stdout == f"{[1] * len(numbers)} 1 1\n"
