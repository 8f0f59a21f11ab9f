"""Hybrid vsock, against a server that answers as VMMs do, and as nothing should."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from drupe.errors import DeadlineExceeded, InvalidArgument
from drupe.hypervisors.vsock import connect_hybrid

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def served(path: Path, serve: Serve, work: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with await asyncio.start_unix_server(serve, str(path)):
            await work()

    asyncio.run(whole())


def test_what_follows_the_answer_is_the_guests(tmp_path: Path) -> None:
    """Not a byte of it is lost, though it comes in the same packet."""
    path = tmp_path / "v.sock"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"CONNECT 1024\n"
        writer.write(b"OK 1073741824\nhello")
        writer.write(await reader.readexactly(5))
        writer.close()

    async def work() -> None:
        reader, writer = await asyncio.open_unix_connection(sock=await connect_hybrid(path, 1024, timeout_s=5))
        writer.write(b"world")
        assert await reader.read() == b"helloworld"
        writer.close()

    served(path, serve, work)


def test_it_is_tried_until_the_guest_listens(tmp_path: Path) -> None:
    """Before that VMMs hang up without a word."""
    path, calls = tmp_path / "v.sock", []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        calls.append(await reader.readline())
        if len(calls) == 3:
            writer.write(b"OK 1\n")
            await reader.read()
        writer.close()

    async def work() -> None:
        (await connect_hybrid(path, 7, timeout_s=5)).close()
        assert calls == [b"CONNECT 7\n"] * 3

    served(path, serve, work)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"OK\n", b"OK x\n", b"x" * 99, b"\n"])
def test_another_protocol(tmp_path: Path, answer: bytes) -> None:
    path = tmp_path / "v.sock"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await reader.read()
        writer.close()

    async def work() -> None:
        with pytest.raises(InvalidArgument, match="does not speak hybrid vsock"):
            await connect_hybrid(path, 1, timeout_s=5)

    served(path, serve, work)


def test_deadlines(tmp_path: Path) -> None:
    """Nobody there, and one that never answers; the error says which."""
    path = tmp_path / "v.sock"
    with pytest.raises(DeadlineExceeded) as told:
        asyncio.run(connect_hybrid(path, 1, timeout_s=0.1))
    assert told.value.cause == "No such file or directory"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def work() -> None:
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await connect_hybrid(path, 1, timeout_s=0.1)
        assert time.monotonic() - began < 5

    served(path, serve, work)
