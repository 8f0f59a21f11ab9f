"""The control channel of programs that speak HTTP/1.1 with JSON over a Unix socket, with drupe's errors and deadlines.

h11 speaks the protocol; the socket is ours, because descriptors travel along with some requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h11

from drupe.errors import DeadlineExceeded, HelperFailed, Unavailable
from drupe.hypervisors.words import readable
from drupe.linux.unix_sockets import short_name
from drupe.rpc.timeouts import timeout

ANSWERS_WITHIN_S = 10.0
_MAX_ANSWER_BYTES = 4 << 20
_PIECE_BYTES = 65536
_RETRY_S = 0.01


class Rest:
    """One program's API; a connection for each call. base: path before each call's.

    Every call raises Unavailable when the program has gone, DeadlineExceeded when it hangs, HelperFailed with its own
    words when it refuses.
    """

    def __init__(self, path: Path, program: str, *, base: str = "") -> None:
        self._path, self._program, self._base = path, program, base

    async def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        fds: Sequence[int] = (),
        timeout_s: float = ANSWERS_WITHIN_S,
    ) -> Any:
        """One request; its JSON answer, or None when that is empty. fds: sent along, still the caller's."""
        what = f"{method} {path}"
        try:
            async with timeout(timeout_s):
                status, content = await self._exchange(method, self._base + path, body, fds)
        except TimeoutError:
            late = f"{self._program} did not answer {what} within {timeout_s:g} s"
            raise DeadlineExceeded(late, stage="vmm") from None
        except OSError as error:
            raise self._gone(f"{what}: {error.strerror or error}") from None
        except h11.RemoteProtocolError as error:
            raise HelperFailed(f"{self._program} answered {what} with what is no HTTP", cause=str(error)) from None
        if status >= 400:
            raise HelperFailed(f"{self._program} refused {what}", stage="vmm", cause=_words(status, content))
        return self._json(content, what)

    async def _exchange(
        self, method: str, path: str, body: Mapping[str, Any] | None, fds: Sequence[int]
    ) -> tuple[int, bytes]:
        loop = asyncio.get_running_loop()
        parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=_PIECE_BYTES)
        data = _request(parser, method, path, body)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as sock:
            with short_name(self._path) as name:
                await loop.sock_connect(sock, name)
            sent = socket.send_fds(sock, [data], list(fds)) if fds else 0
            await loop.sock_sendall(sock, data[sent:])
            return await self._answer(sock, parser)

    async def _answer(self, sock: socket.socket, parser: h11.Connection) -> tuple[int, bytes]:
        """Status and content. EOF before the end is a lost program."""
        loop = asyncio.get_running_loop()
        status, content = 0, bytearray()
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                piece = await loop.sock_recv(sock, _PIECE_BYTES)
                if not piece and not status:
                    raise ConnectionResetError(None, "it hung up")
                parser.receive_data(piece)
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                content += event.data
                if len(content) > _MAX_ANSWER_BYTES:
                    raise h11.RemoteProtocolError(f"more than {_MAX_ANSWER_BYTES} bytes")
            elif isinstance(event, h11.EndOfMessage):
                return status, bytes(content)

    def _json(self, content: bytes, what: str) -> Any:
        try:
            return json.loads(content) if content.strip() else None
        except (ValueError, RecursionError):
            raise HelperFailed(f"{self._program} answered {what} with what is no JSON", stage="vmm") from None

    def _gone(self, cause: str) -> Unavailable:
        return Unavailable(f"{self._program} has gone", stage="vmm", cause=cause)

    async def ready(self, *, timeout_s: float) -> None:
        """Wait until the program listens. DeadlineExceeded when it does not."""
        try:
            async with timeout(timeout_s):
                while not await self._listens():  # noqa: ASYNC110 nothing tells of a listen(2)
                    await asyncio.sleep(_RETRY_S)
        except TimeoutError:
            late = f"{self._program} was not ready within {timeout_s:g} s"
            raise DeadlineExceeded(late, stage="vmm", hint="its output may say why") from None

    async def _listens(self) -> bool:
        try:
            (await Lifeline.connect(self._path)).close()
        except OSError:
            return False
        return True

    async def lifeline(self) -> Lifeline:
        """See there. Raises Unavailable when nobody listens."""
        try:
            return await Lifeline.connect(self._path)
        except OSError as error:
            raise self._gone(error.strerror or "") from None


class Lifeline:
    """A connection on which nothing is said: its end is the program's end, known at once and without asking."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def connect(cls, path: Path) -> Lifeline:
        with short_name(path) as name:
            return cls(*await asyncio.open_unix_connection(name))

    async def ended(self) -> None:
        """Return once the program has hung up."""
        with contextlib.suppress(ConnectionError):
            while await self._reader.read(_PIECE_BYTES):
                pass

    def close(self) -> None:
        self._writer.close()


def _request(parser: h11.Connection, method: str, path: str, body: Mapping[str, Any] | None) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    headers = [("Host", "localhost"), ("Accept", "application/json")]
    if body is not None:
        headers += [("Content-Type", "application/json"), ("Content-Length", str(len(content)))]
    data = parser.send(h11.Request(method=method, target=path, headers=headers)) or b""
    data += (parser.send(h11.Data(data=content)) or b"") if content else b""
    return data + (parser.send(h11.EndOfMessage()) or b"")


def _words(status: int, content: bytes) -> str:
    """What a refusal says: text, a JSON list of texts, or an object with one field."""
    text = content[:2000].decode(errors="replace").strip()
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(text)
        parts = found.values() if isinstance(found, dict) else found if isinstance(found, list) else [found]
        text = ": ".join(str(part) for part in parts)
    return readable(f"{status} {text}")
