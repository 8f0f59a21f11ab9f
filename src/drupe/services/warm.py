"""Starts and ends the warm process of the command line (`drupe.cli.warm`); nothing here depends on it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger("drupe")


@contextlib.contextmanager
def warm_command_line(run: Path) -> Iterator[None]:
    """A warm process for as long as the block lasts, unless DRUPE_NO_WARM is set. One that ends is not replaced."""
    if os.environ.get("DRUPE_NO_WARM", "") not in ("", "0"):
        yield
        return
    try:
        process = Warm(run)
    except OSError as error:
        log.warning("no warm command line: %s", error)
        yield
        return
    try:
        yield
    finally:
        process.close()


class Warm:
    """The process. It ends when we do, however that happens: its standard input is our pipe."""

    def __init__(self, run: Path) -> None:
        self._socket = run / "cli.sock"
        theirs, self._lifeline = os.pipe()
        try:
            self.pid = _spawn(run, theirs)
        except OSError:
            os.close(self._lifeline)
            raise
        finally:
            os.close(theirs)
        self._pidfd = os.pidfd_open(self.pid)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pidfd, self._ended)

    def close(self) -> None:
        """End it, and leave neither a process nor a socket. Commands that it runs go on."""
        os.close(self._lifeline)
        if self._pidfd >= 0:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            self._ended()
        self._socket.unlink(missing_ok=True)

    def _ended(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        os.waitpid(self.pid, 0)


def _spawn(run: Path, lifeline: int) -> int:
    # posix_spawn(3) is vfork: nothing of our memory is copied. Python's ignored signals are at their default there.
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-P", "-m", "drupe.cli.warm", str(run)],
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, lifeline, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        ],
        setsid=True,
        setsigdef=[n for n in signal.valid_signals() if n not in (signal.SIGKILL, signal.SIGSTOP)],
    )
