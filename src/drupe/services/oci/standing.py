"""Stand-ins, as the daemon has them: a process of the caller's for each workload in a sandbox, and what is known of it.

A stand-in holds both ends of its socket and the caller's streams. So a pidfd is all that the daemon needs to find them
again (native/client/src/oci/stand_in.rs).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import termios
import tty
from collections.abc import Callable

import msgspec

from drupe.errors import InvalidArgument
from drupe.linux.pidfd import open_same, pid_of, pidfd_getfd, start_ticks

_OUR_END = 4
_STREAMS = ("stdin", "stdout", "stderr")
_ENDED, _KEPT, _SIGNAL, _READY = ord("X"), ord("K"), ord("S"), ord("R")
_READY_S = 5.0


class ProcessRecord(msgspec.Struct, kw_only=True):
    """A stand-in in the journal: pid and the time it began name it for good. ours: the exec it stands for, "" for the
    container's first process."""

    pid: int
    ticks: int
    ours: str = ""


class BundleRecord(msgspec.Struct, kw_only=True):
    """A container that somebody made of a bundle by drupe-oci, in a sandbox of ours. root, id: by which its maker knows
    it. pod: ours. created: RFC 3339. started: its stand-in is, too."""

    root: str
    id: str
    kind: str
    bundle: str
    rootfs: str
    pod: str
    created: str
    annotations: dict[str, str]
    terminal: bool
    stand_in: ProcessRecord
    started: bool = False
    pids_limit: int = 0
    execs: dict[str, ProcessRecord] = {}


class StandIn:
    """A living one. Closing it leaves the process alone."""

    def __init__(self, pidfd: int) -> None:
        """Takes the descriptor over. Raises InvalidArgument for one that is no stand-in."""
        self.pidfd = pidfd
        self.pid = pid_of(pidfd)
        try:
            if self.pid <= 0:
                raise InvalidArgument("the process that stands for the workload is not to be seen from here")
            self._channel = socket.socket(fileno=pidfd_getfd(pidfd, _OUR_END))
        except OSError as error:
            os.close(pidfd)
            raise InvalidArgument("the process that stands for the workload has ended", cause=str(error)) from None
        except BaseException:
            os.close(pidfd)
            raise
        self._channel.setblocking(False)
        self._ready = asyncio.Event()

    @classmethod
    def of(cls, record: ProcessRecord) -> StandIn | None:
        """The one that a record names, if it lives."""
        try:
            return cls(open_same(record.pid, record.ticks))
        except (ProcessLookupError, InvalidArgument):
            return None

    def record(self, ours: str = "") -> ProcessRecord:
        """Raises InvalidArgument when it has just ended."""
        try:
            return ProcessRecord(pid=self.pid, ticks=start_ticks(self.pid), ours=ours)
        except OSError:
            raise InvalidArgument("the process that stands for the workload has just ended") from None

    def streams(self) -> dict[str, int]:
        """Duplicates of its standard streams, to be closed by the caller. One that is closed there is left out."""
        fds = {}
        for number, name in enumerate(_STREAMS):
            with contextlib.suppress(OSError):
                fds[name] = pidfd_getfd(self.pidfd, number)
        return fds

    def window(self) -> tuple[int, int]:
        """Rows and columns of its terminal; zeros where there is none."""
        try:
            fd = pidfd_getfd(self.pidfd, 0)
        except OSError:
            return (0, 0)
        try:
            columns, rows = os.get_terminal_size(fd)
            return rows, columns
        except OSError:
            return (0, 0)
        finally:
            os.close(fd)

    def tell_end(self, code: int) -> None:
        """Have it end as the workload did."""
        with contextlib.suppress(OSError):  # it has been killed
            self._channel.send(bytes((_ENDED, code & 0xFF)))

    def keep(self) -> None:
        """Say that we see to its end: before, it goes with whoever made it."""
        with contextlib.suppress(OSError):
            self._channel.send(bytes((_KEPT, 0)))

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the process itself."""
        if self.pidfd < 0:
            return
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self.pidfd, number)

    async def ready(self) -> None:
        """Until it listens to signals: those before are lost. One that has ended, or began under another daemon, is not
        waited for in vain."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ready.wait(), _READY_S)

    def watch(self, on_signal: Callable[[int], None], on_gone: Callable[[], None]) -> None:
        """Tell of each signal that it was sent, and once of its end."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._channel, self._hear, on_signal)
        loop.add_reader(self.pidfd, self._gone, on_gone)

    def _hear(self, on_signal: Callable[[int], None]) -> None:
        try:
            said = self._channel.recv(2)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        if len(said) == 2 and said[0] == _SIGNAL:
            on_signal(said[1])
        elif len(said) == 2 and said[0] == _READY:
            self._ready.set()
        elif not said:
            asyncio.get_running_loop().remove_reader(self._channel)

    def _gone(self, on_gone: Callable[[], None]) -> None:
        self.close()
        self._ready.set()
        on_gone()

    def close(self) -> None:
        """Let go of it. Idempotent."""
        if self.pidfd < 0:
            return
        with contextlib.suppress(RuntimeError):  # no loop: nothing is watched
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._channel)
            loop.remove_reader(self.pidfd)
        self._channel.close()
        os.close(self.pidfd)
        self.pidfd = -1


def make_raw(fds: dict[str, int]) -> None:
    """The workload's own terminal echoes and edits; the one before it hands on bytes as they are (termios(3))."""
    with contextlib.suppress(termios.error, struct.error, KeyError):
        tty.setraw(fds["stdin"], termios.TCSANOW)
