"""The calling end of a ttrpc connection (asyncio)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

from google.protobuf.message import DecodeError, Message

from drupe.errors import DataLoss, DeadlineExceeded, DrupeError, InvalidState, Unavailable
from drupe.rpc.pace import Pace
from drupe.rpc.timeouts import timeout_at
from drupe.rpc.ttrpc import envelope
from drupe.rpc.ttrpc.frames import MAX_STREAM, Flag, Frame, Kind, Oversized, too_big
from drupe.rpc.ttrpc.inbox import Inbox
from drupe.rpc.ttrpc.link import Link, lost
from drupe.rpc.ttrpc.service import LAST

Resp = TypeVar("Resp", bound=Message)
# Frames in a row that nobody takes, before the peer is given up: more than one that is honest can have under way.
MAX_DROPPED = 65536

Headers = Mapping[str, Sequence[str] | str]


class Client:
    """One connection; any number of calls side by side. Use `connect`, or `over` with a socket of any family.

    ttrpc has no flow control per stream: an open stream whose answers nobody takes stops the others of its connection.
    pace: of the frames that the server may send; None: as it likes.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, pace: Pace | None = None) -> None:
        self._link = Link(reader, writer, pace)
        self._open: dict[int, Inbox] = {}
        self._next = 1
        self._ended = False
        self._dropped = 0
        self._reading = asyncio.get_running_loop().create_task(self._read(), name="ttrpc client")

    @classmethod
    async def connect(cls, path: Path | str) -> Client:
        """To a server's unix socket. Raises Unavailable."""
        try:
            return cls(*await asyncio.open_unix_connection(str(path)))
        except OSError as error:
            raise Unavailable(f"cannot connect to {path}", cause=error.strerror or str(error)) from None

    @classmethod
    async def over(cls, sock: socket.socket) -> Client:
        """Over a connected stream socket (unix, vsock, …), which the client owns from now on."""
        return cls(*await asyncio.open_connection(sock=sock))

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @property
    def is_open(self) -> bool:
        """Whether the server has not hung up."""
        return not self._ended

    async def close(self) -> None:
        """Hang up: the server cancels what still runs, and calls waiting here fail with Unavailable."""
        self._link.close()
        self._reading.cancel()
        await asyncio.wait([self._reading])
        await self._link.closed(within_s=1)

    def give_up(self, error: DrupeError) -> None:
        """Hang up at once: what still waits to be sent is dropped, and calls waiting here fail with `error`."""
        self._end(error)
        self._link.cut()

    async def call(
        self,
        service: str,
        method: str,
        request: Message,
        answer: type[Resp],
        *,
        timeout_s: float | None = None,
        metadata: Headers | None = None,
    ) -> Resp:
        """One request, one answer. Raises what the server answered as an error of drupe.errors, DeadlineExceeded when
        `timeout_s` passed here first, Unavailable when the connection ends."""
        begun = self._begin(service, method, answer, request, flags=0, timeout_s=timeout_s, metadata=metadata)
        async with begun as stream:
            return await stream.result()

    def stream(
        self,
        service: str,
        method: str,
        answer: type[Resp],
        request: Message | None = None,
        *,
        timeout_s: float | None = None,
        metadata: Headers | None = None,
    ) -> ClientStream[Resp]:
        """A call that streams. With `request` it is the only one, and answers stream; without, requests are sent with
        `ClientStream.send`. Enter it with `async with`; leaving early gives the call up."""
        # NO_DATA: the Rust server would take the empty payload for a first message; the Go one does not look at it.
        flags = Flag.REMOTE_OPEN | Flag.NO_DATA if request is None else Flag.REMOTE_CLOSED
        return self._begin(service, method, answer, request, flags=flags, timeout_s=timeout_s, metadata=metadata)

    def _begin(
        self,
        service: str,
        method: str,
        answer: type[Resp],
        request: Message | None,
        *,
        flags: int,
        timeout_s: float | None,
        metadata: Headers | None,
    ) -> ClientStream[Resp]:
        payload = b"" if request is None else request.SerializeToString()
        data = envelope.request(service, method, payload, timeout_s=timeout_s, metadata=metadata or {})
        return ClientStream(self, f"{service}/{method}", answer, request=data, flags=flags, timeout_s=timeout_s)

    def open(self, flags: int, data: bytes) -> tuple[int, Inbox]:
        """Send a request frame under the next stream id; for ClientStream."""
        if self._ended:
            raise lost(may_have_run=False)
        if self._next > MAX_STREAM:
            raise Unavailable("all stream ids of this ttrpc connection are used", hint="connect anew")
        stream = self._next
        self._link.post(Frame(stream, Kind.REQUEST, flags, data))
        self._next += 2
        self._open[stream] = inbox = Inbox()
        return stream, inbox

    def forget(self, stream: int) -> None:
        """What comes for it from now on is dropped; for ClientStream."""
        if (inbox := self._open.pop(stream, None)) is not None:
            inbox.abandon()

    @property
    def link(self) -> Link:
        return self._link

    async def _read(self) -> None:
        try:
            async for frame in self._link.frames():
                await self._take(frame)
        except DataLoss as error:
            self._end(error)
        finally:
            self._end(lost(may_have_run=True))

    def _end(self, error: DrupeError) -> None:
        self._ended = True
        self._link.close()
        for inbox in self._open.values():
            inbox.end(error)

    async def _take(self, frame: Frame | Oversized) -> None:
        inbox = self._open.get(frame.stream)
        if inbox is None:
            self._drop(frame.stream)
            return
        self._dropped = 0
        if isinstance(frame, Oversized):
            inbox.end(too_big(frame.size_bytes))
        elif frame.kind == Kind.RESPONSE:
            await self._answered(inbox, frame.data)
        elif frame.kind == Kind.DATA:
            if not frame.flags & Flag.NO_DATA:
                await inbox.put(frame.data)
            if frame.flags & Flag.REMOTE_CLOSED:
                inbox.end()

    def _drop(self, stream: int) -> None:
        """Of a call that was given up meanwhile. A peer that goes on and on with those, or speaks of calls that were
        never made, only means to keep us busy."""
        self._dropped += 1
        if self._dropped > MAX_DROPPED or stream >= self._next or stream % 2 == 0:
            raise DataLoss("the ttrpc peer sends what nobody has asked for", hint="is it a ttrpc server at all?")

    async def _answered(self, inbox: Inbox, data: bytes) -> None:
        try:
            payload = envelope.parse_answer(data)
        except DrupeError as error:
            inbox.end(error)
            return
        await inbox.put(payload)
        inbox.end()


