"""The local terminal during an interactive session: raw mode that is always given back, and its size.

termios(3), tty_ioctl(4). Raw mode is undone on return, on an exception, at interpreter exit and on SIGTERM, SIGHUP,
SIGQUIT; a stop from outside (SIGTSTP) gives the terminal back to the shell and takes it again on SIGCONT.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import termios
import threading
import tty
from collections.abc import Callable, Iterator, Mapping
from types import FrameType

DEFAULT_DETACH_KEYS = "ctrl-p,ctrl-q"
Handler = Callable[[int, FrameType | None], None]
_DEADLY = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGINT)


def size(fd: int) -> tuple[int, int]:
    """Rows and columns of the terminal at `fd`; (0, 0) when it is none."""
    try:
        columns, rows = os.get_terminal_size(fd)
    except OSError:
        return 0, 0
    return rows, columns


@contextlib.contextmanager
def raw(fd: int) -> Iterator[None]:
    """Raw mode on the terminal `fd` inside the block, given back whichever way the block or the process ends."""
    saved = termios.tcgetattr(fd)

    def restore() -> None:
        with contextlib.suppress(termios.error, OSError):  # the terminal may be gone
            termios.tcsetattr(fd, termios.TCSADRAIN, saved)

    def die(number: int, frame: FrameType | None) -> None:
        restore()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(signal.Signals(number))

    def stop(number: int, frame: FrameType | None) -> None:
        restore()
        # SIGSTOP cannot be handled, so this call returns only after SIGCONT.
        os.kill(os.getpid(), signal.SIGSTOP)
        tty.setraw(fd, termios.TCSADRAIN)
        signal.raise_signal(signal.SIGWINCH)  # the window may have changed meanwhile

    atexit.register(restore)
    table: dict[signal.Signals, Handler] = {number: die for number in _DEADLY}
    with handlers(table | {signal.SIGTSTP: stop}):
        try:
            tty.setraw(fd, termios.TCSADRAIN)
            yield
        finally:
            restore()
            atexit.unregister(restore)


@contextlib.contextmanager
def handlers(table: Mapping[signal.Signals, Handler]) -> Iterator[None]:
    """Signal handlers inside the block, which also run while it waits for the daemon; the old ones come back."""
    from drupe.rpc.wakeup import signals_wake

    with signals_wake():
        old = {number: signal.signal(number, handler) for number, handler in table.items()}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def on_resize(fd: int, tell: Callable[[int, int], None]) -> Iterator[None]:
    """Call `tell(rows, columns)` whenever the terminal at `fd` changes its size."""
    with handlers({signal.SIGWINCH: lambda number, frame: tell(*size(fd))}):
        yield


def detach_keys(text: str) -> bytes:
    """The bytes of "ctrl-p,ctrl-q" or "a,ctrl-@"; "" for none. Raises ValueError."""
    keys = bytearray()
    for word in filter(None, text.split(",")):
        letter = word.removeprefix("ctrl-").upper()
        if word.startswith("ctrl-") and len(letter) == 1 and "@" <= letter <= "_":
            keys.append(ord(letter) - 0x40)
        elif len(word) == 1 and word.isascii():
            keys.append(ord(word))
        else:
            raise ValueError(f"unknown key {word!r}")
    return bytes(keys)


class Keyboard:
    """Copies the terminal's input into a pipe from a thread of its own and watches for the detach keys.

    The workload gets the pipe, not the terminal: when this process dies or detaches, nothing else keeps reading the
    keys that are then meant for the shell. Output needs no such relay.
    """

    def __init__(self, fd: int, keys: bytes, on_detach: Callable[[], None]) -> None:
        self._fd = fd
        self._keys = keys
        self._on_detach = on_detach
        self.read_end, self._write_end = os.pipe()
        self._wake_read, self._wake_write = os.pipe()
        self._thread = threading.Thread(target=self._pump, name="keyboard", daemon=True)

    def __enter__(self) -> Keyboard:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        os.write(self._wake_write, b"x")
        # The write end may be blocked by a workload that does not read: closing the read end frees it.
        self.close_read_end()
        self._thread.join(timeout=1.0)
        os.close(self._wake_read)
        os.close(self._wake_write)

    def close_read_end(self) -> None:
        """Drop this process's copy of the end that was given away."""
        if self.read_end >= 0:
            os.close(self.read_end)
            self.read_end = -1

    def _pump(self) -> None:
        held = b""
        try:
            while True:
                ready, _, _ = select.select([self._fd, self._wake_read], [], [])
                if self._wake_read in ready:
                    return
                data = os.read(self._fd, 4096)
                out, held, detached = split_at_keys(held, data, self._keys)
                _write_all(self._write_end, out)
                if detached:
                    self._on_detach()
                    return
                if not data:
                    return
        except OSError:
            return  # the terminal or the workload's end is gone; the session ends by its own news
        finally:
            os.close(self._write_end)


def split_at_keys(held: bytes, data: bytes, keys: bytes) -> tuple[bytes, bytes, bool]:
    """What to pass on, what to hold back (a beginning of `keys`), and whether `keys` were pressed in full."""
    text = held + data
    if not keys or not data:
        return text, b"", False
    at = text.find(keys)
    if at >= 0:
        return text[:at], b"", True
    for length in range(min(len(keys) - 1, len(text)), 0, -1):
        if text.endswith(keys[:length]):
            return text[:-length], text[-length:], False
    return text, b"", False


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
