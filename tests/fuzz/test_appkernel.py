"""The application kernel under nonsense: calls, programs, images, and the memory that it shares with its stubs. Seconds
in the suite, as long as you like by `make fuzz-appkernel MINUTES=30`, then with seeds that nobody has seen. What a
failure was is kept in build/fuzz (tests/framework/fuzzing.py). DRUPE_FUZZ_SEED: begin with this one;
DRUPE_FUZZ_KERNEL: a program other than the one that was built, say with debug assertions."""

from __future__ import annotations

import os
import random
import subprocess
import time
from pathlib import Path

import pytest

from framework.appkernels import JUMP, PYTHON, skip_without_platform, small_image
from framework.fuzzing import KERNEL, evidence, recorded
from framework.probes import FULL

pytestmark = pytest.mark.root
MINUTES = float(os.environ.get("DRUPE_FUZZ_MINUTES", "0"))
BUDGET_S = MINUTES * 60 or (3.0 if FULL else 1.5)
FIRST = int(os.environ.get("DRUPE_FUZZ_SEED") or (random.SystemRandom().getrandbits(32) if MINUTES else 1))


@pytest.fixture(scope="module", autouse=True)
def _platform() -> None:
    skip_without_platform()


# Children with seeds from FIRST on, some at once, until the time is over. What each will do is told before it begins,
# and all that they leave is ended with them. `child` may die or hang; this process goes on: it is the pod's first, whom
# no signal reaches that it does not handle, and a child with CLONE_PARENT may choose which one its end sends. NAMING:
# calls by which a child could end it, prlimit64 (no more processor time: SIGKILL, as on Linux) and process_vm_writev.
LOOP = f"""
import os, random, signal, sys, time
NAMING = {{302, 311}}
begun, seed, all_signals = time.monotonic(), {FIRST}, set(signal.Signals) - {{signal.SIGCHLD, 9, 19}}
for number in all_signals: signal.signal(number, signal.SIG_IGN)
def begin(seed):
    pid = os.fork()
    if pid: return pid
    for number in all_signals: signal.signal(number, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 0.5); os.setpgid(0, 0)
    try:
        rng = random.Random(seed)
        todo = plan(rng)
        os.write(1, f'{{seed}} {{todo!r:.4000}}\\n'.encode())
        os.dup2(os.open('/dev/null', os.O_RDWR), 0); os.dup2(0, 1); os.dup2(0, 2)
        child(rng, todo)
    finally: os._exit(0)
def reap(options):
    try: return os.waitpid(-1, options | 0x40000000)[0]
    except ChildProcessError: return -1
while time.monotonic() - begun < {BUDGET_S}:
    running = {{begin(seed + number) for number in range(BATCH)}}
    seed, late = seed + BATCH, time.monotonic() + 2
    while running and time.monotonic() < late:
        pid = reap(os.WNOHANG)
        running.discard(pid)
        if pid == 0: time.sleep(0.002)
    try: os.kill(-1, 9)
    except ProcessLookupError: pass
    while reap(0) > 0: pass
    if os.system('true'): break
print('alive', os.system('true'), seed, flush=True)
"""

CALLS = """
import ctypes
libc, buffer, BATCH = ctypes.CDLL(None), ctypes.create_string_buffer(65536), 16
at = ctypes.addressof(buffer)
SIGNALLING = {62, 129, 200, 234, 297, 424}
numbers = [n for n in range(470) if n not in SIGNALLING]
print('buffer at', hex(at), flush=True)
def argument(rng):
    return rng.choice([0, 1, rng.randrange(10), rng.randrange(4096), at, at + rng.randrange(60000),
                       rng.randrange(2**20),
                       2**64 - 1 - rng.randrange(4096), rng.getrandbits(64), rng.getrandbits(32)])
def plan(rng):
    return [(rng.choice(numbers), *[argument(rng) for _ in range(6)]) for _ in range(40)]
def child(rng, todo):
    for number, *arguments in todo:
        for place in range(0, 4096, 8):
            buffer[place:place + 8] = argument(rng).to_bytes(8, "little")
        if number in NAMING and arguments[0] == 1: continue
        libc.syscall(ctypes.c_long(number), *[ctypes.c_ulong(one) for one in arguments])
"""

PROGRAMS = """
good, BATCH = open('/bin/busybox', 'rb').read(), 8
def plan(rng):
    size = rng.choice([100, 400, 70000, len(good), len(good)])
    return size, [(rng.randrange(min(size, 64 + 56 * 10)), rng.choice([0, 1, 127, 128, 255, rng.getrandbits(8)]))
                  for _ in range(rng.randint(1, 8))]
def child(rng, todo):
    data = bytearray(good[:todo[0]])
    for at, byte in todo[1]: data[at] = byte
    name = '/tmp/bad%d' % os.getpid()
    with open(name, 'wb') as file: file.write(data)
    os.chmod(name, 0o755)
    program = os.open(name, os.O_RDONLY)
    os.unlink(name)
    os.execve(program, ['busybox', 'true'], {})
"""

