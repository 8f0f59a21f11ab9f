"""The daemon's end of the control socket (asyncio)."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from drupe.errors import (
    DrupeError,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from drupe.linux.unix_sockets import peer_credentials, recv_fds
from drupe.rpc.call import Call, Handler, serve_call
from drupe.rpc.frames import Cancel, Decoder, Failure, Frame, Hello, Invoke, Item, Result, check_hello, encode
from drupe.rpc.listen import bind_unix
from drupe.rpc.timeouts import timeout

__all__ = ["Call", "Handler", "Server"]

log = logging.getLogger("drupe.rpc")

_READ_BYTES = 256 * 1024
_HIGH_WATER_BYTES = 1024 * 1024
_MAX_CALLS = 1024


class Server:
    """Serves `handler` on a unix socket at `path`, for root and the daemon's own user only. root: the runtime's state
    directory, which callers are told.

    Calls of one connection run side by side. When a client goes away or cancels, its calls are cancelled unless they
    have detached themselves.
    """

    def __init__(self, path: Path | str, handler: Handler, *, root: str = "") -> None:
        self.path = Path(path)
        self._hello = Hello(root=root)
        self._handler = handler
        self._socket: socket.socket | None = None
        self._connections: set[Connection] = set()

    async def start(self) -> None:
        """Bind and listen, replacing a dead socket. Raises AlreadyExists when another server answers there."""
        self._socket = sock = bind_unix(self.path)
        asyncio.get_running_loop().add_reader(sock.fileno(), self._accept)

    async def close(self, *, grace_s: float = 0.5) -> None:
        """Stop listening, let running calls end for `grace_s`, cancel the rest, and hang up."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
            self.path.unlink(missing_ok=True)
        tasks = [task for connection in self._connections for task in connection.tasks]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for connection in list(self._connections):
            await connection.drain(1)
            connection.close()
            await asyncio.gather(*connection.beside, return_exceptions=True)

    def serve_socket(self, sock: socket.socket) -> None:
        """Serve a socket that is connected already (socket activation, tests); the server owns it from now on."""
        sock.setblocking(False)
        self._connections.add(Connection(sock, self._handler, self._connections.discard, self._hello))

    def _accept(self) -> None:
        if self._socket is None:
            return
        try:
            sock, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            self._pause_accepting(error)
            return
        self.serve_socket(sock)

    def _pause_accepting(self, error: OSError) -> None:
        """Out of descriptors: the listener stays readable, so look away for a moment instead of spinning."""
        log.error("cannot accept a connection: %s", error)
        loop, sock = asyncio.get_running_loop(), self._socket
        if sock is not None:
            loop.remove_reader(sock.fileno())
            loop.call_later(0.1, self._resume_accepting)

    def _resume_accepting(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().add_reader(self._socket.fileno(), self._accept)


class Connection:
    """One client: decodes its frames, runs its calls as tasks, writes what they answer."""

    def __init__(
        self, sock: socket.socket, handler: Handler, on_close: Callable[[Connection], None], hello: Hello
    ) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        self.beside: set[asyncio.Task[None]] = set()  # work that ends when we hang up
        self._sock = sock
        self._handler = handler
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder()
        self._calls: dict[int, tuple[Call, asyncio.Task[None]]] = {}
        self._out = bytearray()
        self._drained = asyncio.Event()
        self._drained.set()
        self._greeted = False
        self._broken = False
        self._closed = False
        self._peer = peer_credentials(sock)
        self._loop.add_reader(sock.fileno(), self._on_readable)
        self._write(encode(hello))
        if self._peer.uid not in (0, os.geteuid()):
            self._refuse(PermissionDenied(f"user {self._peer.uid} may not use this socket"))

    def close(self) -> None:
        """Hang up; cancel the calls that did not detach."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        self._decoder.close()
        self._drained.set()
        for call, task in self._calls.values():
            call.gone = True
            if not call.detached:
                task.cancel()
        for work in self.beside:
            self._loop.call_soon(work.cancel)
        self._on_close(self)

    async def drain(self, timeout_s: float) -> None:
        """Wait at most so long until all that was written has left."""
        with contextlib.suppress(TimeoutError):
            async with timeout(timeout_s):
                while self._out and not self._closed:
                    self._drained.clear()
                    await self._drained.wait()

    def _on_readable(self) -> None:
        try:
            data, fds = recv_fds(self._sock, _READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self.close()
            return
        try:
            frames = self._decoder.feed(data, fds)
        except DrupeError as error:
            self._refuse(error)
            return
        for frame, named in frames:
            self._take_or_refuse(frame, named)

    def _take_or_refuse(self, frame: Frame, fds: dict[str, int]) -> None:
        try:
            if not self._closed:
                self._take(frame, fds)
                return
        except DrupeError as error:
            self._refuse(error)
        for fd in fds.values():
            os.close(fd)

    def _take(self, frame: Frame, fds: dict[str, int]) -> None:
        if not self._greeted:
            check_hello(frame)
            self._greeted = True
        elif isinstance(frame, Invoke):
            self._begin(frame, fds)
        elif isinstance(frame, Cancel):
            self._cancel(frame.id)
        else:
            raise InvalidArgument(f"a client may not send {type(frame).__name__} frames")

    def _begin(self, frame: Invoke, fds: dict[str, int]) -> None:
        emit = functools.partial(self._send_item, frame.id)
        try:
            given: dict[str, Any] = {"deadline_s": frame.deadline_s, "peer": self._peer}
            call = Call(frame.method, frame.params, fds=fds, emit=emit, beside=self._run_beside, **given)
        except DrupeError as error:
            self._answer(Failure(frame.id, error.to_wire()))
            return
        if frame.id in self._calls or len(self._calls) >= _MAX_CALLS:
            call.close()
            self._answer(Failure(frame.id, ResourceExhausted("too many calls on one connection").to_wire()))
            return
        task = self._loop.create_task(self._run(frame.id, call), name=frame.method)
        self._calls[frame.id] = (call, task)
        self.tasks.add(task)
        task.add_done_callback(functools.partial(self._ended, frame.id, call))

    def _run_beside(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self.beside.add(task)
        task.add_done_callback(self.beside.discard)
        if self._closed:
            self._loop.call_soon(task.cancel)  # not before its first step, or it would never know

    async def _run(self, call_id: int, call: Call) -> None:
        try:
            result = await serve_call(self._handler, call)
        except DrupeError as error:
            self._answer(Failure(call_id, error.to_wire()))
        except asyncio.CancelledError:
            gone = Unavailable(f"{call.method} was cancelled", may_have_run=True)
            self._answer(Failure(call_id, gone.to_wire()))
        else:
            self._answer(Result(call_id, result))

    def _ended(self, call_id: int, call: Call, task: asyncio.Task[None]) -> None:
        call.close()  # a task that was cancelled before its first step never ran its own clean-up
        self.tasks.discard(task)
        del self._calls[call_id]

    def _cancel(self, call_id: int) -> None:
        call, task = self._calls.get(call_id, (None, None))
        if call is not None and task is not None and not call.detached:
            task.cancel()

    async def _send_item(self, call_id: int, item: object) -> None:
        self._write(encode(Item(call_id, item)))
        if self._broken:
            await asyncio.sleep(0)  # nothing else may wait here: let the connection be closed
        while len(self._out) > _HIGH_WATER_BYTES and not self._closed:
            self._drained.clear()
            await self._drained.wait()

    def _answer(self, frame: Result | Failure) -> None:
        try:
            data = encode(frame)
        except DrupeError as error:  # an answer over the limit
            data = encode(Failure(frame.id, error.to_wire()))
        self._write(data)

    def _refuse(self, error: DrupeError) -> None:
        """Say why, as far as the socket takes it at once, and hang up."""
        log.warning("control connection of pid %d refused: %s", self._peer.pid, error)
        self._write(encode(Failure(0, error.to_wire())))
        self.close()

    def _write(self, data: bytes) -> None:
        if self._closed or self._broken:
            return
        if self._out:
            self._out += data
            return
        try:
            sent = self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._broken = True
            self._loop.call_soon(self.close)
            return
        if sent < len(data):
            self._out += memoryview(data)[sent:]
            self._loop.add_writer(self._sock.fileno(), self._on_writable)

    def _on_writable(self) -> None:
        try:
            sent = self._sock.send(self._out)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        del self._out[:sent]
        if not self._out:
            self._loop.remove_writer(self._sock.fileno())
        if len(self._out) <= _HIGH_WATER_BYTES:
            self._drained.set()
