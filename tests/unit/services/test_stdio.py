"""The input of execs: FIFOs whose writers come early, late, or not at all."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from drupe.services.containerd.stdio import open_streams, with_all, writer_seen


def opened(directory: Path) -> tuple[Path, dict[str, int]]:
    os.mkfifo(path := directory / "fifo")
    return path, open_streams(stdin=str(path), stdout="", stderr="", terminal=False)


def test_a_writer_that_came_and_went_is_seen_and_nothing_is_lost(tmp_path: Path) -> None:
    path, fds = opened(tmp_path)
    path.write_text("word")
    assert asyncio.run(writer_seen(fds["stdin"]))
    with_all(fds)
    assert (os.read(fds["stdin"], 10), os.read(fds["stdin"], 10)) == (b"word", b"")
    for fd in fds.values():
        os.close(fd)


def test_a_writer_that_says_nothing_is_seen(tmp_path: Path) -> None:
    path, fds = opened(tmp_path)
    with path.open("w"):
        assert asyncio.run(writer_seen(fds["stdin"]))
    os.close(fds["stdin"])


def test_nobody_is_not_seen(tmp_path: Path) -> None:
    _, fds = opened(tmp_path)
    assert not asyncio.run(writer_seen(fds["stdin"]))
    os.close(fds["stdin"])
