"""Standard streams of an acted process: real descriptors at the caller's end, the log, a buffer for input."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Generator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from drupe.sandboxers.contract import Attachment
from drupe.spec.container import LogSpec

CHUNK = 4096  # PIPE_BUF: what a writable pipe takes without blocking (pipe(7))


class Streams:
    """Output goes to the log and to everyone attached; input comes from whoever is attached with one."""

    def __init__(self, *, stdin: bool, tty: bool, log: LogSpec | None = None) -> None:
        self.tty = tty
        self._stdin_wanted = stdin
        self._input = asyncio.StreamReader()
        if not stdin:
            self._input.feed_eof()
        self._log = _Log(log) if log is not None and log.path else None
        self._attached: list[_Attachment] = []

    def attach(self, fds: Mapping[str, int], *, keep_stdin: bool = False) -> Attachment:
        """Duplicate `fds` and use them from now on. keep_stdin: the end of theirs is not the end of ours."""
        attachment = _Attachment({name: os.dup(fd) for name, fd in fds.items()})
        self._attached.append(attachment)
        if "stdin" in fds:
            attachment.read_stdin(self._input if self._stdin_wanted else None, keep=keep_stdin)
        return attachment

    async def write(self, stream: str, data: bytes) -> None:
        """Give `data` to the log and to every reader; a slow one slows the process, a closed one is dropped."""
        if self.tty:
            stream, data = "stdout", data.replace(b"\n", b"\r\n")
        if self._log is not None:
            self._log.write(stream, data)
        for attachment in self._attached:
            await attachment.write(stream, data)

    async def read(self) -> bytes:
        """Some input; b"" at its end."""
        return await self._input.read(CHUNK)

    def close_input(self) -> None:
        if not self._input.at_eof():
            self._input.feed_eof()

    def close(self) -> None:
        """The process ended: complete the log, let go of everything."""
        self.close_input()
        if self._log is not None:
            self._log.flush()
        for attachment in self._attached:
            attachment.close()


class _Attachment(Attachment):
    def __init__(self, fds: dict[str, int]) -> None:
        self._fds = fds
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self._loop.create_future()

    def __await__(self) -> Generator[Any, None, None]:
        return asyncio.shield(self.done).__await__()

    async def detach(self) -> None:
        self.close()

    def read_stdin(self, target: asyncio.StreamReader | None, *, keep: bool) -> None:
        fd = self._fds["stdin"]

        def readable() -> None:
            data = os.read(fd, CHUNK)
            if data and target is not None:
                target.feed_data(data)
                return
            if target is not None and not keep:
                target.feed_eof()
            self._drop("stdin")

        try:
            self._loop.add_reader(fd, readable)
        except PermissionError:  # a plain file: always readable
            while "stdin" in self._fds:
                readable()

    async def write(self, stream: str, data: bytes) -> None:
        for start in range(0, len(data), CHUNK):
            fd = self._fds.get(stream)
            if fd is None:
                return
            await self._writable(fd)
            try:
                os.write(fd, data[start : start + CHUNK])
            except (BrokenPipeError, ConnectionError):
                self._drop(stream)

    async def _writable(self, fd: int) -> None:
        ready = asyncio.Event()
        try:
            self._loop.add_writer(fd, ready.set)
        except PermissionError:  # a plain file: always writable
            return
        try:
            await ready.wait()
        finally:
            self._loop.remove_writer(fd)

    def _drop(self, stream: str) -> None:
        fd = self._fds.pop(stream)
        self._loop.remove_reader(fd)
        os.close(fd)
        if not self._fds and not self.done.done():
            self.done.set_result(None)

    def close(self) -> None:
        for stream in list(self._fds):
            self._drop(stream)
        if not self.done.done():
            self.done.set_result(None)


class _Log:
    """CRI or json-file lines."""

    def __init__(self, spec: LogSpec) -> None:
        self._path = Path(spec.path)
        self._json = spec.driver == "json-file"
        self._partial: dict[str, bytes] = {}

    def write(self, stream: str, data: bytes) -> None:
        *lines, rest = (self._partial.pop(stream, b"") + data).split(b"\n")
        self._partial[stream] = rest
        for line in lines:
            self._line(stream, line, ended=True)

    def flush(self) -> None:
        for stream, rest in self._partial.items():
            if rest:
                self._line(stream, rest, ended=False)
        self._partial.clear()

    def _line(self, stream: str, line: bytes, *, ended: bool) -> None:
        stamp = datetime.fromtimestamp(time.time(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
        if self._json:
            text = line.decode("utf-8", "replace") + ("\n" if ended else "")
            entry = json.dumps({"log": text, "stream": stream, "time": stamp}).encode()
        else:
            entry = f"{stamp} {stream} {'F' if ended else 'P'} ".encode() + line
        with self._path.open("ab") as file:
            file.write(entry + b"\n")
