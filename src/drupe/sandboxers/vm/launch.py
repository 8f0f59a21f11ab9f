"""How the programs of a machine are started: by the keeper, in the pod's cgroup and network namespace, with their
sockets listening already."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from drupe.keeper.client import Keeper
from drupe.keeper.records import Io, LogFile
from drupe.linux.unix_sockets import listening
from drupe.resources.cgroups import Cgroups
from drupe.sandboxers.kept.dropping import drop_task
from drupe.sandboxers.vm.records import PodRecord

_STARTS_WITHIN_S = 30.0
_ENDS_WITHIN_S = 10.0
_CONSOLE_BYTES = 1 << 20  # a guest that floods its console fills two files of this size and no more
# pid of what goes on in the background to a file; the descriptors 3, 4… are its own
_DETACHED = 'pidfile=$1; shift; "$@" </dev/null & echo $! >"$pidfile"'
_SLACK_BYTES = 256 << 20  # hardware reaches what QEMU maps beside the machine's memory too
_WITHOUT_CAPABILITIES = ("--bounding-set=-all", "--inh-caps=-all")
# what may be locked: as much as is needed, or as may be had
_LOCKS = 'ulimit -l "$1" 2>/dev/null || ulimit -S -l "$(ulimit -H -l)"; shift; exec "$@"'
_ENTER = 'echo 0 >"$1" || exit; shift; exec "$@"'


class Launcher:
    """Starts and ends them. Each is a task of the keeper; what it writes is a log that cannot grow without end."""

    def __init__(self, keeper: Keeper, cgroups: Cgroups) -> None:
        self._keeper = keeper
        self._cgroups = cgroups

    async def start(
        self,
        record: PodRecord,
        key: str,
        argv: Sequence[str],
        listeners: Sequence[Path],
        *,
        fifos: Sequence[Path] = (),
        files: Sequence[int] = (),
        log: Path,
        netns: bool,
        bare: bool = False,
        locked_bytes: int = 0,
        users: Path | None = None,
    ) -> int:
        """Start a program as task `key`; returns its pid. listeners: sockets, handed on as descriptors 3, 4…; fifos
        (made here) and files: descriptors that are handed on after them. bare: without capabilities.
        locked_bytes: memory that hardware reaches cannot move. users: a user namespace for it."""
        limit = ["/bin/sh", "-c", _LOCKS, "sh", str((locked_bytes + _SLACK_BYTES) >> 10)] if locked_bytes else []
        words = [*limit, "setpriv", "--no-new-privs", *(_WITHOUT_CAPABILITIES if bare else ()), "--", *argv]
        spaces = [f"--net={record.netns}"] * bool(netns and record.netns) + [f"--user={users}"] * (users is not None)
        if spaces:
            words = ["nsenter", *spaces, "--", *words]
        join = self._cgroups.join_files(record.leaf)
        if not join:
            words = ["/bin/sh", "-c", _ENTER, "sh", self._cgroups.procs_file(record.leaf), *words]
        pidfile = record.home / f"{key.rpartition('.')[2]}.pid"
        with contextlib.ExitStack() as opened:
            fds = {f"listener{n}": opened.enter_context(listening(path)).fileno() for n, path in enumerate(listeners)}
            fds |= {f"fifo{n}": _open_fifo(path, opened) for n, path in enumerate(fifos)}
            fds |= {f"file{n}": descriptor for n, descriptor in enumerate(files)}
            created = await self._keeper.create_task(
                key,
                ["/bin/sh", "-c", _DETACHED, "sh", str(pidfile), *words],
                pidfile=pidfile,
                exit_file=pidfile.with_suffix(".exit"),
                io=Io(mode="pipes"),
                log=LogFile(path=str(log), max_bytes=_CONSOLE_BYTES, max_files=2),
                fds=fds,
                extra_fds=tuple(fds),
                join=join,
                cwd=record.home,
                timeout_s=_STARTS_WITHIN_S,
            )
        return created.pid

    async def end(self, key: str) -> None:
        """Kill it, wait for its end, and have its record dropped. Idempotent."""
        await drop_task(self._keeper, key)


def _open_fifo(path: Path, opened: contextlib.ExitStack) -> int:
    """A new FIFO, open for both ends: so it never hangs up on who holds it."""
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o600)
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    opened.callback(os.close, descriptor)
    return descriptor
