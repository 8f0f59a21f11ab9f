"""The control channel to a pod's kernel (docs/appkernel.md): packets with descriptors, and the ends it tells."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from drupe.errors import DrupeError, NotFound, Unavailable, Unsupported
from drupe.keeper.connection import Connection, open_socket
from drupe.linux.memfd import memory_file

PROTOCOL = 1
SOCKET = "control.sock"
ANSWERS_WITHIN_S = 10.0

Event = Mapping[str, Any]


class KernelLine:
    """One connection, made by `connect`. on_exit: told each end of a task. Calls raise the error of drupe.errors that
    fits the answer, DeadlineExceeded for a kernel that hangs, Unavailable for one that has gone."""

    def __init__(self, home: Path, on_exit: Callable[[Event], None]) -> None:
        self._home = home
        self._on_exit = on_exit
        self._connection: Connection | None = None

    async def connect(self) -> None:
        """To a kernel that runs, or begins to. Unsupported for one of another version."""
        try:
            sock = open_socket(self._home, SOCKET)
        except OSError as error:
            raise Unavailable("the pod's kernel is not there", stage="kernel", cause=error.strerror or "") from None
        self._connection = Connection(sock, self._event, lambda: None, peer="the pod's kernel")
        try:
            both = (self.call("hello", protocol=PROTOCOL), self.call("subscribe"))
            answer: dict[str, Any] = (await asyncio.gather(*both))[0]
        except BaseException:
            self.close()
            raise
        if answer["protocol"] != PROTOCOL:
            raise Unsupported(f"the pod's kernel speaks protocol {answer['protocol']}", kind="appkernel")

    def _event(self, event: dict[str, Any]) -> None:
        if event.get("event") == "exit":
            self._on_exit(event)

    async def call(
        self,
        op: str,
        *,
        fds: Mapping[str, int] | None = None,
        config: Mapping[str, Any] | None = None,
        timeout_s: float = ANSWERS_WITHIN_S,
        **fields: Any,
    ) -> dict[str, Any]:
        """One request. config: sent as a file, for it may be longer than a packet. fds: still the caller's."""
        connection = self._connection
        if connection is None:
            raise Unavailable("the pod's kernel does not run", stage="kernel")
        with contextlib.ExitStack() as opened:
            sent = dict(fds or {})
            if config is not None:
                sent["config"] = memory_file("config", msgspec.json.encode(config))
                opened.callback(os.close, sent["config"])
            try:
                return (await connection.call(op, fields, sent, timeout_s)).ok
            except DrupeError as error:
                error.stage = error.stage or "kernel"
                raise

    async def tasks(self) -> list[dict[str, Any]]:
        """All that it runs or ran, and was not told to forget."""
        return [task async for task in self._pages("list", "tasks", _key_of)]

    async def processes(self, container: str) -> list[dict[str, Any]]:
        """What runs in a container. NotFound when it is not there."""

        def after(last: dict[str, Any]) -> dict[str, Any]:
            return {"after": last["pid"]}

        return [one async for one in self._pages("processes", "processes", after, container=container)]

    async def _pages(self, op: str, name: str, after: Callable[[dict[str, Any]], dict[str, Any]], **fields: Any) -> Any:
        asked = dict(fields)
        while True:
            answer = await self.call(op, **asked)
            for one in answer[name]:
                yield one
            if not answer["more"]:
                return
            asked = fields | after(answer[name][-1])

    async def forget(self, container: str, exec_id: str) -> None:
        """It need not remember how an exec ended. Idempotent, also when the kernel has gone."""
        with contextlib.suppress(NotFound, Unavailable):
            await self.call("forget", container=container, exec=exec_id)

    def close(self) -> None:
        """Hang up; the kernel goes on."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _key_of(task: dict[str, Any]) -> dict[str, Any]:
    return {"container": task["container"], "exec": task["exec"]}
