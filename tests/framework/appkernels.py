"""The application kernel for attacks on it: programs to run in it, images to run."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drupe.sandboxers.kinds import KINDS
from drupe.services.doctor import why_not
from framework.daemon import Daemon
from framework.leaks import wait_until
from framework.residue import residue

KERNEL = Path(__file__).parents[2] / "src/drupe/_bin/drupe-appkernel"
PYTHON = "/usr/bin/python3"

# Guest code that jumps to a system call instruction of the stub (`inside`), or to one of its own (`base + own`).
JUMP = """
import ctypes, mmap, os, signal, struct, sys
libc = ctypes.CDLL(None)
STUB, CALLS = 0x7e0000000000, b"\\x0f\\x05\\x41\\x83\\xff\\x38"   # syscall; cmp r15d, 56: of the stub's operations
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes.fromhex("488b07488b7710488b57184c8b57204c8b47284c8b4f304c8b77404c89f341bd010000004531e44989c74c8b5f38488b7f0841ffe3"))
own = 128
code[own:own + 8] = bytes.fromhex("0f05498946380f0b")           # syscall; mov [r14 + 56], rax; ud2
base = ctypes.addressof(ctypes.c_char.from_buffer(code))
jump = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(base)
shared = mmap.mmap(-1, 65536)
place = ctypes.addressof(ctypes.c_char.from_buffer(shared))
def call(where, number, *arguments):
    'What the call returned to a child that jumped there; None: it never came back.'
    shared[56:64] = struct.pack("q", 0x7777)
    words = struct.pack("9Q", *(n % 2**64 for n in (number, *arguments, *[0] * (6 - len(arguments)), where, place)))
    shared[1024:1024 + len(words)] = words
    pid = os.fork()
    if pid == 0:
        for number in (signal.SIGILL, signal.SIGSEGV): signal.signal(number, signal.SIG_DFL)
        jump(place + 1024)
        os._exit(0)
    os.waitpid(pid, 0)
    got = struct.unpack("q", shared[56:64])[0]
    return None if got == 0x7777 else got
def text(words, at=4096):
    shared[at:at + len(words) + 1] = words + b"\\0"
    return place + at
inside = STUB + ctypes.string_at(STUB, 4096).index(CALLS) if len(sys.argv) < 2 else base + own
"""


@contextmanager
def leaves_nothing(daemon: Daemon, directory: Path) -> Iterator[Daemon]:
    """Pods of this kind by a daemon: skips where they cannot run, saying why; afterwards nothing may be left of them.
    directory: the test's own."""
    if cause := why_not(KINDS["appkernel"], cache=directory / "doctor.json", named=True):
        pytest.skip(f"appkernel cannot run here: {cause}")
    yield daemon
    daemon.delete_pods()
    wait_until(lambda: residue(daemon) == {}, what="nothing is left")


def skip_without_platform() -> None:
    """Skip where the kernel is not built, or cannot run; says why."""
    if not KERNEL.exists():
        pytest.skip("the application kernel is not built (scripts/build-native.sh appkernel)")
    probed = subprocess.run([KERNEL, "probe"], capture_output=True, text=True, timeout=60, check=False)
    if probed.returncode != 0:
        pytest.skip(probed.stderr.strip())


def run(
    *words: str, program: str = "", timeout_s: float = 60, root: Path | str = "/"
) -> subprocess.CompletedProcess[str]:
    """Run Python in the application kernel; `words` are options of it. The kernel has no bug to report."""
    argv = [KERNEL, "run", "--root", root, *words, "--", PYTHON, "-I", "-c", program]
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL, cwd="/"
    )
    assert done.returncode >= 0 and "a bug of the kernel" not in done.stderr and "panicked" not in done.stderr, (
        done.stderr
    )
    return done


def small_image(tmp_path: Path) -> Path:
    """An EROFS image of a busybox, a hundred files and a hundred links."""
    tree, image = tmp_path / "tree", tmp_path / "image.erofs"
    (tree / "etc").mkdir(parents=True)
    (tree / "busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (tree / "busybox").chmod(0o755)
    for number in range(100):
        (tree / "etc" / f"file{number}").write_text("x" * number * 50)
        (tree / "etc" / f"link{number}").symlink_to(f"file{number}")
    subprocess.run(["mkfs.erofs", "--quiet", image, tree], check=True, capture_output=True)
    return image


@contextmanager
def memory_cgroup(limit_bytes: int) -> Iterator[Path]:
    """A cgroup v1 with this much memory; its file of members."""
    home = Path("/sys/fs/cgroup/memory")
    if not (home / "memory.limit_in_bytes").exists():
        pytest.skip("needs the memory controller of cgroup v1")
    group = home / f"drupe-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(limit_bytes))
        yield group / "cgroup.procs"
    finally:
        deadline = time.monotonic() + 10
        while (group / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        group.rmdir()
