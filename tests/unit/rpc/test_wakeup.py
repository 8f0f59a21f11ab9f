"""A signal is never missed by a call that is about to wait."""

from __future__ import annotations

import _thread
import signal
import socket
import threading
import time

import pytest

from drupe.rpc.client import Link
from drupe.rpc.frames import Item, encode
from drupe.rpc.wakeup import signals_wake, wait_readable

ANSWER = Item(1, "answer")


def test_a_handler_that_is_due_runs_although_no_system_call_was_interrupted() -> None:
    """As after a signal that came just before the wait began: interrupt_main makes the handler due, and no more."""
    ours, theirs = socket.socketpair()
    old = signal.signal(signal.SIGUSR1, lambda *_: theirs.sendall(encode(ANSWER)))
    due = threading.Timer(0.05, _thread.interrupt_main, (signal.SIGUSR1,))
    try:
        with signals_wake():
            due.start()
            assert Link(ours).receive(time.monotonic() + 10) == ANSWER
    finally:
        due.join()
        signal.signal(signal.SIGUSR1, old)
        ours.close()
        theirs.close()


def test_a_wait_ends_at_its_deadline_and_in_other_threads_at_once() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, signals_wake():
        with pytest.raises(TimeoutError):
            wait_readable(ours, time.monotonic() + 0.01)
        thread = threading.Thread(target=wait_readable, args=(ours, None))
        thread.start()
        thread.join(10)
        assert not thread.is_alive()
    assert signal.set_wakeup_fd(-1) == -1
