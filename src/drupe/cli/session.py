"""One foreground session: the workload gets our descriptors, our signals, our terminal; we get its exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from drupe.cli import borrowed, connection, terminal
from drupe.errors import DrupeError, InvalidArgument, NotFound
from drupe.spec.status import ExitStatus

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_GIVE_UP_AFTER = 3  # this many Ctrl-C and the client ends, whatever the workload does
_EXPLAIN_AFTER = 2
_SIDE_CALL_TIMEOUT_S = 5.0


class Detached(Exception):
    """The user pressed the detach keys; the workload goes on."""


def stdio(*, stdin: bool, tty: bool) -> dict[str, int]:
    """Our own descriptors for a workload. With a terminal its error output is the terminal too."""
    names = (["stdin"] if stdin else []) + ["stdout"] + ([] if tty else ["stderr"])
    return {name: ("stdin", "stdout", "stderr").index(name) for name in names}


def check_terminal(*, stdin: bool, tty: bool) -> None:
    """Refuse an interactive terminal where there is none. Raises InvalidArgument."""
    if tty and stdin:
        if not os.isatty(0):
            raise InvalidArgument("-t with -i needs a terminal on standard input", hint="leave out -t")
        borrowed.needs_own_process()


@contextlib.contextmanager
def interactive(fds: dict[str, int], signals: Signals, *, keys: str) -> Iterator[dict[str, int]]:
    """Raw mode and keyboard relay around a session with a terminal; yields the descriptors to pass.

    Detaching raises Detached in the main thread, once the workload is there: `signals` knows.
    """
    if "stdin" not in fds or not os.isatty(fds["stdin"]):
        yield fds
        return
    borrowed.needs_own_process()
    with contextlib.ExitStack() as stack:
        stack.enter_context(terminal.handlers({signal.SIGURG: signals.detach}))
        stack.enter_context(terminal.raw(fds["stdin"]))
        board = stack.enter_context(terminal.Keyboard(fds["stdin"], parse_keys(keys), _press_detach))
        yield fds | {"stdin": board.read_end}


def parse_keys(text: str) -> bytes:
    """`terminal.detach_keys` with a user's error."""
    try:
        return terminal.detach_keys(text)
    except ValueError as error:
        raise InvalidArgument(f"bad detach keys {text!r}: {error}", hint="write them like ctrl-p,ctrl-q") from None


def _press_detach() -> None:
    # Only the main thread can be taken out of a blocking call, and only by a signal.
    os.kill(os.getpid(), signal.SIGURG)


class Signals:
    """Forwards our signals to a workload once its id is known; those that came earlier are sent then. Its output may
    come before that, and make somebody press keys."""

    def __init__(self, send: Callable[[str], None]) -> None:
        self._send = send
        self._early: list[int] = []
        self._ready = False
        self._interrupts = 0
        self._detaching = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts >= _GIVE_UP_AFTER:
                raise KeyboardInterrupt
            if self._interrupts == _EXPLAIN_AFTER:
                _write_error("drupe: the workload goes on in spite of Ctrl-C; once more leaves it running\r\n")
        if self._ready:
            self._forward(number)
        else:
            self._early.append(number)

    def ready(self) -> None:
        """The workload exists now. Raises Detached when that was asked for already."""
        self._ready = True
        for number in self._early:
            self._forward(number)
        if self._detaching:
            raise Detached

    def detach(self, number: int, frame: FrameType | None) -> None:
        """The user pressed the detach keys."""
        self._detaching = True
        if self._ready:
            raise Detached

    def _forward(self, number: int) -> None:
        try:
            self._send(signal.Signals(number).name.removeprefix("SIG"))
        except DrupeError as error:
            # It may just have ended, which the session is about to learn by itself.
            if not isinstance(error, NotFound) and error.code != "FAILED_PRECONDITION":
                from drupe.cli.errors import say

                say(f"cannot pass on {signal.Signals(number).name}: {error}", hint=error.hint)

    @contextlib.contextmanager
    def forwarding(self) -> Iterator[None]:
        """Handle the forwarded signals inside the block."""
        with terminal.handlers({number: self.handle for number in _FORWARDED}):
            yield


def _write_error(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, text.encode())  # from a signal handler, sys.stderr may be in the middle of something


def side_call(method: str, params: Any) -> None:
    """A call from a signal handler: on a connection of its own, for the main one may be in the middle of something."""
    connection.call(method, params, timeout_s=_SIDE_CALL_TIMEOUT_S)


class Window:
    """Our terminal's size: given to the workload at its start, and told it whenever it changes from then on."""

    def __init__(self, *, tty: bool) -> None:
        self._tty = tty
        self._tell: Callable[[int, int], None] | None = None
        self.rows, self.columns = terminal.size(1) if tty else (0, 0)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Notice changes inside the block."""
        with terminal.on_resize(1, self._changed):
            yield

    def ready(self, ref: str, *, exec_id: str = "") -> None:
        """The workload exists now, and was started with `rows` and `columns`."""
        from drupe.spec.control import Resize

        def tell(rows: int, columns: int) -> None:
            # A refusal is not worth a word: the next change comes, or the end.
            with contextlib.suppress(DrupeError):
                side_call("container.resize", Resize(ref=ref, rows=rows, cols=columns, exec_id=exec_id))

        self._tell = tell
        if (now := terminal.size(1)) != (self.rows, self.columns):
            self._changed(*now)

    def _changed(self, rows: int, columns: int) -> None:
        if self._tty and self._tell is not None and rows and columns:
            self._tell(rows, columns)


def finish(end: ExitStatus, *, name: str, memory_bytes: int | None = None) -> int:
    """Say why a workload ended, where its exit code alone would not tell, and return that code."""
    from drupe.cli.errors import say
    from drupe.cli.output import human_size

    if end.reason == "OOMKilled":
        limit = f" (limit {human_size(memory_bytes)})" if memory_bytes else ""
        say(f"container {name} was killed: out of memory{limit}", hint="give it more with --memory")
    elif end.reason in ("Timeout", "Lost", "StartError"):
        detail = f": {end.message}" if end.message else ""
        words = {"Timeout": "was stopped: its time was up", "Lost": "was lost", "StartError": "could not start"}
        say(f"container {name} {words[end.reason]}{detail}")
    return end.code


def detached(name: str) -> int:
    """The end of a session whose user pressed the detach keys."""
    sys.stderr.write(f"detached from {name}; it goes on (drupe attach {name})\r\n")
    return 0
