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


async def started_stdin(seen: int) -> tuple[int, int]:
    """A FIFO, of which `seen` is a descriptor, to be an exec's standard input: what the exec reads, and what holds the
    other end open, or -1.

    Who reads a FIFO that nobody writes to reads its end at once: so its writer is waited for, for a moment. One that
    comes later finds the input held open, until CloseIO or the process's end. Whoever made the FIFO may have removed it
    meanwhile: so it is opened by the descriptor, never by its name.
    """
    path, holder = f"/proc/self/fd/{seen}", -1
    with ThreadPoolExecutor(1) as pool:
        opening = asyncio.get_running_loop().run_in_executor(pool, os.open, path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            await asyncio.wait({opening}, timeout=WRITER_WAIT_S)
        finally:  # or the thread, and with it this block's end, would wait for ever
            if not opening.done():
                holder = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        return await opening, holder
