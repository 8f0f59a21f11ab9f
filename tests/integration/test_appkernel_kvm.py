"""Programs on the kvm platform, which must see what they see on any other: wherever KVM works, however slowly."""

from __future__ import annotations

import subprocess

import pytest

from framework.appkernels import KERNEL, PYTHON

pytestmark = pytest.mark.root  # the kernel confines itself

FORKS = """
import os
r, w = os.pipe()
value = [1] * 5000
for n in range(5):
    pid = os.fork()
    if pid == 0:
        value[n] = 100 + n
        os.write(w, bytes([value[n], sum(value[:n])]))
        os._exit(n)
    assert os.waitpid(pid, 0)[1] == n << 8 and value[n] == 1
print(list(os.read(r, 100)))
"""
THREADS = """
import threading
total, lock = [0], threading.Lock()
def work():
    for _ in range(50):
        with lock: total[0] += 1
threads = [threading.Thread(target=work) for _ in range(4)]
for t in threads: t.start()
for t in threads: t.join()
print(total[0], threading.Event().wait(0.01))
"""
SIGNALS = """
import os, signal, time
seen = []
signal.signal(signal.SIGALRM, lambda *_: seen.append(sum(x * 0.5 for x in range(4))))
signal.setitimer(signal.ITIMER_REAL, 0.02)
while not seen: pass
pid = os.fork()
if pid == 0:
    while True: pass
os.kill(pid, signal.SIGKILL)
print(seen, os.waitpid(pid, 0)[1])
"""
MAPS = """
import mmap, os
shared = mmap.mmap(-1, 8192)
pid = os.fork()
if pid == 0:
    shared[4096:4099] = b"abc"
    os._exit(0)
os.waitpid(pid, 0)
fd = os.open("/tmp/drupe-kvm-file", os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 4096)
file = mmap.mmap(fd, 4096)
file[:3] = b"xyz"
private = mmap.mmap(fd, 4096, flags=mmap.MAP_PRIVATE)
private[:1] = b"P"
os.unlink("/tmp/drupe-kvm-file")
print(shared[4096:4099], os.pread(fd, 3, 0), private[:3])
"""
CASES = {
    "forks": (FORKS, "[100, 0, 101, 1, 102, 2, 103, 3, 104, 4]"),
    "threads": (THREADS, "200 False"),
    "signals": (SIGNALS, "[3.0] 9"),
    "maps": (MAPS, "b'abc' b'xyz' b'Pyz'"),
}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [str(KERNEL), "run", "--root", "/", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module", autouse=True)
def _platform() -> None:
    if not KERNEL.exists():
        pytest.skip("the application kernel is not built (scripts/build-native.sh appkernel)")
    probed = subprocess.run([KERNEL, "probe-kvm"], capture_output=True, text=True, timeout=60, check=False)
    if probed.returncode != 0:
        pytest.skip(f"KVM does not work here: {probed.stderr.strip()}")


@pytest.mark.parametrize("case", CASES)
def test_programs_see_what_they_see_on_linux(case: str) -> None:
    program, expected = CASES[case]
    native = subprocess.run(
        [PYTHON, "-I", "-S", "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert native.stdout.strip() == expected, native.stderr
    done = run("--platform", "kvm", "--", PYTHON, "-I", "-S", "-c", program)
    assert (done.stdout.strip(), done.returncode) == (expected, 0), done.stderr


def test_what_a_program_does_wrong_ends_it_and_nobody_else() -> None:
    script = "sh -c 'kill -SEGV $$'; echo $?; sh -c 'ulimit -c 0; exec false'; echo $?; echo on | cat"
    done = run("--platform", "kvm", "--", "/bin/bash", "-c", script)
    assert (done.stdout.split(), done.returncode) == (["139", "1", "on"], 0), done.stderr


def test_a_platform_that_is_not_there_is_refused() -> None:
    done = run("--platform", "other", "--", "/bin/true")
    assert (done.returncode, done.stderr) == (1, "drupe-appkernel: no platform other (trap, kvm)\n")
