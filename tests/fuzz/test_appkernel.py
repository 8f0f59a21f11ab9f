"""The application kernel under nonsense: calls, programs, images, and the memory that it shares with its stubs. Seconds
in the suite, as long as you like by `make fuzz-appkernel MINUTES=30`, then with seeds that nobody has seen."""

from __future__ import annotations

import os
import random
import subprocess
import time
from pathlib import Path

import pytest

from framework.appkernels import JUMP, KERNEL, run, skip_without_platform, small_image

pytestmark = pytest.mark.root
TARGETS = 4
MINUTES = float(os.environ.get("DRUPE_FUZZ_MINUTES", "0"))
BUDGET_S = MINUTES * 60 / TARGETS or 3.0
FIRST = random.SystemRandom().getrandbits(32) if MINUTES else 1


@pytest.fixture(scope="module", autouse=True)
def _platform() -> None:
    skip_without_platform()


# Children with seeds from FIRST on until the time is over. `child(rng)` may die or hang; this process goes on.
LOOP = f"""
import os, random, signal, sys, time
begun, seed = time.monotonic(), {FIRST}
while time.monotonic() - begun < {BUDGET_S}:
    seed += 1
    pid = os.fork()
    if pid == 0:
        signal.setitimer(signal.ITIMER_REAL, 0.5); os.setpgid(0, 0)
        os.dup2(os.open('/dev/null', os.O_RDWR), 0); os.dup2(0, 1); os.dup2(0, 2)
        try: child(random.Random(seed))
        finally: os._exit(0)
    late = time.monotonic() + 2
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        time.sleep(0.002)
        if time.monotonic() > late: os.kill(pid, 9)
print('alive', os.system('true'), seed)
"""

CALLS = """
import ctypes
libc, buffer = ctypes.CDLL(None), ctypes.create_string_buffer(65536)
at = ctypes.addressof(buffer)
SIGNALLING = {62, 129, 200, 234, 297, 424}
def argument(rng):
    return rng.choice([0, 1, rng.randrange(10), rng.randrange(4096), at, at + rng.randrange(60000),
                       rng.randrange(2**20),
                       2**64 - 1 - rng.randrange(4096), rng.getrandbits(64), rng.getrandbits(32)])
def child(rng):
    for _ in range(40):
        for place in range(0, 4096, 8):
            buffer[place:place + 8] = argument(rng).to_bytes(8, "little")
        number = rng.choice([n for n in range(470) if n not in SIGNALLING])
        libc.syscall(ctypes.c_long(number), *[ctypes.c_ulong(argument(rng)) for _ in range(6)])
"""

PROGRAMS = """
good = open('/bin/busybox', 'rb').read()
def child(rng):
    data = bytearray(good[:rng.choice([100, 400, 70000, len(good), len(good)])])
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(min(len(data), 64 + 56 * 10))
        data[at] = rng.choice([0, 1, 127, 128, 255, rng.getrandbits(8)])
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
def child(rng):
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
    shared[1024:1096] = struct.pack('9Q', *words)
    if os.fork() == 0:
        jump(place + 1024)
        os._exit(0)
"""
)


@pytest.mark.timeout(BUDGET_S * 3 + 120)
@pytest.mark.parametrize("target", [CALLS, PROGRAMS, SLOTS], ids=["calls", "programs", "slots"])
def test_nonsense_ends_processes_and_nobody_else(target: str) -> None:
    """The kernel stays, has no bug to report, and starts programs afterwards."""
    done = run("--memory", str(1 << 30), program=target + LOOP, timeout_s=BUDGET_S * 3 + 60)
    words = done.stdout.split()
    assert words[:2] == ["alive", "0"] and int(words[2]) > FIRST, (FIRST, done.stderr)
    print(f"{int(words[2]) - FIRST} children, seeds from {FIRST}")


READ_ALL = "/busybox ls -lR /; /busybox cat /etc/* | /busybox wc -c"


@pytest.mark.timeout(BUDGET_S * 3 + 120)
def test_damaged_images_are_refused_or_read_wrong(tmp_path: Path) -> None:
    """An error, or other bytes; no crash, no hang. The undamaged one is read."""
    image = small_image(tmp_path)
    good, argv = image.read_bytes(), [KERNEL, "run", "--root", image, "--", "/busybox", "sh", "-c", READ_ALL]
    assert b"495000" in subprocess.run(argv, capture_output=True, timeout=60, check=True).stdout
    begun, seed = time.monotonic(), FIRST
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
            _, said = running.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            fields = Path(f"/proc/{running.pid}/stat").read_text().rpartition(")")[2].split()
            running.kill()
            used_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            assert used_s < 5, "the kernel itself runs for ever"
            return 0, ""
        return running.returncode, said


def damaged(good: bytes, rng: random.Random) -> bytes:
    data = bytearray(good)
    for _ in range(rng.randint(1, 20)):
        places = [1024 + rng.randrange(128), rng.randrange(len(data)), rng.randrange(1024, min(len(data), 65536))]
        data[rng.choice(places)] = rng.choice([0, 255, rng.getrandbits(8)])
    return bytes(data[: rng.choice([len(data), len(data), rng.randrange(1100, len(data))])])
