"""Reading container logs back: CRI lines or json-file, rotated files included, and following them as they grow.

CRI (kubelet's format): `2006-01-02T15:04:05.000000000Z stdout F text`, tag P for a piece of a longer line. json-file:
one JSON object a line with log, stream, time. Rotated files are `path.1` (newest) to `path.N`.
"""

from __future__ import annotations

import asyncio
import calendar
import json
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from drupe.errors import InvalidArgument, NotFound
from drupe.linux.inotify import (
    IN_CLOSE_WRITE,
    IN_CREATE,
    IN_MODIFY,
    IN_MOVED_FROM,
    IN_MOVED_TO,
    inotify_add_watch,
    inotify_init,
    inotify_read,
)
from drupe.spec.control import LogLine, Logs

_MAX_FILES = 1000
_MAX_LINE_BYTES = 1 << 20  # a longer line is handed on in pieces: memory stays bounded
_BLOCK = 1 << 16
_YIELD_EVERY = 256  # lines read between two turns of the event loop


async def read_logs(
    path: str, driver: str, wanted: Logs, *, ended: asyncio.Future[Any] | None = None
) -> AsyncIterator[LogLine]:
    """The lines of the log at `path`, oldest first.

    driver: "cri" or "json-file". wanted: tail, since, until, follow. Following ends when `ended` is done and the rest
    is read. A line torn by a crash is handed on as far as it can be read. Raises InvalidArgument (driver).
    """
    parse = _PARSERS.get(driver)
    if parse is None:
        raise InvalidArgument(f"logs of driver {driver!r} cannot be read back", hint="use cri or json-file")
    try:
        watch = _Watch(path) if wanted.follow else None
    except FileNotFoundError:
        raise NotFound(f"the log {path} is gone", hint="is its container being removed?") from None
    try:
        # The current file is opened before the old ones are listed, and followed by descriptor: a rotation in
        # between can neither lose nor repeat a line.
        follower = _Follower(path, parse)
        try:
            async for line in _kept(follower, wanted):
                yield line
            if watch is not None:
                async for line in _followed(follower, watch, wanted, ended):
                    yield line
        finally:
            follower.close()
    finally:
        if watch is not None:
            watch.close()


def parse_cri(raw: bytes) -> tuple[LogLine, bool] | None:
    """A line of the CRI format and whether it ends there (tag F); None for what is no such line."""
    stamp, _, rest = raw.partition(b" ")
    stream, _, rest = rest.partition(b" ")
    tags, _, data = rest.partition(b" ")
    at = _time(stamp)
    if at is None or stream not in (b"stdout", b"stderr") or not tags:
        return None
    whole = b"P" not in tags.split(b":")
    return LogLine(at=at, stream=stream.decode(), data=data if whole else data.removesuffix(b"\n")), whole


def parse_json_file(raw: bytes) -> tuple[LogLine, bool] | None:
    """A line of Docker's json-file and whether its text ends with a newline; None for what is no such line."""
    try:
        entry = json.loads(raw)
        text, stream, stamp = entry["log"], entry.get("stream", "stdout"), entry["time"]
        at = _time(stamp.encode())
        data = text.encode("utf-8", "surrogatepass")
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    if at is None or not isinstance(stream, str):
        return None
    return LogLine(at=at, stream=stream, data=data), data.endswith(b"\n")


Parser = Callable[[bytes], "tuple[LogLine, bool] | None"]
_PARSERS: dict[str, Parser] = {"cri": parse_cri, "json-file": parse_json_file}


class _Joiner:
    """Puts the pieces of long lines together, each stream on its own."""

    def __init__(self) -> None:
        self._open: dict[str, LogLine] = {}

    def add(self, line: LogLine, whole: bool) -> LogLine | None:
        held = self._open.pop(line.stream, None)
        if held is not None:
            line = LogLine(at=held.at, stream=line.stream, data=held.data + line.data)
        if whole or len(line.data) >= _MAX_LINE_BYTES:
            return line
        self._open[line.stream] = line
        return None

    def rest(self) -> list[LogLine]:
        """Lines that never ended, at the end of everything."""
        left = sorted(self._open.values(), key=lambda line: line.at)
        self._open.clear()
        return left


