"""The asyncio client of the control socket: the names and meanings of `rpc.client`, awaitable."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import Any

from drupe.errors import DeadlineExceeded, DrupeError, Unavailable
from drupe.linux.unix_sockets import send_fds
from drupe.rpc.client import ANSWER_GRACE_S, CONNECT_TIMEOUT_S, connect_error, gone
from drupe.rpc.frames import Decoder, Frame, Hello, Invoke, check_hello, encode
from drupe.rpc.methods import check_fds, check_params, lookup
from drupe.rpc.progress import Progress
from drupe.rpc.timeouts import timeout, timeout_at
from drupe.spec.control import Method

_READ_BYTES = 256 * 1024
_KEEP_IDLE = 64


class AsyncClient:
    """Calls the daemon behind the socket at `path`; any number of calls may run at once. root: as `Client`."""

    def __init__(self, path: str, root: str = "") -> None:
        """No I/O: the first call connects. `connect` does it at once."""
        self.path = path
        self.root = root
        self._idle: list[AsyncLink] = []
        self._closed = False

    @classmethod
    async def connect(cls, path: str, timeout_s: float = CONNECT_TIMEOUT_S, *, root: str = "") -> AsyncClient:
        """A client that has shaken hands. Raises Unavailable (nobody there, wrong protocol), PermissionDenied, or
        InvalidState (another root)."""
        client = cls(path, root)
        client._idle.append(await AsyncLink.open(path, timeout_s, root))
        return client

    async def call(
        self,
        method: str,
        params: Any = None,
        *,
        fds: Mapping[str, int] | None = None,
        timeout_s: float | None = None,
        on_item: Callable[[Any], None] | None = None,
    ) -> Any:
        """Call and wait for the result record; streamed items go to `on_item`. Raises as `Client.call` does."""
        async with await self.stream(method, params, fds=fds, timeout_s=timeout_s) as stream:
            async for item in stream:
                if on_item is not None:
                    on_item(item)
            return stream.result

    async def stream(
        self,
        method: str,
        params: Any = None,
        *,
        fds: Mapping[str, int] | None = None,
        timeout_s: float | None = None,
    ) -> AsyncStream:
        """Start a call whose items are iterated over; closing the stream before its end cancels the call."""
        entry, fds = lookup(method), fds or {}
        check_fds(entry, fds)
        data = encode(Invoke(1, method, check_params(entry, params), tuple(fds), timeout_s))
        now = asyncio.get_running_loop().time()
        deadline = None if timeout_s is None else now + timeout_s + ANSWER_GRACE_S
        link = await self._checkout()
        try:
            async with timeout_at(deadline):
                await link.send(data, tuple(fds.values()))
        except BaseException:
            link.close()
            raise
        return AsyncStream(self, link, entry, deadline)

    async def close(self) -> None:
        """Close idle connections; running calls end as they would."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def _checkout(self) -> AsyncLink:
        if self._closed:
            raise Unavailable("the connection to the daemon was closed by this program")
        while self._idle:
            link = self._idle.pop()
            if link.is_fresh():
                return link
            link.close()  # the daemon was restarted since
        return await AsyncLink.open(self.path, CONNECT_TIMEOUT_S, self.root)

    def checkin(self, link: AsyncLink) -> None:
        """Take back the connection of a call that has ended."""
        if self._closed or len(self._idle) >= _KEEP_IDLE:
            link.close()
        else:
            self._idle.append(link)


