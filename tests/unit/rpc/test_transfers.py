"""Work on a caller's descriptors waits for nobody who has gone, and holds up nobody else."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from drupe.errors import InvalidArgument, ResourceExhausted, Unavailable
from drupe.rpc import transfers
from drupe.rpc.call import Call
from drupe.rpc.transfers import Stream, in_thread, own, read_some, write_all


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def call() -> Call:
    return Call("system.info")


def test_a_caller_that_goes_away_ends_a_wait(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "_LOOK_UP_MS", 5)

    async def main() -> None:
        asked = call()
        work = asyncio.ensure_future(in_thread(asked, lambda: read_some(pipe[0], 1)))
        await asyncio.sleep(0.02)
        assert not work.done()
        asked.gone = True
        with pytest.raises(Unavailable, match="went away"):
            await work

    asyncio.run(main())


def test_a_cancelled_call_ends_its_thread(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "_LOOK_UP_MS", 5)
    ended = threading.Event()

    def work() -> None:
        try:
            read_some(pipe[0], 1)
        finally:
            ended.set()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await in_thread(call(), work)

    asyncio.run(main())
    assert ended.wait(5)


def test_too_many_are_refused(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "MAX_THREADS", 1)

    async def main() -> None:
        first = asyncio.ensure_future(in_thread(call(), lambda: read_some(pipe[0], 1)))
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhausted, match="under way"):
            await in_thread(call(), lambda: None)
        os.write(pipe[1], b"x")
        assert await first == b"x"
        assert await in_thread(call(), lambda: 7) == 7

    asyncio.run(main())


def test_the_callers_own_description_keeps_its_flags() -> None:
    read_end, write_end = os.pipe()
    kept = os.dup(read_end)
    mine = own(read_end)
    assert not os.get_blocking(mine)
    assert os.get_blocking(kept)
    for fd in (mine, kept, write_end):
        os.close(fd)


def test_a_slow_reader_gets_all_through_a_blocking_socket() -> None:
    ours, theirs = socket.socketpair()
    data = os.urandom(1 << 20)
    got = bytearray()

    def drain() -> None:
        while chunk := theirs.recv(1 << 16):
            got.extend(chunk)

    reader = threading.Thread(target=drain)
    reader.start()
    assert write_all(ours.fileno(), data)
    ours.close()
    reader.join(5)
    theirs.close()
    assert bytes(got) == data


def test_a_stream_names_what_cannot_be_read_or_written(tmp_path: Path) -> None:
    with (
        Stream(os.open(tmp_path, os.O_RDONLY)) as directory,
        pytest.raises(InvalidArgument, match=r"cannot be read.*directory"),
    ):
        directory.read(1)
    with Stream(os.open("/dev/full", os.O_WRONLY)) as full, pytest.raises(ResourceExhausted, match="cannot be written"):
        full.write(b"x")
