"""The streams that containerd names: FIFOs, files, or nothing.

A FIFO for output is opened for both ways: that never waits, and the workload gets no SIGPIPE while containerd restarts.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from drupe.errors import InvalidArgument, NotFound, Unsupported

WRITER_WAIT_S = 0.5


def open_streams(
    *, stdin: str, stdout: str, stderr: str, terminal: bool, named: Callable[[str, bool], int] | None = None
) -> dict[str, int]:
    """Descriptors by name, for those that were named. named: opens a stream of containerd's by its id, for input or
    not. Raises InvalidArgument, NotFound, AlreadyExists, Unsupported; then none is open."""
    fds: dict[str, int] = {}
    wanted = {"stdin": stdin, "stdout": stdout, "stderr": "" if terminal else stderr}  # a terminal has one output
    try:
        for name, uri in wanted.items():
            if named is not None and (id_ := stream_id(uri)):
                fds[name] = named(id_, name == "stdin")
            elif uri:
                fds[name] = _open(uri, os.O_RDONLY if name == "stdin" else os.O_RDWR)
    except BaseException:
        close_streams(fds)
        raise
    return fds


def stream_id(uri: str) -> str:
    """The id in the address of a stream of containerd's ("ttrpc+unix:///…?streaming_id=…"); "" for anything else."""
    with suppress(ValueError):
        parts = urlsplit(uri)
        if parts.scheme.rpartition("+")[2] == "unix":
            return parse_qs(parts.query).get("streaming_id", [""])[0]
    return ""


def with_all(fds: dict[str, int]) -> dict[str, int]:
    """All three streams of a process that has them for its own: /dev/null where nobody named one. Programs take a full
    stream that does not wait for an error, and lose what they had to say."""
    for name in ("stdin", "stdout", "stderr"):
        if name not in fds:
            fds[name] = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.set_blocking(fds[name], True)
    return fds


def close_streams(fds: Mapping[str, int]) -> None:
    """Let go of them."""
    for fd in fds.values():
        with suppress(OSError):
            os.close(fd)


def _open(uri: str, flags: int) -> int:
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise InvalidArgument(f"stream {uri!r} is no URI: {error}") from None
    if parts.scheme not in ("", "fifo", "file"):
        raise Unsupported(f"stream {uri!r}: {parts.scheme}:// is not carried out", feature=f"{parts.scheme}:// streams")
    path = unquote(parts.path) if parts.scheme else uri
    if parts.scheme == "file" and flags == os.O_RDWR:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    try:
        fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        raise NotFound(f"stream {path} does not exist") from None
    except OSError as error:
        raise InvalidArgument(f"stream {path} cannot be opened", cause=error.strerror or "") from None
    except ValueError as error:  # a NUL in it
        raise InvalidArgument(f"stream {path!r} cannot be opened", cause=str(error)) from None
    if parts.scheme != "file" and not stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidArgument(f"stream {path} is not a FIFO")
    return fd


async def writer_seen(fd: int) -> bool:
    """Whether a FIFO, open at `fd` for reading and never waiting, has or had somebody who writes to it; a moment is
    waited for one. Its first reader must stay open: a writer may come, write and go at once."""
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        return True
    loop = asyncio.get_running_loop()
    heard = asyncio.Event()  # it has written, or gone again (poll(2) tells that from nobody having come yet)
    loop.add_reader(fd, heard.set)
    with ThreadPoolExecutor(1) as pool:
        opening: asyncio.Future[Any] = loop.run_in_executor(
            pool, os.open, _again(fd), os.O_RDONLY | os.O_CLOEXEC
        )  # waits for one
        hearing: asyncio.Future[Any] = asyncio.ensure_future(heard.wait())
        try:
            done, _ = await asyncio.wait({opening, hearing}, timeout=WRITER_WAIT_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hearing.cancel()
            loop.remove_reader(fd)
            writer = hold(fd)  # the thread goes on
            os.close(await opening)
            os.close(writer)
    return bool(done)


def come_and_go(uri: str) -> None:
    """Be one more writer of a FIFO for a moment: who reads it comes to its end once all others have gone, also where
    none ever came. What runc's shim does by letting go of its own end."""
    path = unquote(urlsplit(uri).path) if "://" in uri else uri
    with suppress(OSError, ValueError):  # nobody reads it, or it is none
        if Path(path).is_fifo():
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))


def hold(fd: int) -> int:
    """Another end of a FIFO: as long as it is open, who reads it waits for more."""
    return os.open(_again(fd), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


def _again(fd: int) -> str:
    return f"/proc/self/fd/{fd}"
