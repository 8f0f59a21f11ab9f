"""What a server offers: services, their methods, and what a handler is given."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import DecodeError, Message

from drupe.errors import InvalidArgument, InvalidState
from drupe.linux.unix_sockets import Peer
from drupe.rpc.ttrpc.envelope import Metadata
from drupe.rpc.ttrpc.frames import Flag, Frame, Kind
from drupe.rpc.ttrpc.inbox import Inbox
from drupe.rpc.ttrpc.link import Link

Req = TypeVar("Req", bound=Message)
Resp = TypeVar("Resp", bound=Message)


@dataclass(frozen=True, slots=True)
class Call:
    """Who calls what. deadline: of the event loop's clock; None: no limit. peer: None where the socket has none. again:
    a server before this one may have carried it out, and did not say so."""

    service: str
    method: str
    metadata: Metadata
    deadline: float | None
    peer: Peer | None
    again: bool = False


class ServerStream(Generic[Req, Resp]):
    """Messages to and from the caller of a stream: iterate it for what comes."""

    def __init__(self, link: Link, stream: int, inbox: Inbox, request: type[Req], *, sends: bool) -> None:
        self._link = link
        self._stream = stream
        self._inbox = inbox
        self._request = request
        self._sends = sends

    async def __aiter__(self) -> AsyncIterator[Req]:
        while (message := await self.receive()) is not None:
            yield message

    async def receive(self) -> Req | None:
        """The next message; None: the caller sends no more. Raises InvalidArgument for bytes that are none."""
        data = await self._inbox.get()
        return None if data is None else parse(self._request, data)

    async def send(self, message: Resp) -> None:
        """Send one; waits while the caller does not read. InvalidState where the method does not stream."""
        if not self._sends:
            raise InvalidState("this method answers once, by returning")
        await self._link.send(Frame(self._stream, Kind.DATA, 0, message.SerializeToString()))


@dataclass(frozen=True, slots=True)
class Method:
    """request: the message that callers send. handler: takes (Call, request) when nothing streams, else (Call,
    ServerStream), and returns the answer, or None when answers stream. Errors are DrupeError."""

    request: type[Message]
    handler: Callable[[Call, Any], Awaitable[Message | None]]
    requests_stream: bool = False
    answers_stream: bool = False

    @property
    def streams(self) -> bool:
        return self.requests_stream or self.answers_stream


Services = Mapping[str, Mapping[str, Method]]
"""Full name of a service ("containerd.task.v3.Task") to its methods by name."""


def unary(request: type[Req], handler: Callable[[Call, Req], Awaitable[Message]]) -> Method:
    """A method with one request and one answer."""
    return Method(request, handler)


def streaming(
    request: type[Req],
    handler: Callable[[Call, ServerStream[Req, Any]], Awaitable[Message | None]],
    *,
    requests: bool,
    answers: bool,
) -> Method:
    """A method whose requests, answers or both stream. It returns its answer where answers do not stream."""
    return Method(request, handler, requests, answers)


def parse(kind: type[Req], data: bytes) -> Req:
    """A message from its bytes. Raises InvalidArgument."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidArgument(f"not a {kind.DESCRIPTOR.full_name}", cause=str(error)) from None


@dataclass(slots=True)
class Running:
    """A call in progress. inbox: None where nothing streams in."""

    task: asyncio.Task[None]
    inbox: Inbox | None


LAST = Flag.REMOTE_CLOSED | Flag.NO_DATA
