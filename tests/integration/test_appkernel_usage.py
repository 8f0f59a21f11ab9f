"""What processes have used: getrusage(2), wait4(2), waitid(2), and /proc/PID as they tell it on Linux."""

from __future__ import annotations

import pytest
from tests.integration.test_appkernel import PYTHON, _platform, alike
from tests.integration.test_appkernel_errors import START

pytestmark = pytest.mark.root
__all__ = ["_platform"]

HELPERS = """
import mmap, resource
MIB = 1 << 20
def touch(mib, kept=[]):
    'Have so much memory, and none of it in huge pages.'
    memory = mmap.mmap(-1, mib * MIB); memory.madvise(15)
    for at in range(0, mib * MIB, 4096): memory[at] = 1
    memory.close()
def burn(seconds):
    start = time.process_time()
    while time.process_time() - start < seconds: pass
def about(value, low, high): return low <= value < high or value
def own(): return resource.getrusage(resource.RUSAGE_SELF)
def waited(work, *program):
    pid = os.fork()
    if pid == 0:
        work()
        if program: os.execv(program[0], program)
        os._exit(0)
    return os.wait4(pid, 0)[2]
def status(key, of="self"):
    return int([l for l in open(f"/proc/{of}/status") if l.startswith(key)][0].split()[1]) << 10
"""

PROGRAMS = {
    "peaks": """
if os.fork(): os._exit(os.waitstatus_to_exitcode(os.wait()[1]))  # who has started it counts for the first process
before = own(); touch(64); after = own()
print(about(after.ru_maxrss - before.ru_maxrss, 60 << 10, 70 << 10), about(after.ru_minflt - before.ru_minflt, 16000,
    20000))
print(own().ru_maxrss == after.ru_maxrss, resource.getrusage(resource.RUSAGE_THREAD).ru_maxrss == after.ru_maxrss)
print(about(status("VmHWM") - after.ru_maxrss * 1024, 0, 1), status("VmRSS") < status("VmHWM") - 50 * MIB)
print(about(own().ru_minflt - after.ru_minflt, 0, 1000), after.ru_majflt < 1000)
""",
    "children": """
of = lambda: resource.getrusage(resource.RUSAGE_CHILDREN)
print(of().ru_maxrss, of().ru_minflt, of().ru_utime)
large = waited(lambda: touch(64))
print(about(large.ru_maxrss, 64 << 10, 120 << 10), large.ru_minflt > 16000, of().ru_maxrss == large.ru_maxrss)
print(of().ru_minflt == large.ru_minflt, of().ru_utime == large.ru_utime)
small = waited(lambda: None)
print(small.ru_maxrss < 60 << 10, of().ru_maxrss == large.ru_maxrss,
    of().ru_minflt == large.ru_minflt + small.ru_minflt)
grand = waited(lambda: waited(lambda: (touch(96), burn(0.2))))
print(about(grand.ru_maxrss, 96 << 10, 150 << 10), grand.ru_minflt > 24000, about(grand.ru_utime + grand.ru_stime,
    0.2, 5))
""",
    "programs": """
first = waited(lambda: touch(64), "/bin/true")
print(about(first.ru_maxrss, 64 << 10, 120 << 10), first.ru_minflt > 16000)
timed = waited(lambda: burn(0.3), "/bin/sh", "-c", "times >/dev/null; true")
print(about(timed.ru_utime + timed.ru_stime, 0.3, 3))
def twice(): burn(0.3); os.execv(sys.executable, [sys.executable, "-Ic",
    "import time; exit(time.process_time() < 0.3)"])
pid = os.fork()
if pid == 0: twice()
print(os.waitpid(pid, 0)[1])
""",
    "waitid": """
room, info = ctypes.create_string_buffer(144), ctypes.create_string_buffer(128)
pid = os.fork()
if pid == 0: touch(64); os._exit(0)
print(of(247, 1, pid, info, 4, room), about(struct.unpack_from("q", room, 32)[0], 64 << 10, 120 << 10))
pid = os.fork()
if pid == 0: touch(32); os.kill(os.getpid(), signal.SIGSTOP); os._exit(0)
_, how, used = os.wait4(pid, os.WUNTRACED)
print(os.WIFSTOPPED(how), about(used.ru_maxrss, 32 << 10, 80 << 10), used.ru_utime + used.ru_stime > 0)
os.kill(pid, signal.SIGCONT); print(os.wait4(pid, 0)[1])
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_as_on_linux(name: str) -> None:
    """Peaks of memory, page faults, processor time; of children, and of what they were before execve(2)."""
    alike(PYTHON, "-I", "-c", START + HELPERS + PROGRAMS[name])
