"""A QMP server that stands for StratoVirt: its command line and each command are judged by the published ones
(framework/vmms/stratovirt.txt), what is wrong is refused and remembered. It runs no machine.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from framework.vmmapi import Schema, SchemaError, receive

GREETING = {"QMP": {"version": {"qemu": {"micro": 1, "minor": 0, "major": 5}, "package": "StratoVirt-2.5.0"},
                    "capabilities": []}}  # fmt: skip
_KINDS = ("-object", "-netdev", "-chardev", "-device")  # whose first word is their kind
_FIRST = {"-machine": "type", "-qmp": "address"}


class Refusal(Exception):
    """What the program says to a command that it does not carry out."""


def judge_command_line(schema: Schema, argv: Sequence[str]) -> dict[str, list[Any]]:
    """Its arguments, by their name and kind. Raises SchemaError."""
    found: dict[str, list[Any]] = {}
    for name, text in zip(argv[1::2], argv[2::2], strict=True):
        words = text.split(",")
        path = f"/{name}/{words[0]}" if name in _KINDS else f"/{name}"
        plain = any(known == "ARG" and kind == "str" and where.match(path)
                    for (known, where), (kind, _) in schema.requests.items())  # fmt: skip
        value: Any = text if plain else _options(name, words)
        schema.check("ARG", path, value)
        found.setdefault(path[1:], []).append(value)
    return found


def _options(name: str, words: list[str]) -> dict[str, str]:
    if name in _KINDS:
        words = words[1:]
    elif name in _FIRST:
        words = [f"{_FIRST[name]}={words[0]}", *words[1:]]
    return {key: value if sign else "set" for key, sign, value in (word.partition("=") for word in words)}


class StratoModel:
    """What it answers: a microvm with four places for disks and two for interfaces."""

    def __init__(self, arguments: dict[str, list[Any]]) -> None:
        self.arguments = arguments
        self.state, self.saved = "running", "None"
        self.backends: dict[str, str] = {}
        self.places: dict[tuple[str, int], str] = {}
        self.fds: dict[str, int] = {}
        for sort, device in (("blk", "virtio-blk-device"), ("net", "virtio-net-device")):
            for place, one in enumerate(arguments.get(f"-device/{device}", [])):
                self.places[sort, place] = one["id"]
                self._backend(one["id"], sort)
        if "-incoming" in arguments:
            directory = Path(arguments["-incoming"][0].removeprefix("file:"))
            assert (directory / "state").read_bytes() == (directory / "memory").read_bytes() == b"saved"
            self.state = "paused"

    def __call__(self, command: str, arguments: Any, fds: int, tell: Callable[..., None]) -> Any:
        name = command.replace("-", "_")
        self._fds, self._tell = fds, tell
        return getattr(self, f"do_{name}", lambda _: {})(arguments)

    def _backend(self, name: str, sort: str) -> None:
        if name in self.backends:
            raise Refusal(f"{name} is already registered.")
        self.backends[name] = sort

    def do_stop(self, _: Any) -> Any:
        self.state = "paused"
        self._tell("STOP")
        return {}

    def do_cont(self, _: Any) -> Any:
        self.state = "running"
        self._tell("RESUME")
        return {}

    def do_query_status(self, _: Any) -> Any:
        return {"running": self.state == "running", "singlestep": False, "status": self.state}

    def do_query_cpus(self, _: Any) -> Any:
        return [{"CPU": n, "thread_id": 1} for n in range(int(self.arguments["-smp"][0]))]

    def do_query_migrate(self, _: Any) -> Any:
        return {"status": self.saved}

    def do_migrate(self, arguments: Any) -> Any:
        mode, _, directory = arguments["uri"].partition(":")
        if mode != "file" or self.state != "paused" or self.arguments["-machine"][0].get("mem-share") == "on":
            raise Refusal("it cannot be saved")
        for name in ("state", "memory"):
            (Path(directory) / name).write_bytes(b"saved")
        self.saved = "completed"
        return {}

    def do_blockdev_add(self, arguments: Any) -> Any:
        if not Path(arguments["file"]["filename"]).exists():
            raise Refusal("Failed to open file")
        self._backend(arguments["node-name"], "blk")
        return {}

    def do_getfd(self, arguments: Any) -> Any:
        if not self._fds:
            raise Refusal("Invalid SCM message")
        self.fds[arguments["fdname"]] = self._fds
        return {}

    def do_netdev_add(self, arguments: Any) -> Any:
        if "fds" in arguments and arguments["fds"] not in self.fds:
            raise Refusal("Add netdev error: failed to convert {} to RawFd.")
        self._backend(arguments["id"], "net")
        return {}

    def do_device_add(self, arguments: Any) -> Any:
        sort, place = arguments["driver"].split("-")[1], int(arguments["addr"], 16)
        if self.backends.get(arguments["id"]) != sort:
            raise Refusal("Failed to find device configuration.")
        if place >= {"blk": 4, "net": 2}[sort]:
            raise Refusal("A maximum of devices are supported.")
        if ("drive" if sort == "blk" else "chardev") not in arguments:
            raise Refusal("No backend set")
        if (sort, place) in self.places:
            raise Refusal(f"The slot {place} is occupied already.")
        self.places[sort, place] = arguments["id"]
        return {}

    def do_device_del(self, arguments: Any) -> Any:
        name = arguments["id"]
        if name not in self.backends:
            raise Refusal("Device not found")
        self.backends.pop(name)
        self.places = {place: held for place, held in self.places.items() if held != name}
        self._tell("DEVICE_DELETED", {"device": name, "path": name})
        return {}


@dataclass
class QmpApi:
    """model: answers commands. faults: a command to the bytes that are sent instead, or "hang"."""

    schema: Schema
    model: Callable[[str, Any, int, Callable[..., None]], Any]
    wrong: list[str] = field(default_factory=list)
    asked: list[tuple[str, Any]] = field(default_factory=list)
    faults: dict[str, Any] = field(default_factory=dict)
    greeting: bytes = json.dumps(GREETING).encode() + b"\r\n"
    _serving: asyncio.Task[None] | None = None
    _client: socket.socket | None = None

    @asynccontextmanager
    async def serving(self, path: Path) -> AsyncIterator[QmpApi]:
        """For as long as the block; one client at a time, as the program's own."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.setblocking(False)
            listener.bind(str(path))
            listener.listen()
            self._serving = asyncio.ensure_future(self._serve_all(listener))
            try:
                yield self
            finally:
                await self.die()
                path.unlink()

    async def die(self) -> None:
        """As a program that is killed."""
        if self._serving:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)

    async def _serve_all(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(listener)
            with sock:
                self._client = sock
                await loop.sock_sendall(sock, self.greeting)
                await self._serve(sock)

    async def _serve(self, sock: socket.socket) -> None:
        buffer, fds = b"", 0
        while True:
            data, found = await receive(sock)
            if not data:
                return
            buffer, fds = buffer + data, fds + found
            while buffer.strip():
                try:
                    request, end = json.JSONDecoder().raw_decode(buffer.decode().lstrip())
                except ValueError:
                    break
                buffer, here = buffer.decode().lstrip()[end:].encode(), fds
                fds = 0
                if not await self._answer(sock, request, here):
                    return

    async def _answer(self, sock: socket.socket, request: Any, fds: int) -> bool:
        """Whether the connection goes on."""
        loop = asyncio.get_running_loop()
        command, arguments = request["execute"], request.get("arguments", {})
        self.asked.append((command, arguments))
        fault = self.faults.get(command)
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault is not None:
            await loop.sock_sendall(sock, fault)
            return False
        said: list[Any] = []
        answer = self._judge(command, arguments, fds, said)
        said.append(answer | ({"id": request["id"]} if "id" in request else {}))
        if command == "quit":
            said.append(event("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"}))
        await loop.sock_sendall(sock, b"".join(json.dumps(one).encode() + b"\r\n" for one in said))
        if command == "quit" and self._serving:
            self._serving.cancel()
        return True

    def _judge(self, command: str, arguments: Any, fds: int, said: list[Any]) -> Any:
        try:
            self.schema.check("QMP", f"/{command}", arguments)
            tell = lambda name, data=None: said.append(event(name, data or {}))  # noqa: E731
            return {"return": self.model(command, arguments, fds, tell)}
        except SchemaError as error:
            self.wrong.append(f"{command}: {error}")
            return {"error": {"class": "GenericError", "desc": str(error)}}
        except Refusal as error:
            return {"error": {"class": "GenericError", "desc": str(error)}}

    async def tell(self, name: str, data: Any) -> None:
        """An event of its own accord."""
        assert self._client
        await asyncio.get_running_loop().sock_sendall(self._client, json.dumps(event(name, data)).encode() + b"\r\n")


def event(name: str, data: Any) -> Any:
    return {"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 2}}
