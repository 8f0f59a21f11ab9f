"""Descriptors of callers, joined to the streams of a process in a machine.

Their flags are never changed, as others share them: a pipe or terminal is opened anew through /proc, a socket is asked
not to wait call by call.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import Any

from drupe.errors import DrupeError
from drupe.sandboxers.contract import Attachment

BEHIND_BYTES = 1 << 20  # a reader that is further behind makes the workload wait
_CHUNK_BYTES = 64 * 1024


class End:
    """A duplicate of a caller's descriptor that can be read or written without waiting."""

    def __init__(self, fd: int, flags: int) -> None:
        mode = os.fstat(fd).st_mode
        self._is_socket = stat.S_ISSOCK(mode)
        self.fd = -1
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            with contextlib.suppress(OSError):
                self.fd = os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        if self.fd < 0:
            self.fd = os.dup(fd)

    def read(self) -> bytes:
        return self._socket("recv", _CHUNK_BYTES) if self._is_socket else os.read(self.fd, _CHUNK_BYTES)

    def write(self, data: bytes) -> int:
        return self._socket("send", data) if self._is_socket else os.write(self.fd, data)

    def _socket(self, call: str, argument: Any) -> Any:
        sock = socket.socket(fileno=self.fd)
        try:
            return getattr(sock, call)(argument, socket.MSG_DONTWAIT)
        finally:
            sock.detach()

    async def ready(self, *, to_write: bool) -> None:
        """Wait until it may be read or written."""
        loop = asyncio.get_running_loop()
        found: asyncio.Future[None] = loop.create_future()
        add, remove = (loop.add_writer, loop.remove_writer) if to_write else (loop.add_reader, loop.remove_reader)
        add(self.fd, _settle, found)
        try:
            await found
        finally:
            remove(self.fd)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Outlet:
    """Where output goes. It is written in the order of `put`, by a task of its own."""

    def __init__(self, fd: int) -> None:
        self._end = End(fd, os.O_WRONLY)
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._changed = asyncio.Event()
        self._last = False
        self.done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()  # whether all was written
        self._writing = asyncio.ensure_future(self._write())

    async def put(self, data: bytes) -> None:
        """Take data; waits while too much waits already. Nothing happens once its readers have gone."""
        while self._bytes > BEHIND_BYTES and not self.done.done():
            self._changed.clear()
            await self._changed.wait()
        if not self.done.done():
            self._waiting.append(data)
            self._bytes += len(data)
            self._changed.set()

    def finish(self) -> None:
        """No more comes."""
        self._last = True
        self._changed.set()

    async def _write(self) -> None:
        whole = False
        try:
            while self._waiting or not self._last:
                if not self._waiting:
                    self._changed.clear()
                    await self._changed.wait()
                    continue
                await self._write_first()
            whole = True
        except OSError:
            pass  # its readers have gone
        finally:
            self._waiting.clear()
            self._bytes = 0
            self._end.close()
            if not self.done.done():
                self.done.set_result(whole)
            self._changed.set()

    async def _write_first(self) -> None:
        data = self._waiting[0]
        try:
            written = self._end.write(data)
        except BlockingIOError:
            await self._end.ready(to_write=True)
            return
        self._bytes -= written
        if written < len(data):
            self._waiting[0] = data[written:]
        else:
            self._waiting.popleft()
        self._changed.set()

    def drop(self) -> None:
        self._writing.cancel()


Feed = Callable[[bytes, bool], Awaitable[None]]


class VmAttachment(Attachment):
    """See the contract. feed: takes bytes of standard input, and whether that was its end."""

    def __init__(self, fds: Mapping[str, int], *, feed: Feed, close_stdin: bool) -> None:
        self._outlets = {name: Outlet(fds[name]) for name in ("stdout", "stderr") if name in fds}
        self._feed = feed
        self._close_stdin = close_stdin
        self._stdin = End(fds["stdin"], os.O_RDONLY) if "stdin" in fds else None
        self._reading: asyncio.Future[None] | None = None
        self._over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        for outlet in self._outlets.values():
            outlet.done.add_done_callback(lambda _: self._check_closed())

    def begin(self) -> None:
        """The process runs: feed it."""
        if self._stdin is not None and self._reading is None:
            self._reading = asyncio.ensure_future(self._read(self._stdin))

    async def put(self, stream: str, data: bytes) -> None:
        if (outlet := self._outlets.get(stream)) is not None:
            await outlet.put(data)

    async def finish(self, *, within_s: float) -> None:
        """The process has ended; what waits is still written, beyond `within_s` while nobody looks."""
        if self._reading is not None:
            self._reading.cancel()
        for outlet in self._outlets.values():
            outlet.finish()
        if waiting := [outlet.done for outlet in self._outlets.values()]:
            await asyncio.wait(waiting, timeout=within_s)
        self._end("exit")

    async def _read(self, end: End) -> None:
        try:
            while data := await self._chunk(end):
                await self._feed(data, False)
            if self._close_stdin:
                await self._feed(b"", True)
        except (DrupeError, OSError):
            pass  # the process has ended, or its input was closed
        finally:
            end.close()

    async def _chunk(self, end: End) -> bytes:
        while True:
            try:
                return end.read()
            except BlockingIOError:
                await end.ready(to_write=False)

    def _check_closed(self) -> None:
        if all(outlet.done.done() for outlet in self._outlets.values()):
            self._end("closed")

    def _end(self, reason: str) -> None:
        if not self._over.done():
            self._over.set_result(reason)

    @property
    def is_over(self) -> bool:
        return self._over.done()

    def __await__(self) -> Generator[Any, None, str]:
        return asyncio.shield(self._over).__await__()

    async def detach(self) -> None:
        self.let_go("detach")

    def let_go(self, reason: str) -> None:
        """Write what waits, and no more."""
        if self._reading is not None:
            self._reading.cancel()
        elif self._stdin is not None:
            self._stdin.close()
        for outlet in self._outlets.values():
            outlet.finish()
        self._end(reason)