class _Follower:
    """The rotated files and then the current one, as one sequence of lines."""

    def __init__(self, path: str, parse: Parser) -> None:
        self._path = path
        self._parse = parse
        self._joiner = _Joiner()
        self._buffer = b""
        self._file: IO[bytes] | None = _open(path)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def old(self) -> Iterator[LogLine]:
        """What the rotated files hold, oldest first."""
        current = None if self._file is None else os.fstat(self._file.fileno()).st_ino
        for file in reversed(_rotated(self._path)):
            with file:
                if os.fstat(file.fileno()).st_ino == current:
                    continue  # rotated since we opened it
                yield from self._lines(file)
                yield from self._torn()

    def rewind(self) -> None:
        """Start the current file over."""
        self._joiner, self._buffer = _Joiner(), b""
        if self._file is not None:
            self._file.seek(0)

    def skip_to_last(self, pieces: int) -> bool:
        """Move on to the last `pieces` lines of the current file, as written there. False: it has fewer."""
        if self._file is None:
            return False
        position = self._file.seek(0, os.SEEK_END)
        found = -1  # the newline at the very end closes the last line and opens none
        while position > 0:
            size = min(_BLOCK, position)
            position = self._file.seek(position - size)
            block = self._file.read(size)
            found += block.count(b"\n")
            if found >= pieces:
                for _ in range(found - pieces + 1):
                    block = block.partition(b"\n")[2]
                self._file.seek(position + size - len(block))
                return True
        self.rewind()
        return False

    def new(self) -> Iterator[LogLine]:
        """What was written to the current file since the last call; moves on to the next after a rotation."""
        while True:
            if self._file is None:
                self._file = _open(self._path)
            if self._file is None:
                return
            yield from self._lines(self._file)
            if not self._rotated_away():
                return
            yield from self._lines(self._file)  # what came between the read and the rename
            yield from self._torn()
            newer = _newer(self._path, os.fstat(self._file.fileno()).st_ino)
            self._file.close()
            self._file = newer

    def rest(self) -> list[LogLine]:
        """What never got its end: for when nothing can follow."""
        return [*self._torn(), *self._joiner.rest()]

    def _rotated_away(self) -> bool:
        if self._file is None:
            return False
        try:
            return Path(self._path).stat().st_ino != os.fstat(self._file.fileno()).st_ino
        except FileNotFoundError:
            return False  # between two renames: the new file will come

    def _lines(self, file: IO[bytes]) -> Iterator[LogLine]:
        while block := file.read(_BLOCK):
            *whole, self._buffer = (self._buffer + block).split(b"\n")
            for raw in whole:
                yield from self._line(raw + b"\n")
            if len(self._buffer) > 2 * _MAX_LINE_BYTES:
                yield from self._torn()

    def _line(self, raw: bytes) -> Iterator[LogLine]:
        parsed = self._parse(raw)
        if parsed is not None and (line := self._joiner.add(*parsed)) is not None:
            yield line

    def _torn(self) -> Iterator[LogLine]:
        raw, self._buffer = self._buffer, b""
        if raw:
            yield from self._line(raw)


