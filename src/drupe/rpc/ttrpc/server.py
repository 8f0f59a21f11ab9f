"""The serving end of ttrpc connections (asyncio)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from pathlib import Path

from google.protobuf.message import Message

from drupe.errors import DeadlineExceeded, DrupeError, InternalError, InvalidArgument, ResourceExhausted, Unsupported
from drupe.linux.unix_sockets import Peer, peer_credentials
from drupe.rpc.listen import bind_unix
from drupe.rpc.timeouts import timeout
from drupe.rpc.ttrpc import envelope
from drupe.rpc.ttrpc.envelope_pb2 import Request
from drupe.rpc.ttrpc.frames import Flag, Frame, Kind, Oversized, too_big
from drupe.rpc.ttrpc.inbox import Inbox
from drupe.rpc.ttrpc.link import Link
from drupe.rpc.ttrpc.service import LAST, Call, Method, Running, ServerStream, Services, parse

log = logging.getLogger("drupe.ttrpc")

MAX_CALLS = 1024


class Server:
    """Serves `services` to root and to its own user. max_calls: open calls of one connection; one more is refused
    with RESOURCE_EXHAUSTED. When a client hangs up, its calls are cancelled."""

    def __init__(self, services: Services, *, max_calls: int = MAX_CALLS) -> None:
        self._services = services
        self._max_calls = max_calls
        self._path: Path | None = None
        self._listener: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def listen(self, path: Path) -> None:
        """Serve a unix socket at `path` (mode 0600). Raises AlreadyExists when another server answers there."""
        self._listener = await asyncio.start_unix_server(self._serve, sock=bind_unix(path))
        self._path = path

    async def serve(self, sock: socket.socket) -> None:
        """Serve one connected stream socket (unix, vsock, …) until it is closed; the server owns it from now on."""
        await self._serve(*await asyncio.open_connection(sock=sock))

    async def close(self) -> None:
        """Stop listening, cancel what runs, hang up."""
        if self._listener is not None and self._path is not None:
            self._listener.close()
            self._path.unlink(missing_ok=True)
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 we are a coroutine
        self._connections.add(task)
        link = Link(reader, writer)
        peer = _peer(writer)
        try:
            if peer is None or peer.uid in (0, os.geteuid()):
                await _Connection(link, peer, self._services, self._max_calls).run()
            else:
                log.warning("ttrpc: user %d may not use this socket", peer.uid)
        except asyncio.CancelledError:
            pass  # by `close`; asyncio's own callback would complain of it
        finally:
            link.close()
            await link.closed(within_s=1)
            self._connections.discard(task)


def _peer(writer: asyncio.StreamWriter) -> Peer | None:
    sock = writer.get_extra_info("socket")
    return peer_credentials(sock) if sock.family == socket.AF_UNIX else None


class _Connection:
    """One client: its frames in order, its calls as tasks."""

    def __init__(self, link: Link, peer: Peer | None, services: Services, max_calls: int) -> None:
        self._link = link
        self._peer = peer
        self._services = services
        self._max_calls = max_calls
        self._running: dict[int, Running] = {}
        self._last = 0  # highest stream id so far

    async def run(self) -> None:
        """Until the client hangs up; then its calls are cancelled."""
        try:
            async for frame in self._link.frames():
                try:
                    await self._take(frame)
                except DrupeError as error:
                    await self._link.send(_refusal(frame.stream, error))
        except DrupeError:
            pass  # it is gone
        finally:
            tasks = [running.task for running in self._running.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _take(self, frame: Frame | Oversized) -> None:
        if isinstance(frame, Oversized):
            self._too_big(frame)
        elif frame.kind == Kind.REQUEST:
            self._begin(frame)
        elif frame.kind == Kind.DATA:
            await self._data(frame)

    def _too_big(self, frame: Oversized) -> None:
        running = self._running.get(frame.stream)
        if frame.kind == Kind.DATA and running is not None and running.inbox is not None:
            running.inbox.end(too_big(frame.size_bytes))  # the handler's end is the answer
            return
        if frame.kind == Kind.REQUEST:
            self._check_id(frame.stream)
        raise too_big(frame.size_bytes)

    def _check_id(self, stream: int) -> None:
        if stream % 2 == 0:
            raise InvalidArgument(f"stream id {stream} is even: those are the server's")
        if stream <= self._last:
            raise InvalidArgument(f"stream id {stream} is not above those before ({self._last})")
        self._last = stream

    def _begin(self, frame: Frame) -> None:
        self._check_id(frame.stream)
        if len(self._running) >= self._max_calls:
            raise ResourceExhausted(f"{self._max_calls} calls are open on this connection")
        request = envelope.parse_request(frame.data)
        method = self._find(request)
        inbox = _inbox(method, request, frame.flags) if method.streams else None
        work = self._run(frame, method, request, inbox)
        task = asyncio.get_running_loop().create_task(work, name=f"{request.service}/{request.method}")
        self._running[frame.stream] = Running(task, inbox)
        task.add_done_callback(lambda _: self._running.pop(frame.stream))

    def _find(self, request: Request) -> Method:
        methods = self._services.get(request.service)
        if methods is None:
            raise Unsupported(f"there is no service {request.service!r} here")
        method = methods.get(request.method)
        if method is None:
            raise Unsupported(f"service {request.service} has no method {request.method!r}")
        return method

    async def _data(self, frame: Frame) -> None:
        running = self._running.get(frame.stream)
        if running is None and frame.stream > self._last:
            raise InvalidArgument(f"stream {frame.stream} was never opened")
        if running is None or running.inbox is None:
            return  # it has ended meanwhile, or takes no data
        if not frame.flags & Flag.NO_DATA and (frame.data or not frame.flags & Flag.REMOTE_CLOSED):
            await running.inbox.put(frame.data)
        if frame.flags & Flag.REMOTE_CLOSED:
            running.inbox.end()

    async def _run(self, asked: Frame, method: Method, request: Request, inbox: Inbox | None) -> None:
        try:
            answer = await self._limited(asked, method, request, inbox)
            frame = _answer(asked.stream, method, answer)
        except DrupeError as error:
            frame = _refusal(asked.stream, error)
        except Exception:
            log.exception("%s/%s failed", request.service, request.method)
            frame = _refusal(
                asked.stream, InternalError(f"{request.service}/{request.method} failed: see the daemon's log")
            )
        finally:
            if inbox is not None:
                inbox.abandon()
        await self._answer(frame)

    async def _answer(self, frame: Frame) -> None:
        with contextlib.suppress(DrupeError):  # it is gone
            try:
                await self._link.send(frame)
            except ResourceExhausted as error:
                await self._link.send(_refusal(frame.stream, error))

    async def _limited(self, asked: Frame, method: Method, request: Request, inbox: Inbox | None) -> Message | None:
        limit_s = envelope.timeout_of(request)
        deadline = None if limit_s is None else asyncio.get_running_loop().time() + limit_s
        metadata = envelope.metadata_of(request.metadata)
        again = bool(asked.flags & Flag.AGAIN)
        call = Call(request.service, request.method, metadata, deadline, self._peer, again)
        given: object
        if inbox is None:
            given = parse(method.request, request.payload)
        else:
            given = ServerStream(self._link, asked.stream, inbox, method.request, sends=method.answers_stream)
        try:
            async with timeout(limit_s):
                return await method.handler(call, given)
        except TimeoutError:
            raise DeadlineExceeded(f"{request.method} took longer than {limit_s:g} s", may_have_run=True) from None


def _inbox(method: Method, request: Request, flags: int) -> Inbox:
    """With the request's own message in it, where that is one: of a stream of requests, only if it is not empty."""
    inbox = Inbox()
    if request.payload or not method.requests_stream:
        inbox.prime(request.payload)
    if flags & Flag.REMOTE_CLOSED or not method.requests_stream:
        inbox.end()
    return inbox


def _answer(stream: int, method: Method, answer: Message | None) -> Frame:
    if method.answers_stream:
        return Frame(stream, Kind.DATA, LAST)
    if answer is None:
        raise InternalError("the method returned no answer")
    return Frame(stream, Kind.RESPONSE, 0, envelope.success(answer))


def _refusal(stream: int, error: DrupeError) -> Frame:
    return Frame(stream, Kind.RESPONSE, 0, envelope.failure(error))
