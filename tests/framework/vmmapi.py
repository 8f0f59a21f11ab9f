"""A server that speaks a hypervisor's REST API as far as a driver can tell: each request is judged by the published
schema (framework/vmms/*.txt), what is wrong is refused and remembered. It runs no machine.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h11

SCHEMAS = Path(__file__).with_name("vmms")
_SIMPLE = {"str": str, "int": int, "bool": bool, "object": dict}


class SchemaError(ValueError):
    """What is wrong with a request."""


@dataclass
class Schema:
    """requests: (method, pattern of the path) to (type of the body, status of success)."""

    requests: dict[tuple[str, re.Pattern[str]], tuple[str, int]] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, name: str) -> Schema:
        """One of framework/vmms."""
        schema = cls()
        text = (SCHEMAS / f"{name}.txt").read_text()
        for line in re.sub(r"\n +", " ", re.sub(r"(?m)^#.*\n", "", text)).splitlines():
            if match := re.match(r"([A-Z]+) (/\S*) (\S+) (\S+)$", line):
                method, path, body, statuses = match.groups()
                pattern = re.compile(re.sub(r"\\\{\w+\\\}", r"(\\w+)", re.escape(path)) + "$")
                schema.requests[method, pattern] = (body, int(statuses.split(",")[-1]))
            else:
                name, _, words = re.match(r"(\w+)( =|:) (.*)$", line).groups()  # type: ignore[union-attr]
                schema.types[name] = words
        return schema

    def check(self, method: str, path: str, body: Any) -> int:
        """The status of success. Raises SchemaError."""
        for (known, pattern), (kind, status) in self.requests.items():
            if known == method and (match := pattern.match(path)):
                if kind == "-" and body is not None:
                    raise SchemaError(f"{method} {path} takes no body")
                if kind != "-":
                    self._check(kind, body, kind)
                    self._same_id(match.groups(), body)
                return status
        raise SchemaError(f"there is no {method} {path}")

    def _same_id(self, groups: tuple[str, ...], body: Any) -> None:
        for name in ("drive_id", "iface_id"):
            if groups and name in body and body[name] != groups[0]:
                raise SchemaError(f"{name} is not that of the path")

    def _check(self, kind: str, value: Any, where: str) -> None:
        if kind.startswith("["):
            if not isinstance(value, list):
                raise SchemaError(f"{where} is no list")
            for item in value:
                self._check(kind[1:-1], item, f"{where}[]")
        elif "|" in kind:
            if value not in kind.split("|"):
                raise SchemaError(f"{where} is {value!r}, not one of {kind}")
        elif kind in self.types:
            if ":" in self.types[kind]:
                self._check_object(kind, value, where)
            else:
                self._check(self.types[kind], value, where)
        else:
            self._check_simple(kind, value, where)

    def _check_object(self, kind: str, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise SchemaError(f"{where} is no object")
        fields = {}
        for word in self.types[kind].split():
            name, _, of = word.partition(":")
            fields[name.rstrip("!")] = of
            if name.endswith("!") and name[:-1] not in value:
                raise SchemaError(f"{where} lacks {name[:-1]}")
        for name, item in value.items():
            if name not in fields:
                raise SchemaError(f"{where} has an unknown field {name}")
            self._check(fields[name], item, f"{where}.{name}")

    def _check_simple(self, kind: str, value: Any, where: str) -> None:
        base, *limits = re.split("(>=|<=)", kind)
        if not isinstance(value, _SIMPLE[base]) or (base == "int" and isinstance(value, bool)):
            raise SchemaError(f"{where} is {value!r}, not {base}")
        for sign, limit in zip(limits[::2], limits[1::2], strict=True):
            if (value < int(limit)) if sign == ">=" else (value > int(limit)):
                raise SchemaError(f"{where} is {value}, not {sign} {limit}")


@dataclass
class Request:
    """fds: how many descriptors came along."""

    method: str
    path: str
    body: Any
    fds: int = 0

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


Answer = tuple[int, Any]
Model = Callable[[Request], Answer | None]


@dataclass
class VmmApi:
    """model: what the program would answer, None for the status of success and nothing else. faults: "METHOD path" to
    what happens instead: "hang", "hang up", "half" an answer, "garbage", or a status with words."""

    schema: Schema
    model: Model
    base: str = ""
    last: str = ""  # the request after whose answer the program ends
    asked: list[Request] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    faults: dict[str, Any] = field(default_factory=dict)
    _held: list[socket.socket] = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @asynccontextmanager
    async def serving(self, path: Path) -> Any:
        """For as long as the block."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.setblocking(False)
            listener.bind(str(path))
            listener.listen()
            self._accepting = asyncio.ensure_future(self._accept(listener))
            self._listener = listener
            try:
                yield self
            finally:
                await self.die(for_good=True)
                path.unlink()

    def end_soon(self) -> bool:
        """For what cannot wait: `die`, as soon as others have had their turn."""
        self._ending = asyncio.ensure_future(self.die(for_good=True))
        return True

    async def die(self, *, for_good: bool = False) -> None:
        """As a program that is killed: every connection ends, and with `for_good` there is none any more."""
        if for_good:
            self._accepting.cancel()
            self._listener.close()
        others = self._tasks - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for sock in self._held:
            sock.close()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(listener)
            self._held.append(sock)
            task = asyncio.ensure_future(self._serve(sock))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, sock: socket.socket) -> None:
        parser, fds = h11.Connection(h11.SERVER), 0
        head: h11.Request | None = None
        content = b""
        with sock:
            while not isinstance(event := parser.next_event(), h11.ConnectionClosed):
                if event is h11.NEED_DATA:
                    data, found = await receive(sock)
                    fds += found
                    parser.receive_data(data)
                elif isinstance(event, h11.Request):
                    head, content = event, b""
                elif isinstance(event, h11.Data):
                    content += event.data
                elif isinstance(event, h11.EndOfMessage) and head:
                    body = json.loads(content) if content else None
                    path = head.target.decode().removeprefix(self.base)
                    if not await self._answer(sock, parser, Request(head.method.decode(), path, body, fds)):
                        return
                    if parser.our_state is h11.DONE and parser.their_state is h11.DONE:
                        parser.start_next_cycle()
                    fds = 0

    async def _answer(self, sock: socket.socket, parser: h11.Connection, request: Request) -> bool:
        """Whether the connection goes on."""
        loop = asyncio.get_running_loop()
        self.asked.append(request)
        fault = self.faults.get(str(request))
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault == "hang up":
            return False
        if fault in ("half", "garbage"):
            text = b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{" if fault == "half" else b"\0\xff what?\r\n\r\n"
            await loop.sock_sendall(sock, text)
            return False
        status, body = fault or self._judge(request)
        content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = [("Content-Length", str(len(content)))]
        data = parser.send(h11.Response(status_code=status, headers=headers)) or b""
        data += (parser.send(h11.Data(data=content)) or b"") if content else b""
        await loop.sock_sendall(sock, data + (parser.send(h11.EndOfMessage()) or b""))
        if str(request) == self.last:
            self.end_soon()
        return True

    def _judge(self, request: Request) -> Answer:
        try:
            status = self.schema.check(request.method, request.path, request.body)
        except SchemaError as error:
            self.wrong.append(f"{request}: {error}")
            return 400, {"fault_message": str(error)}
        return self.model(request) or (status, None)


async def receive(sock: socket.socket) -> tuple[bytes, int]:
    """Bytes, and how many descriptors came with them."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(sock, lambda: ready.done() or ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(sock)
    data, fds, _, _ = socket.recv_fds(sock, 65536, 8)
    for fd in fds:
        socket.close(fd)
    return data, len(fds)
