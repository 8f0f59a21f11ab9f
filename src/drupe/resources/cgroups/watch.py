"""Events of a cgroup on one descriptor: an epoll that nests the eventfds, inotify and PSI triggers behind it.

v1: eventfds by cgroup.event_control (admin-guide/cgroup-v1/memory, OOM Control and Memory Pressure).
v2: inotify on memory.events and cgroup.events (admin-guide/cgroup-v2), PSI triggers (accounting/psi).
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from drupe.errors import Unsupported
from drupe.linux.inotify import IN_DELETE_SELF, IN_MODIFY, inotify_add_watch, inotify_init, inotify_read
from drupe.resources.cgroups.base import read_pairs, write_text
from drupe.resources.cgroups.contract import CgroupEvent

_PSI_WINDOW_US = 1_000_000
_PRESSURE = {
    "memory": CgroupEvent.MEMORY_PRESSURE,
    "cpu": CgroupEvent.CPU_PRESSURE,
    "io": CgroupEvent.IO_PRESSURE,
}


class EpollWatcher:
    """The Watcher of both versions. directory: whose vanishing is the end. counts: "oom" and "oom_kill" so far."""

    def __init__(self, directory: str, counts: Callable[[], Mapping[str, int]]) -> None:
        self._directory = Path(directory)
        self._counts = counts
        self._seen = dict(counts())
        self._epoll = select.epoll()
        self._fds: list[int] = []
        self._sources: dict[int, tuple[CgroupEvent | None, Callable[[int], object]]] = {}
        self._removed = False

    def fileno(self) -> int:
        return self._epoll.fileno()

    def add(
        self, fd: int, *, drain: Callable[[int], object], event: CgroupEvent | None, mask: int = select.EPOLLIN
    ) -> None:
        """Own `fd` and watch it. event None: something changed, the counters say what."""
        self._fds.append(fd)
        self._sources[fd] = (event, drain)
        self._epoll.register(fd, mask)

    def keep(self, fd: int) -> None:
        """Own a descriptor that must only stay open."""
        self._fds.append(fd)

    def read(self) -> list[CgroupEvent]:
        events: list[CgroupEvent] = []
        for fd, mask in self._epoll.poll(0):
            event, drain = self._sources[fd]
            drain(fd)
            if mask & select.EPOLLERR:
                self._epoll.unregister(fd)  # the cgroup behind a PSI trigger is gone; else it would fire for ever
            elif event is not None:
                events.append(event)
        if not self._directory.exists():
            gone = [] if self._removed else [CgroupEvent.REMOVED]
            self._removed = True
            return gone
        return list(dict.fromkeys([*events, *self._grown()]))

    def close(self) -> None:
        """Close every descriptor; may be called twice."""
        self._epoll.close()
        for fd in self._fds:
            with suppress(OSError):
                os.close(fd)
        self._fds.clear()

    def _grown(self) -> list[CgroupEvent]:
        now = dict(self._counts())
        grown = [e for e in (CgroupEvent.OOM, CgroupEvent.OOM_KILL) if now.get(e, 0) > self._seen.get(e, 0)]
        self._seen = now
        return grown


def watch_v1(memory_dir: str, *, pressure: Mapping[str, float]) -> EpollWatcher:
    """Watch a v1 memory cgroup. pressure: only "memory", at level "medium". Raises OSError, Unsupported."""
    if others := sorted(set(pressure) - {"memory"}):
        raise Unsupported(
            f"cgroup v1 cannot tell {', '.join(others)} pressure", feature="pressure events", hint="needs cgroup v2"
        )
    watcher = EpollWatcher(memory_dir, lambda: read_pairs(f"{memory_dir}/memory.oom_control"))
    try:
        _event_control(watcher, memory_dir, "memory.oom_control", "", CgroupEvent.OOM)
        if pressure:
            _event_control(watcher, memory_dir, "memory.pressure_level", "medium", CgroupEvent.MEMORY_PRESSURE)
    except BaseException:
        watcher.close()
        raise
    return watcher


def watch_v2(directory: str, *, pressure: Mapping[str, float]) -> EpollWatcher:
    """Watch a v2 cgroup. pressure: stall in ms per second that is an event. Without memory controller no OOM events."""
    watcher = EpollWatcher(directory, lambda: read_pairs(f"{directory}/memory.events"))
    try:
        fd = inotify_init()
        watcher.add(fd, drain=inotify_read, event=None)
        inotify_add_watch(fd, f"{directory}/cgroup.events", IN_MODIFY | IN_DELETE_SELF)
        with suppress(FileNotFoundError):
            inotify_add_watch(fd, f"{directory}/memory.events", IN_MODIFY)
        for name, stall_ms in pressure.items():
            _psi_trigger(watcher, directory, name, stall_ms)
    except BaseException:
        watcher.close()
        raise
    return watcher


def _event_control(watcher: EpollWatcher, directory: str, file: str, args: str, event: CgroupEvent) -> None:
    target = os.open(f"{directory}/{file}", os.O_RDONLY | os.O_CLOEXEC)
    watcher.keep(target)
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    watcher.add(fd, drain=os.eventfd_read, event=event)
    write_text(f"{directory}/cgroup.event_control", f"{fd} {target} {args}".strip())


def _psi_trigger(watcher: EpollWatcher, directory: str, name: str, stall_ms: float) -> None:
    file = f"{directory}/{name}.pressure"
    if name not in _PRESSURE or not Path(file).exists():
        raise Unsupported(
            f"this kernel cannot tell {name} pressure", feature="pressure events", hint="needs CONFIG_PSI and psi=1"
        )
    fd = os.open(file, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    watcher.add(fd, drain=lambda _: None, event=_PRESSURE[name], mask=select.EPOLLPRI)
    os.write(fd, f"some {int(stall_ms * 1000)} {_PSI_WINDOW_US}\0".encode())