class ClientStream(Generic[Resp]):
    """A call under way: `send` and `end` for requests; iterate it for answers, or take the one `result`."""

    def __init__(
        self, client: Client, name: str, answer: type[Resp], *, request: bytes, flags: int, timeout_s: float | None
    ) -> None:
        self._client = client
        self._name = name
        self._request = request
        self._answer = answer
        self._flags = flags
        self._timeout_s = timeout_s
        self._sending = bool(flags & Flag.REMOTE_OPEN)

    async def __aenter__(self) -> ClientStream[Resp]:
        self._deadline = None if self._timeout_s is None else asyncio.get_running_loop().time() + self._timeout_s
        self._stream, self._inbox = self._client.open(self._flags, self._request)
        try:
            with self._limited():
                async with timeout_at(self._deadline):
                    await self._client.link.flush()
        except BaseException:
            self._client.forget(self._stream)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sending:  # the only way to let the server know
            with contextlib.suppress(DrupeError):
                self._client.link.post(Frame(self._stream, Kind.DATA, LAST))
        self._client.forget(self._stream)

    async def __aiter__(self) -> AsyncIterator[Resp]:
        while (message := await self.receive()) is not None:
            yield message

    async def send(self, message: Message) -> None:
        """Send one more request; waits while the server does not read. InvalidState after `end`."""
        if not self._sending:
            raise InvalidState(f"{self._name}: nothing more can be sent")
        with self._limited():
            async with timeout_at(self._deadline):
                await self._client.link.send(Frame(self._stream, Kind.DATA, 0, message.SerializeToString()))

    async def end(self) -> None:
        """Say that no more requests come. Idempotent."""
        if self._sending:
            self._sending = False
            await self._client.link.send(Frame(self._stream, Kind.DATA, LAST))

    async def receive(self) -> Resp | None:
        """The next answer; None at the end. Raises as `Client.call`."""
        with self._limited():
            async with timeout_at(self._deadline):
                data = await self._inbox.get()
        return None if data is None else self._parse(data)

    async def result(self) -> Resp:
        """The one answer of a method whose answers do not stream; says `end` first."""
        await self.end()
        message = await self.receive()
        if message is None:
            raise DataLoss(f"{self._name}: the stream ended without an answer", may_have_run=True)
        return message

    def _parse(self, data: bytes) -> Resp:
        try:
            return self._answer.FromString(data)
        except DecodeError as error:
            name = self._answer.DESCRIPTOR.full_name
            raise DataLoss(f"{self._name}: not a {name}", cause=str(error), may_have_run=True) from None

    @contextlib.contextmanager
    def _limited(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            raise DeadlineExceeded(
                f"{self._name} did not answer within {self._timeout_s:g} s", may_have_run=True
            ) from None
