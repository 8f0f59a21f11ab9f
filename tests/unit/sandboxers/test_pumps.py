"""Regular files as streams of a process under gVisor."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from drupe.sandboxers.gvisor.pumps import Pumps
from framework.leaks import wait_until


def echo(directory: Path) -> bytes:
    """What arrives in a file of output when the process copies its standard input, a file too, and ends at once."""
    given, taken = directory / "given", directory / "taken"
    given.write_bytes(b"to and fro")
    with given.open("rb") as stdin, taken.open("wb") as stdout:
        pumps = Pumps({"stdin": stdin.fileno(), "stdout": stdout.fileno(), "stderr": stdout.fileno()})
        theirs = [os.dup(fd) for fd in pumps.fds]
        pumps.sent()
        os.write(theirs[1], os.read(theirs[0], 100))
        for fd in theirs:
            os.close(fd)
        asyncio.run(pumps.drained())
    return taken.read_bytes()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_short_files_go_through_whole_again_and_again(tmp_path: Path) -> None:
    """The copying may be over before all threads have been started."""
    before = descriptors()
    assert {echo(tmp_path) for _ in range(100)} == {b"to and fro"}
    wait_until(lambda: descriptors() == before, what="all descriptors are closed")
