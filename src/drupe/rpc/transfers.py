"""Blocking work for a call: in a thread of its own, on descriptors whose other end belongs to the caller.

Whoever holds the other end decides when a read or a write returns, so such work may take for ever. It therefore never
runs in the event loop's shared pool of threads, which pods need to be made and deleted, and it gives up as soon as it
waits for a caller that has gone.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import fcntl
import os
import select
import stat
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from drupe.errors import InvalidArgument, ResourceExhausted, Unavailable

if TYPE_CHECKING:
    from drupe.rpc.call import Call

T = TypeVar("T")

MAX_THREADS = 256
_LOOK_UP_MS = 500  # how often a waiting transfer asks whether it is still wanted
_UNBLOCKED_BYTES = 4096  # what a descriptor that poll(2) calls writable takes at once (pipe(7), PIPE_BUF)

_unwanted: contextvars.ContextVar[Callable[[], bool] | None] = contextvars.ContextVar("unwanted", default=None)
_running: set[threading.Thread] = set()


async def in_thread(call: Call, work: Callable[[], T]) -> T:
    """Run `work` in a thread of its own and return its result. When the call is cancelled or its caller gone, the
    transfer functions below end the work where it waits. Raises ResourceExhausted beyond MAX_THREADS at a time."""
    if len(_running) >= MAX_THREADS:
        raise ResourceExhausted(
            f"{MAX_THREADS} transfers are under way", hint="end some: each waits for the other end of its pipe"
        )
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()
    abandoned = threading.Event()
    context = contextvars.copy_context()
    context.run(_unwanted.set, lambda: call.gone or abandoned.is_set())

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as failure:
            error = failure
        _running.discard(thread)
        if not loop.is_closed():
            loop.call_soon_threadsafe(_settle, done, result, error)

    # a daemon thread: one that waits for its caller's pipe must not keep the process from ending
    thread = threading.Thread(target=context.run, args=(run,), name=call.method, daemon=True)
    _running.add(thread)
    try:
        thread.start()
    except RuntimeError:
        _running.discard(thread)
        raise ResourceExhausted("no thread can be started", hint="see the limit of processes (ulimit -u)") from None
    try:
        return await done
    except asyncio.CancelledError:
        abandoned.set()
        raise


def _settle(done: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if done.cancelled():
        return
    if error is not None:
        done.set_exception(error)
    else:
        done.set_result(result)


def own(fd: int) -> int:
    """Take over `fd`: for a pipe, a non-blocking description of our own in its place, since the flags of a description
    are shared with whoever sent it. Everything else stays as it is."""
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        return fd
    mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    try:
        private = os.open(f"/proc/self/fd/{fd}", mode | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # ENXIO: nobody reads it any more, as the first write will find
        return fd
    os.close(fd)
    return private


def read_some(fd: int, size: int) -> bytes:
    """read(2) that waits as long as somebody wants it; b"" is the end. Raises Unavailable when nobody does."""
    while True:
        _wait(fd, select.POLLIN)
        try:
            return os.read(fd, size)
        except BlockingIOError:
            continue


def write_all(fd: int, data: bytes | memoryview) -> bool:
    """Write all of `data`, waiting as long as somebody wants it. False: the reader is gone."""
    at_once = _UNBLOCKED_BYTES if _may_block(fd) else len(data)
    view = memoryview(data)
    while view:
        _wait(fd, select.POLLOUT)
        try:
            view = view[os.write(fd, view[:at_once]) :]
        except BlockingIOError:
            continue
        except BrokenPipeError:
            return False
    return True


class Stream:
    """A descriptor with the methods of a binary file, made of the functions above. Owns it; a context manager.

    Raises InvalidArgument when it cannot be read or written, ResourceExhausted for a full disk.
    """

    def __init__(self, fd: int) -> None:
        self._fd = own(fd)

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; b"" is the end."""
        try:
            return read_some(self._fd, size)
        except OSError as error:
            raise _refusal(error, "read") from None

    def write(self, data: bytes, /) -> int:
        """All of `data`. Raises BrokenPipeError when the reader is gone."""
        try:
            whole = write_all(self._fd, data)
        except OSError as error:
            raise _refusal(error, "written") from None
        if not whole:
            raise BrokenPipeError
        return len(data)

    def flush(self) -> None:
        """Nothing is ever held back."""

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)


def _refusal(error: OSError, what: str) -> ResourceExhausted | InvalidArgument:
    kind = ResourceExhausted if error.errno in (errno.ENOSPC, errno.EDQUOT) else InvalidArgument
    return kind(f"the descriptor sent along cannot be {what}", cause=error.strerror or "")


def _may_block(fd: int) -> bool:
    return os.get_blocking(fd) and not stat.S_ISREG(os.fstat(fd).st_mode)


def _wait(fd: int, event: int) -> None:
    unwanted = _unwanted.get()
    poll = select.poll()
    poll.register(fd, event)
    while not poll.poll(_LOOK_UP_MS):
        if unwanted is not None and unwanted():
            raise Unavailable("the caller went away in the middle of a transfer", may_have_run=True)