class _Watch:
    """Wakes a coroutine when the log changes: inotify on its directory, read by the event loop."""

    def __init__(self, path: str) -> None:
        self._fd = inotify_init()
        self._name = os.path.basename(path)  # noqa: PTH119 - as inotify spells it
        self._changed = asyncio.Event()
        try:
            mask = IN_MODIFY | IN_CREATE | IN_MOVED_TO | IN_MOVED_FROM | IN_CLOSE_WRITE
            inotify_add_watch(self._fd, os.path.dirname(path) or ".", mask)  # noqa: PTH120
            asyncio.get_running_loop().add_reader(self._fd, self._readable)
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)

    async def wait(self, ended: asyncio.Future[Any] | None) -> None:
        """Return when the log changed or `ended` is done."""
        change = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait({change, *([ended] if ended else [])}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            change.cancel()
        self._changed.clear()

    def _readable(self) -> None:
        events = inotify_read(self._fd)
        if any(event.name == self._name or not event.name for event in events):
            self._changed.set()


async def _kept(follower: _Follower, wanted: Logs) -> AsyncIterator[LogLine]:
    """What is there already, as wanted."""
    lines = _chosen(_existing(follower, final=not wanted.follow), wanted)
    if wanted.tail is not None:
        lines = iter(await asyncio.to_thread(_tail, follower, wanted))
    for number, line in enumerate(lines):
        if number % _YIELD_EVERY == _YIELD_EVERY - 1:
            await asyncio.sleep(0)
        yield line


def _tail(follower: _Follower, wanted: Logs) -> list[LogLine]:
    """The last lines, read from the end where that is enough: logs are large and tails are short."""
    count = max(0, wanted.tail or 0)
    # One more than asked for: the first may be the end of a line that began earlier.
    if wanted.until is None and follower.skip_to_last(count + 1):
        lines = list(_chosen(_existing(follower, final=not wanted.follow, old=False), wanted))
        if len(lines) > count:
            return lines[-count:] if count else []
        follower.rewind()
    return list(deque(_chosen(_existing(follower, final=not wanted.follow), wanted), maxlen=count))


def _existing(follower: _Follower, *, final: bool, old: bool = True) -> Iterator[LogLine]:
    if old:
        yield from follower.old()
    yield from follower.new()
    if final:
        yield from follower.rest()


def _chosen(lines: Iterator[LogLine], wanted: Logs) -> Iterator[LogLine]:
    for line in lines:
        if wanted.since is not None and line.at < wanted.since:
            continue
        if wanted.until is None or line.at <= wanted.until:
            yield line


async def _followed(
    follower: _Follower, watch: _Watch, wanted: Logs, ended: asyncio.Future[Any] | None
) -> AsyncIterator[LogLine]:
    while True:
        over = ended is not None and ended.done()  # asked before reading: what comes after is not missed
        for line in follower.new():
            if wanted.until is not None and line.at > wanted.until:
                return
            if wanted.since is None or line.at >= wanted.since:
                yield line
        if over:
            for line in _chosen(iter(follower.rest()), wanted):
                yield line
            return
        await watch.wait(ended)


def _open(path: str) -> IO[bytes] | None:
    try:
        return open(path, "rb")  # noqa: PTH123 - kept open as long as it is followed
    except FileNotFoundError:
        return None


def _rotated(path: str) -> list[IO[bytes]]:
    """The rotated files, newest first, opened at once so that a rotation meanwhile renames nothing under us."""
    found: list[IO[bytes]] = []
    for number in range(1, _MAX_FILES):
        file = _open(f"{path}.{number}")
        if file is None:
            break
        found.append(file)
    return found


def _newer(path: str, inode: int) -> IO[bytes] | None:
    """The file that followed the one with `inode`; the oldest still there if that one is gone altogether."""
    files = [file for file in (_open(path), *_rotated(path)) if file is not None]
    inodes = [os.fstat(file.fileno()).st_ino for file in files]
    index = inodes.index(inode) - 1 if inode in inodes else len(files) - 1
    for number, file in enumerate(files):
        if number != index:
            file.close()
    return files[index] if 0 <= index < len(files) else None


def _time(stamp: bytes) -> float | None:
    """Unix seconds of an RFC 3339 time with nanoseconds, as Go writes it; None if it is none.

    Written out, because datetime.fromisoformat knows no nanoseconds and this runs once a line.
    """
    with suppress(ValueError, IndexError):
        text = stamp.decode("ascii")
        base = calendar.timegm(
            (int(text[0:4]), int(text[5:7]), int(text[8:10]), int(text[11:13]), int(text[14:16]), int(text[17:19]))
        )
        rest = text[19:]
        fraction, offset = 0.0, rest
        if rest.startswith("."):
            digits = len(rest[1:]) - len(rest[1:].lstrip("0123456789"))
            fraction, offset = float(f"0.{rest[1 : 1 + digits] or 0}"), rest[1 + digits :]
        return base + fraction - _offset_s(offset)
    return None


def _offset_s(text: str) -> int:
    if text in ("Z", "z"):
        return 0
    if text[:1] not in ("+", "-"):
        raise ValueError(text)
    return int(f"{text[0]}1") * (int(text[1:3]) * 3600 + int(text[4:6]) * 60)
