"""The daemon's end of drupe-relay, the process that holds containerd's connections while daemons come and go.

It listens for containerd; each connection comes to us as a socket, also those from before our start, whose calls that
were not answered are asked again (`Call.again`). Packets: native/client/src/relay/control.rs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from drupe.errors import DrupeError, Unavailable
from drupe.keeper.connection import open_socket
from drupe.keeper.programs import START_TIMEOUT_S, begin, find_program
from drupe.linux.unix_sockets import recv_fds
from drupe.rpc.timeouts import timeout
from drupe.runtime.node import Node

PROGRAM = "drupe-relay"
_SOCKET = "relay.sock"
_PROTOCOL = 1
_MAX_PACKET = 512
_ANSWER_TIMEOUT_S = 10.0

Serve = Callable[[socket.socket], Coroutine[Any, Any, None]]


class Relay:
    """One for each run directory. Usable after `open`. directory: where its sockets are."""

    def __init__(self, directory: Path, node: Node) -> None:
        self.directory = directory
        self._node = node
        self._sock: socket.socket | None = None
        self._doors: dict[str, Serve] = {}
        self._answers: deque[asyncio.Future[str]] = deque()

    async def open(self) -> None:
        """Connect, starting it if there is none. Raises NotFound (no program), Unavailable."""
        self.directory.mkdir(mode=0o700, exist_ok=True)
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:  # one that was killed a moment ago may hold its lock, or take a connection, until it is cleaned up
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                self._sock = open_socket(self.directory, _SOCKET)
                asyncio.get_running_loop().add_reader(self._sock, self._readable)
                with contextlib.suppress(ConnectionResetError):
                    await self._ask(f"hello {_PROTOCOL}")
                    return
            if time.monotonic() > deadline:
                raise Unavailable(f"the relay of {self.directory} does not answer")
            await self._start()

    async def _start(self) -> None:
        argv = [str(find_program(PROGRAM)), "--dir", str(self.directory)]
        await begin([*argv, "--log", str(self.directory / "relay.log")], what=f"the relay of {self.directory}")

    async def listen(self, name: str, serve: Serve) -> None:
        """Have containerd's connections to the socket `name` served. Raises Unavailable."""
        self._doors[name] = serve
        try:
            await self._ask(f"listen {name}")
        except ConnectionResetError:
            raise Unavailable("the relay for containerd has gone", may_have_run=True) from None

    def close(self, *, end: bool) -> None:
        """Let go of it. end: nobody will need it any more; else it waits for the next daemon."""
        if end and self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.send(b"end")
        self._hang_up()

    # -- packets ------------------------------------------------------------------------------------------------------

    async def _ask(self, order: str) -> str:
        """Its answer. Raises ConnectionResetError when it has gone, Unavailable when it refuses."""
        if self._sock is None:
            raise ConnectionResetError
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._answers.append(answer)
        try:
            self._sock.send(order.encode())
        except OSError:
            self._lost()
        try:
            async with timeout(_ANSWER_TIMEOUT_S):
                word, _, text = (await answer).partition(" ")
        except TimeoutError:
            raise Unavailable("the relay for containerd does not answer", may_have_run=True) from None
        if word != "ok":
            raise Unavailable("the relay for containerd refused", cause=text)
        return text

    def _readable(self) -> None:
        while self._sock is not None:
            try:
                data, fds = recv_fds(self._sock, _MAX_PACKET)
            except BlockingIOError:
                return
            except OSError:
                data, fds = b"", []
            if not data:
                self._lost()
                return
            self._take(data.decode(errors="replace"), fds)

    def _take(self, packet: str, fds: list[int]) -> None:
        word, _, name = packet.partition(" ")
        if word == "connection" and name in self._doors and len(fds) == 1:
            sock = socket.socket(fileno=fds[0])
            sock.setblocking(False)
            self._node.spawn(self._doors[name](sock), f"a connection of containerd at {name}")
            return
        for fd in fds:
            os.close(fd)
        if word in ("ok", "error") and self._answers and not (answer := self._answers.popleft()).done():
            answer.set_result(packet)

    def _hang_up(self) -> None:
        if self._sock is not None:
            asyncio.get_running_loop().remove_reader(self._sock)
            self._sock.close()
            self._sock = None
        while self._answers:
            if not (answer := self._answers.popleft()).done():
                answer.set_exception(ConnectionResetError())

    def _lost(self) -> None:
        """It has died, and with it what it held; another serves what containerd asks from now on."""
        serving = bool(self._doors)
        self._hang_up()
        if serving:
            self._node.note("the relay for containerd died: containerd takes the tasks that it knew for dead")
            self._node.spawn(self._again(), "another relay for containerd")

    async def _again(self) -> None:
        await self.open()
        for name, serve in list(self._doors.items()):
            try:
                await self.listen(name, serve)
            except DrupeError as error:
                self._node.note(f"containerd is not served at {name}: {error}")
