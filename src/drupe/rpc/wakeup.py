"""Signals and blocking calls: Python runs a handler between two of its own steps, never inside a system call.

A signal that comes after the last look for one and before the system call begins would wait for the end of that call,
which may be hours away. With a wakeup descriptor (signal.set_wakeup_fd) the kernel's news is also a byte to be read, so
a wait for both cannot miss it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator

_reader = -1


@contextlib.contextmanager
def signals_wake() -> Iterator[None]:
    """Inside the block, `wait_readable` of the main thread lets handlers of signals run at once. May be nested."""
    global _reader  # noqa: PLW0603 - as the wakeup descriptor itself, it is one for the process
    if _reader >= 0:
        yield
        return
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    _reader = reader
    try:
        yield
    finally:
        _reader = -1
        signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(writer)


def wait_readable(sock: socket.socket, deadline: float | None) -> None:
    """Wait until `sock` can be read, handling signals meanwhile. At once outside `signals_wake` and in other threads,
    where the kernel's own way of waiting is as good. Raises TimeoutError."""
    if _reader < 0 or threading.current_thread() is not threading.main_thread():
        return
    while True:
        left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select([sock.fileno(), _reader], [], [], left_s)
        if sock.fileno() in ready:
            return
        if not ready:
            raise TimeoutError
        with contextlib.suppress(BlockingIOError):
            os.read(_reader, 4096)
