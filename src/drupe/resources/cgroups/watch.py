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
from drupe.resources.cgroups.base import read_pairs, read_text, write_text
from drupe.resources.cgroups.contract import CgroupEvent

_PSI_WINDOW_S = 2  # without CAP_SYS_RESOURCE the kernel takes only multiples of this
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
        self._stalls: list[_Stall] = []
        self._removed = False

    def fileno(self) -> int:
        return self._epoll.fileno()

    def add(
        self, fd: int, *, drain: Callable[[int], object], event: CgroupEvent | None, mask: int = select.EPOLLIN
    ) -> None:
        """Own `fd` and watch it. event None: something changed, the counters say what."""
        self.keep(fd)
        self._sources[fd] = (event, drain)
        self._epoll.register(fd, mask)

    def add_stall(self, fd: int, stall: _Stall) -> None:
        """Own a PSI trigger. Its event is taken by whoever polls first, here the caller's own event loop, so that it
        only wakes us: the stall counter says what happened."""
        self.add(fd, drain=lambda _: None, event=None, mask=select.EPOLLPRI)
        self._stalls.append(stall)

    def keep(self, fd: int) -> None:
        """Own a descriptor: it is closed with the watcher."""
        if fd not in self._fds:
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
        events += self._grown()
        events += [stall.event for stall in self._stalls if stall.happened()]
        return list(dict.fromkeys(events))

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


class _Stall:
    """The stall counter of one PSI file ("some avg10=… total=<µs>"), and how much of it is an event."""

    def __init__(self, event: CgroupEvent, file: str, stall_us: int) -> None:
        self.event = event
        self._file = file
        self._stall_us = stall_us
        self._seen, _ = self._read()

    def happened(self) -> bool:
        """Whether it grew by an event's worth, and is growing now: old small stalls do not add up to one."""
        total, now = self._read()
        if total - self._seen < self._stall_us:
            return False
        self._seen = total
        return now > 0

    def _read(self) -> tuple[int, float]:
        with suppress(OSError):
            pairs = dict(word.split("=", 1) for word in read_text(self._file).split("\n", 1)[0].split()[1:])
            return int(pairs["total"]), float(pairs["avg10"])
        return 0, 0.0


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
    stall_us = int(stall_ms * 1000) * _PSI_WINDOW_S
    fd = os.open(file, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    watcher.keep(fd)
    # Written first: a poll before there is a trigger is an error and waits for nothing.
    os.write(fd, f"some {stall_us} {_PSI_WINDOW_S * 1_000_000}\0".encode())
    watcher.add_stall(fd, _Stall(_PRESSURE[name], file, stall_us))
