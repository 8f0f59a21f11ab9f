"""Long runs of nonsense. Whatever ends one, what it was doing is in files that stay: the seed, what was tried last,
what the kernel said, how everything stood."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from framework.appkernels import KERNEL as BUILT
from framework.probes import FULL

KERNEL = Path(os.environ.get("DRUPE_FUZZ_KERNEL") or BUILT)
KEPT = Path(os.environ.get("DRUPE_FUZZ_KEEP") or Path(__file__).parents[2] / "build/fuzz")
TRAIL_BYTES = 1 << 20
LAST_LINES = 60


class Trail:
    """What was tried, line by line: a file, and the one before it, of a megabyte each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb", buffering=0)

    def note(self, line: bytes) -> None:
        """It is in the file when this returns."""
        self._file.write(line)
        if self._file.tell() > TRAIL_BYTES:
            self.close()
            self._path.rename(self._path.with_name(self._path.name + ".before"))
            self._file = self._path.open("wb", buffering=0)

    def close(self) -> None:
        """It stays where it is."""
        self._file.close()


@contextmanager
def evidence(name: str, about: str) -> Iterator[Path]:
    """A directory for a run's files, which is removed when all went well. The failure's message says where it is."""
    KEPT.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=KEPT))
    kernel = hashlib.sha256(KERNEL.read_bytes()).hexdigest()
    (place / "about").write_text(f"{about}\nkernel {KERNEL} sha256 {kernel}\n")
    try:
        yield place
    except BaseException as error:
        said = subprocess.run(["dmesg"], capture_output=True, text=True, check=False).stdout.splitlines()
        (place / "dmesg").write_text("\n".join(said[-LAST_LINES:]))
        (place / "failure").write_text(f"{type(error).__name__}: {error}")
        error.add_note(f"kept in {place}")
        raise
    shutil.rmtree(place)


def rounds(number: int) -> int:
    """How many examples: all in `make test-full`, a third in `make test`."""
    return number if FULL else number // 3


def recorded(argv: Sequence[str | os.PathLike[str]], place: Path, *, timeout_s: float) -> tuple[int, str, str]:
    """Run it, its lines in `tried`, its messages in `stderr`. Exit code, last line, messages. One that does not end is
    looked at (`hang`), killed, and TimeoutExpired."""
    trail, last = Trail(place / "tried"), [b""]
    with (place / "stderr").open("wb") as errors:
        running = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, cwd="/")
    follower = threading.Thread(target=_follow, args=(running.stdout, trail, last))
    follower.start()
    try:
        code = running.wait(timeout_s)
    except subprocess.TimeoutExpired:
        (place / "hang").write_text(stand_of(running.pid))
        raise
    finally:
        running.kill()
        running.wait()
        follower.join()
        trail.close()
    return code, last[0].decode(errors="replace"), (place / "stderr").read_text(errors="replace")


def _follow(lines: IO[bytes], trail: Trail, last: list[bytes]) -> None:
    with lines:
        for line in lines:
            last[0] = line
            trail.note(line)


def stand_of(pid: int) -> str:
    """Where a process and all below it are: name, state, calls, stacks."""
    with suppress(OSError):
        words = [f"== {pid}"]
        for name in ("comm", "wchan", "syscall", "stack", "status"):
            with suppress(OSError):
                words.append(f"{name}: {Path(f'/proc/{pid}/{name}').read_text().strip()}")
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return "\n".join(words + [stand_of(int(child)) for child in children])
    return f"== {pid}: gone"
