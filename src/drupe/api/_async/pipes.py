"""Pipes of a command, and moving bytes through them (asyncio; the blocking twin is `api._sync.pipes`)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

from drupe.api.result import Output
from drupe.rpc.connection import AsyncRunningCall

P = ParamSpec("P")
T = TypeVar("T")
_CHUNK_BYTES = 64 * 1024
DRAIN_S = 0.5  # a background child may hold the pipe for ever: silence for so long after the end is the end


class AsyncReader:
    """Our end of an output pipe. Iterating gives lines, newline included."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._buffer = bytearray()
        self._at_end = False

    async def read(self, size: int = -1) -> bytes:
        """At most `size` bytes as soon as there are any, b"" at the end; without a size all until the end."""
        while not self._at_end and (size < 0 or not self._buffer) and size != 0:
            await self._fill()
        return self._take(len(self._buffer) if size < 0 else size)

    async def readline(self) -> bytes:
        """The next line, b"" at the end."""
        seen = 0
        while (end := self._buffer.find(b"\n", seen)) < 0 and not self._at_end:
            seen = len(self._buffer)
            await self._fill()
        return self._take(len(self._buffer) if end < 0 else end + 1)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if line := await self.readline():
            return line
        raise StopAsyncIteration

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    async def close(self) -> None:
        """Close our end; the command gets SIGPIPE when it writes on."""
        self._at_end = True
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)

    def _take(self, size: int) -> bytes:
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    async def _fill(self) -> None:
        while True:
            try:
                data = os.read(self._fd, _CHUNK_BYTES)
            except BlockingIOError:
                loop = asyncio.get_running_loop()
                await _ready(loop.add_reader, loop.remove_reader, self._fd)
                continue
            self._buffer += data
            self._at_end = not data
            return


class AsyncWriter:
    """Our end of an input pipe."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd

    async def write(self, data: bytes) -> None:
        """Write all of `data`. Raises BrokenPipeError when the command has closed its end."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view[:_CHUNK_BYTES]) :]
            except BlockingIOError:
                loop = asyncio.get_running_loop()
                await _ready(loop.add_writer, loop.remove_writer, self._fd)

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    async def close(self) -> None:
        """Close: the command reads an end of file."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            asyncio.get_running_loop().remove_writer(fd)
            os.close(fd)


class AsyncPump:
    """Feeds input and collects output until a running command has ended and said all."""

    def __init__(self, running: AsyncRunningCall, stdin: AsyncWriter | None, data: bytes) -> None:
        self._running = running
        self._stdin = stdin
        self._left = memoryview(data)

    async def run(self, outputs: Iterable[tuple[AsyncReader, Output]], limit_s: float | None) -> bool:
        """True when all is done; False when `limit_s` passed before (call again to go on)."""
        streams = list(outputs)
        tasks = [asyncio.create_task(_collect(reader, output)) for reader, output in streams]
        end, feeder = asyncio.create_task(self._until_ended()), asyncio.create_task(self._feed())
        try:
            if not await _first(end, tasks, limit_s):
                return False
            await _drain(tasks, [output for _, output in streams])
            return True
        finally:
            for task in (*tasks, end, feeder):
                task.cancel()
            await asyncio.gather(*tasks, end, feeder, return_exceptions=True)

    async def _until_ended(self) -> None:
        while not await self._running.advance():
            pass

    async def _feed(self) -> None:
        if self._stdin is None:
            return
        with suppress(BrokenPipeError):  # it does not read all its input: its right
            while self._left:
                await self._stdin.write(bytes(self._left[:_CHUNK_BYTES]))
                self._left = self._left[_CHUNK_BYTES:]
        await self._stdin.close()


async def _collect(reader: AsyncReader, output: Output) -> None:
    while data := await reader.read(_CHUNK_BYTES):
        output.feed(data)


async def _first(end: asyncio.Task[None], tasks: list[asyncio.Task[None]], limit_s: float | None) -> bool:
    """Wait for `end`; False when `limit_s` passed. Raises what a task (a callback) raised meanwhile."""
    pending, loop = {end, *tasks}, asyncio.get_running_loop()
    deadline = None if limit_s is None else loop.time() + limit_s
    while end in pending:
        left = None if deadline is None else max(0.0, deadline - loop.time())
        done, pending = await asyncio.wait(pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            return False
        for task in done:
            task.result()
    return True


async def _drain(tasks: list[asyncio.Task[None]], outputs: list[Output]) -> None:
    """Wait for the ends of output, or for silence. Raises what a callback raised."""
    pending = set(tasks)
    while pending:
        before = sum(output.seen_bytes for output in outputs)
        done, pending = await asyncio.wait(pending, timeout=DRAIN_S, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        if not done and before == sum(output.seen_bytes for output in outputs):
            return


def make_pipe(*, write: bool) -> tuple[int, int]:
    """(our end, the command's end) of a new pipe; `write`: ours is the writing one."""
    reading, writing = os.pipe()
    return (writing, reading) if write else (reading, writing)


def stdio_pipes(*, stdin: bool, tty: bool) -> tuple[dict[str, int], dict[str, int]]:
    """Pipes by name, (our ends, the command's ends). With a terminal there is no separate stderr."""
    ours: dict[str, int] = {}
    theirs: dict[str, int] = {}
    try:
        for name in ["stdin"] * stdin + ["stdout"] + ["stderr"] * (not tty):
            ours[name], theirs[name] = make_pipe(write=name == "stdin")
    except BaseException:
        close_all(ours)
        close_all(theirs)
        raise
    return ours, theirs


def close_all(fds: Mapping[str, int]) -> None:
    """Close descriptors."""
    for fd in fds.values():
        os.close(fd)


async def finish(running: AsyncRunningCall, reader: AsyncReader) -> bytes:
    """All that a call writes to our pipe. Raises the call's error."""
    try:
        data = await reader.read()
        await running.wait()
    finally:
        await reader.close()
    return data


async def feed(running: AsyncRunningCall, writer: AsyncWriter, write: Callable[[int], object]) -> None:
    """Let `write(fd)` fill a call's pipe, then wait for the call. Raises its error rather than a broken pipe."""
    os.set_blocking(writer.fileno(), True)
    try:
        with suppress(BrokenPipeError):
            await in_thread(write, writer.fileno())
    finally:
        await writer.close()
    await running.wait()


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Blocking work, off the event loop."""
    return await asyncio.to_thread(work, *args, **kwargs)


async def _ready(add: Callable[..., Any], remove: Callable[[int], bool], fd: int) -> None:
    ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    add(fd, _resolve, ready)
    try:
        await ready
    finally:
        remove(fd)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