class AsyncStream(AsyncIterator[Any]):
    """A running call: iterate over its items, then read `result`. A context manager; closing early cancels."""

    def __init__(self, client: AsyncClient, link: AsyncLink, method: Method, deadline: float | None) -> None:
        self._client = client
        self._link: AsyncLink | None = link
        self._progress = Progress(method)
        self._deadline = deadline

    async def __anext__(self) -> Any:
        while not self._progress.items:
            if await self.advance() and not self._progress.items:
                self._progress.raise_error()
                raise StopAsyncIteration
        return self._progress.items.popleft()

    @property
    def result(self) -> Any:
        """What the call answered, once it has ended. Raises its error; Unavailable when it was closed before."""
        return self._progress.result

    async def wait(self) -> Any:
        """Wait for the end and return the result; items are kept for iteration."""
        while not await self.advance():
            pass
        return self.result

    async def advance(self, timeout_s: float | None = None) -> bool:
        """Wait at most `timeout_s` for news; True once the call has ended. Being cancelled here leaves it intact."""
        if self._link is None:
            return True
        now = asyncio.get_running_loop().time
        limits = [None if timeout_s is None else now() + timeout_s, self._deadline]
        try:
            async with timeout_at(min((at for at in limits if at is not None), default=None)):
                self._progress.take(await self._link.receive())
        except TimeoutError:
            if self._deadline is not None and now() >= self._deadline:
                name = self._progress.method.name
                self._progress.break_off(DeadlineExceeded(f"{name} took too long", may_have_run=True))
        except DrupeError as error:
            self._progress.break_off(error)
        self._release_when_ended()
        return self._progress.ended

    async def close(self) -> None:
        """Cancel the call unless it has ended."""
        self._progress.cancel()
        self._release_when_ended()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def _release_when_ended(self) -> None:
        link = self._link
        if link is None or not self._progress.ended:
            return
        self._link = None
        if self._progress.broken:
            link.close()
        else:
            self._client.checkin(link)


class AsyncLink:
    """One connected non-blocking socket, used by one call at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder()
        self._inbox: deque[Frame] = deque()

    @classmethod
    async def open(cls, path: str, timeout_s: float, root: str = "") -> AsyncLink:
        """Connect and shake hands. root: as `Client`."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        link = cls(sock)
        try:
            async with timeout(timeout_s):
                await _connect(sock, path)
                with suppress(Unavailable):  # a peer that hung up has said why
                    await link.send(encode(Hello()), ())
                check_hello(await link.receive(), root)
        except TimeoutError:
            link.close()
            raise Unavailable(f"the daemon at {path} did not answer within {timeout_s:g} s") from None
        except BaseException:
            link.close()
            raise
        return link

    def is_fresh(self) -> bool:
        """Whether an idle connection can still be used: open, and nothing unasked has arrived."""
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except OSError as error:
            return isinstance(error, BlockingIOError)
        return False

    async def send(self, data: bytes, fds: tuple[int, ...]) -> None:
        """Send all of `data`, the descriptors with its first byte. Raises Unavailable."""
        try:
            sent = await self._send_first(data, fds)
            if sent < len(data):
                await self._loop.sock_sendall(self._sock, memoryview(data)[sent:])
        except OSError as error:
            raise gone(error) from None

    async def _send_first(self, data: bytes, fds: tuple[int, ...]) -> int:
        while True:
            try:
                return send_fds(self._sock, data, fds) if fds else self._sock.send(data)
            except BlockingIOError:
                await _ready(self._loop.add_writer, self._loop.remove_writer, self._sock.fileno())

    async def receive(self) -> Frame:
        """The next frame. Raises Unavailable when the peer hung up, DataLoss. May be cancelled without loss."""
        while not self._inbox:
            try:
                data = self._sock.recv(_READ_BYTES)
            except BlockingIOError:
                await _ready(self._loop.add_reader, self._loop.remove_reader, self._sock.fileno())
                continue
            except OSError as error:
                raise gone(error) from None
            if not data:
                raise gone(None)
            self._inbox.extend(frame for frame, _ in self._decoder.feed(data))
        return self._inbox.popleft()

    def close(self) -> None:
        """Hang up."""
        self._sock.close()


async def _connect(sock: socket.socket, path: str) -> None:
    while True:
        try:
            sock.connect(path)
            return
        except BlockingIOError:  # unix(7): EAGAIN, the backlog is full; the socket never polls, so look again soon
            await asyncio.sleep(0.002)
        except OSError as error:
            raise connect_error(path, error) from None


async def _ready(add: Callable[..., None], remove: Callable[[int], bool], fd: int) -> None:
    """Wait until `fd` can be read (or written). Takes no byte itself, so being cancelled loses none."""
    ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    add(fd, _resolve, ready)
    try:
        await ready
    finally:
        remove(fd)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