SLOTS = (
    JUMP
    + """
import threading
BATCH = 4
def plan(rng): return 'slots'
def child(rng, todo):
    for _ in range(3): threading.Thread(target=lambda: [os.getppid() for _ in range(10**6)], daemon=True).start()
    for _ in range(400):
        slot = 0x7e0010000000 + 65536 * rng.randrange(5)
        at = slot + rng.choice([rng.randrange(0, 2048), rng.randrange(0, 65536 - 64)]) // 8 * 8
        word = rng.choice([0, 1, 2**64 - 1, slot + 0x8000, slot + rng.randrange(65536), rng.getrandbits(64)])
        ctypes.memmove(at, struct.pack('Q', word), 8)
        if rng.random() < 0.2: jump_to(rng)
        os.getppid()
def jump_to(rng):
    numbers = [0x5d00, 0x5d01, 15, 56, 9, 10, 11, 25, 131, 158, 202, 436, rng.randrange(470)]
    arguments = (rng.choice([0, 1, 17, place, rng.getrandbits(64)]) for _ in range(6))
    words = [rng.choice(numbers), *arguments, inside, place]
    if words[0] in NAMING: words[1] = 0
    shared[1024:1096] = struct.pack('9Q', *words)
    if os.fork() == 0:
        jump(place + 1024)
        os._exit(0)
"""
)


TARGETS = {"calls": CALLS, "programs": PROGRAMS, "slots": SLOTS}


@pytest.mark.timeout(BUDGET_S * 3 + 120)
@pytest.mark.parametrize("target", TARGETS)
def test_nonsense_ends_processes_and_nobody_else(target: str) -> None:
    """The kernel stays, has no bug to report, and starts programs afterwards."""
    with evidence(target, f"target {target}, seeds from {FIRST}") as place:
        argv = [
            KERNEL,
            "run",
            "--root",
            "/",
            "--memory",
            str(1 << 30),
            "--",
            PYTHON,
            "-I",
            "-c",
            TARGETS[target] + LOOP,
        ]
        code, last, errors = recorded(argv, place, timeout_s=BUDGET_S * 3 + 60)
        assert code == 0 and "a bug of the kernel" not in errors and "panicked" not in errors, (code, errors[-2000:])
        words = last.split()
        assert words[:2] == ["alive", "0"] and int(words[2]) > FIRST, (last, errors[-2000:])
    print(f"{int(words[2]) - FIRST} children, seeds from {FIRST}")


READ_ALL = "/busybox ls -lR /; /busybox cat /etc/* | /busybox wc -c"


@pytest.mark.timeout(BUDGET_S * 3 + 120)
def test_damaged_images_are_refused_or_read_wrong(tmp_path: Path) -> None:
    """An error, or other bytes; no crash, no hang. The undamaged one is read."""
    good = small_image(tmp_path).read_bytes()
    with evidence("images", f"target images, seeds from {FIRST}; `image` is the last one") as place:
        image, begun, seed = place / "image", time.monotonic(), FIRST
        image.write_bytes(good)
        argv: list[str | Path] = [KERNEL, "run", "--root", image, "--", "/busybox", "sh", "-c", READ_ALL]
        assert b"495000" in subprocess.run(argv, capture_output=True, timeout=60, check=True).stdout
        while time.monotonic() - begun < BUDGET_S:
            seed += 1
            image.write_bytes(damaged(good, random.Random(seed)))
            code, said = outcome(argv)
            assert code >= 0 and "panicked" not in said and "a bug of the kernel" not in said, (seed, code, said[-500:])
    print(f"{seed - FIRST} images, seeds from {FIRST}")


def outcome(argv: list[str | Path]) -> tuple[int, str]:
    """Exit code and messages. A program that is damaged itself may run for ever: the kernel must have slept."""
    with subprocess.Popen(
        argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
    ) as running:
        try:
            _, said = running.communicate(timeout=3)
        except subprocess.TimeoutExpired:
            fields = Path(f"/proc/{running.pid}/stat").read_text().rpartition(")")[2].split()
            running.kill()
            used_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            assert used_s < 1.5, "the kernel itself runs for ever"
            return 0, ""
        return running.returncode, said


def damaged(good: bytes, rng: random.Random) -> bytes:
    data = bytearray(good)
    for _ in range(rng.randint(1, 20)):
        places = [1024 + rng.randrange(128), rng.randrange(len(data)), rng.randrange(1024, min(len(data), 65536))]
        data[rng.choice(places)] = rng.choice([0, 255, rng.getrandbits(8)])
    return bytes(data[: rng.choice([len(data), len(data), rng.randrange(1100, len(data))])])
