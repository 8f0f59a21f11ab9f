"""Pipes of a command, and moving bytes through them (blocking; the asyncio twin is `api._async.pipes`)."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import ParamSpec, TypeVar

from drupe.api.result import Output
from drupe.rpc.connection import RunningCall

P = ParamSpec("P")
T = TypeVar("T")
_CHUNK_BYTES = 64 * 1024
DRAIN_S = 0.5  # a background child may hold the pipe for ever: silence for so long after the end is the end


class Reader:
    """Our end of an output pipe. Iterating gives lines, newline included."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = bytearray()
        self._at_end = False

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes as soon as there are any, b"" at the end; without a size all until the end."""
        while not self._at_end and (size < 0 or not self._buffer) and size != 0:
            self._fill()
        return self._take(len(self._buffer) if size < 0 else size)

    def readline(self) -> bytes:
        """The next line, b"" at the end."""
        seen = 0
        while (end := self._buffer.find(b"\n", seen)) < 0 and not self._at_end:
            seen = len(self._buffer)
            self._fill()
        return self._take(len(self._buffer) if end < 0 else end + 1)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if line := self.readline():
            return line
        raise StopIteration

    def fileno(self) -> int:
        """The descriptor; -1 once closed."""
        return self._fd

    def close(self) -> None:
        """Close our end; the command gets SIGPIPE when it writes on."""
        self._at_end = True
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def take_buffered(self) -> bytes:
        """What was read from the pipe and not yet handed out."""
        return self._take(len(self._buffer))

    def _take(self, size: int) -> bytes:
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _fill(self) -> None:
        data = os.read(self._fd, _CHUNK_BYTES)
        self._buffer += data
        self._at_end = not data


class Writer:
    """Our end of an input pipe."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, data: bytes) -> None:
        """Write all of `data`. Raises BrokenPipeError when the command has closed its end."""
        os.set_blocking(self._fd, True)
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def fileno(self) -> int:
        """The descriptor; -1 once closed."""
        return self._fd

    def close(self) -> None:
        """Close: the command reads an end of file."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


class Pump:
    """Feeds input and collects output until a running command has ended and said all."""

    def __init__(self, running: RunningCall, stdin: Writer | None, data: bytes) -> None:
        self._running = running
        self._stdin = stdin
        self._left = memoryview(data)
        self._outputs: dict[int, tuple[Reader, Output]] = {}
        self._poll = select.poll()

    def run(self, outputs: Iterable[tuple[Reader, Output]], limit_s: float | None) -> bool:
        """True when all is done; False when `limit_s` passed before (call again to go on)."""
        self._register(outputs)
        deadline = None if limit_s is None else time.monotonic() + limit_s
        ended = self._running.advance(0)
        while self._outputs or not ended:
            wait_s = DRAIN_S if ended else None if deadline is None else max(0.0, deadline - time.monotonic())
            events = self._poll.poll(None if wait_s is None else wait_s * 1000)
            if not events:
                return ended  # silent after the end: done; silent before it: out of time
            for fd, _ in events:
                self._serve(fd)
            if not ended and self._running.advance(0):
                ended = True
        return True

    def _register(self, outputs: Iterable[tuple[Reader, Output]]) -> None:
        self._poll = select.poll()
        self._outputs = {reader.fileno(): (reader, output) for reader, output in outputs}
        for fd, (reader, output) in self._outputs.items():
            output.feed(reader.take_buffered())
            self._poll.register(fd, select.POLLIN)
        if (call_fd := self._running.fileno()) >= 0:
            self._poll.register(call_fd, select.POLLIN)
        if self._stdin is not None:
            os.set_blocking(self._stdin.fileno(), False)
            self._poll.register(self._stdin.fileno(), select.POLLOUT)

    def _serve(self, fd: int) -> None:
        if fd in self._outputs:
            reader, output = self._outputs[fd]
            data = reader.read(_CHUNK_BYTES)
            output.feed(data)
            if not data:
                self._poll.unregister(fd)
                del self._outputs[fd]
        elif self._stdin is not None and fd == self._stdin.fileno():
            self._write_some(self._stdin)
        elif self._running.advance(0):
            self._poll.unregister(fd)

    def _write_some(self, stdin: Writer) -> None:
        try:
            self._left = self._left[os.write(stdin.fileno(), self._left[:_CHUNK_BYTES]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._left = self._left[:0]  # it does not read all its input: its right
        if not self._left:
            self._poll.unregister(stdin.fileno())
            stdin.close()
            self._stdin = None


def make_pipe(*, write: bool) -> tuple[int, int]:
    """(our end, the command's end) of a new pipe; `write`: ours is the writing one."""
    reading, writing = os.pipe()
    return (writing, reading) if write else (reading, writing)


def stdio_pipes(*, stdin: bool, tty: bool) -> tuple[dict[str, int], dict[str, int]]:
    """Pipes by name, (our ends, the command's ends). With a terminal there is no separate stderr."""
    ours: dict[str, int] = {}
    theirs: dict[str, int] = {}
    try:
        for name in ["stdin"] * stdin + ["stdout"] + ["stderr"] * (not tty):
            ours[name], theirs[name] = make_pipe(write=name == "stdin")
    except BaseException:
        close_all(ours)
        close_all(theirs)
        raise
    return ours, theirs


def close_all(fds: Mapping[str, int]) -> None:
    """Close descriptors."""
    for fd in fds.values():
        os.close(fd)


def finish(running: RunningCall, reader: Reader) -> bytes:
    """All that a call writes to our pipe. Raises the call's error."""
    try:
        data = reader.read()
        running.wait()
    finally:
        reader.close()
    return data


def feed(running: RunningCall, writer: Writer, write: Callable[[int], object]) -> None:
    """Let `write(fd)` fill a call's pipe, then wait for the call. Raises its error rather than a broken pipe."""
    try:
        with suppress(BrokenPipeError):
            write(writer.fileno())
    finally:
        writer.close()
    running.wait()


def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Blocking work: here, simply done."""
    return work(*args, **kwargs)
