"""cgroup v1: one directory per hierarchy (kernel documentation, admin-guide/cgroup-v1)."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from drupe.errors import DeadlineExceeded, NotFound
from drupe.resources.cgroups.base import (
    BaseCgroups,
    backoff,
    below,
    check_path,
    processors,
    read_number,
    read_pairs,
    read_text,
    write_text,
)
from drupe.resources.cgroups.contract import Setting, Watcher
from drupe.resources.cgroups.devices_v1 import restrict
from drupe.resources.cgroups.limits import Limits
from drupe.resources.cgroups.watch import watch_v1
from drupe.spec import Resources, Stats

_UNLIMITED = 1 << 62  # the kernel's "no limit" is a little below 2**63, by page size
_IO_FILES = {
    "read_bps": "blkio.throttle.read_bps_device",
    "write_bps": "blkio.throttle.write_bps_device",
    "read_iops": "blkio.throttle.read_iops_device",
    "write_iops": "blkio.throttle.write_iops_device",
}


class CgroupsV1(BaseCgroups):
    """The v1 hierarchies. roots: controller (or "name=systemd") to the directory where its hierarchy is mounted."""

    version = 1

    def __init__(self, roots: Mapping[str, str]) -> None:
        self.roots = dict(roots)
        self.controllers = frozenset(name for name in roots if not name.startswith("name="))
        self._trees = sorted(set(roots.values()))
        self._main = next(
            (roots[name] for name in ("freezer", "pids", "devices", "memory") if name in roots), self._trees[0]
        )

    # -- contract

    def create(self, path: str, resources: Resources) -> None:
        _, settings = self._planned(resources)
        for directory in self.all_dirs(path):
            self.make(directory, path)
        if "cpuset" in self.roots:
            self._inherit_cpuset(path)
        self.write_all(path, settings)

    def join_files(self, path: str) -> list[str]:
        return [f"{directory}/tasks" for directory in self.all_dirs(path)]

    def room(self, path: str) -> tuple[int, int]:
        memory = read_number(f"{self._dir('memory', path)}/memory.limit_in_bytes") if "memory" in self.roots else 0
        return memory, processors(self._dir("cpu", path), _quota) if "cpu" in self.roots else 0

    def restrict_devices(self, path: str, rules: Sequence[Mapping[str, Any]]) -> None:
        if "devices" not in self.roots:
            raise self.missing("devices", "devices")
        try:
            restrict(self._dir("devices", path), rules)
        except OSError as error:
            raise self.explain(error, path, "devices") from None

    def stats(self, path: str) -> Stats:
        self.require(path)
        stats = Stats(at=time.time())
        self._cpu_stats(path, stats)
        self._memory_stats(path, stats)
        self._io_stats(path, stats)
        if "pids" in self.roots:
            pids = self._dir("pids", path)
            stats.pids = read_number(f"{pids}/pids.current")
            stats.pids_limit = read_number(f"{pids}/pids.max")
        return stats

    def oom_kills(self, path: str) -> int:
        if "memory" not in self.roots:
            return 0
        # v1 counts in the victim's own cgroup only, so those below are added up.
        files = (f"{each}/memory.oom_control" for each in below(self._dir("memory", path)))
        return sum(read_pairs(file).get("oom_kill", 0) for file in files)

    def kill_all(self, path: str, signum: int = signal.SIGKILL, *, timeout_s: float = 5.0) -> int:
        if "freezer" not in self.roots:
            return self.signal_pids(path, signum)
        if not self.exists(path):
            return 0
        was_frozen = self._state(path) == "FROZEN"
        try:
            # Frozen, nothing forks or exits between the reading and the signal. A task stuck in the kernel may hold
            # the freezer up: then the signal is sent all the same, and SIGKILL gets what the freeze missed.
            with suppress(DeadlineExceeded):
                self.freeze(path, timeout_s=min(timeout_s, 1.0))
            return self.signal_pids(path, signum)
        except NotFound:
            return 0
        finally:
            if signum == signal.SIGKILL:
                self._thaw_below(path)
            elif not was_frozen:
                with suppress(NotFound):
                    self.thaw(path, timeout_s=timeout_s)

    def _thaw_below(self, path: str) -> None:
        """Each freezer has a will of its own: what is killed must be free to die, however deep it was frozen."""
        for directory in below(self._dir("freezer", path)):
            with suppress(OSError):
                write_text(f"{directory}/freezer.state", "THAWED")

    def freeze(self, path: str, *, timeout_s: float = 5.0) -> None:
        self._need_freezer()
        for turn, _ in enumerate(backoff(timeout_s)):
            # A task that forks while the freezer walks can hold it in FREEZING: thaw now and then and start over.
            if turn % 25 == 24:
                self._set_state(path, "THAWED")
            self._set_state(path, "FROZEN")
            if self._state(path) == "FROZEN":
                return
        self._set_state(path, "THAWED")
        raise self.late(path, "freeze", timeout_s)

    def thaw(self, path: str, *, timeout_s: float = 5.0) -> None:
        self._need_freezer()
        for _ in backoff(timeout_s):
            self._set_state(path, "THAWED")
            if self._state(path) == "THAWED":
                return
        raise self.late(path, "thaw", timeout_s)

    def is_frozen(self, path: str) -> bool:
        return "freezer" in self.roots and self._state(path) == "FROZEN"

    def watch(self, path: str, *, pressure: Mapping[str, float] | None = None) -> Watcher:
        if "memory" not in self.roots:
            raise self.missing("memory", "OOM")
        try:
            return watch_v1(self._dir("memory", path), pressure=pressure or {})
        except OSError as error:
            raise self.explain(error, path, "watch") from None

    # -- where things are

    def settings(self, limits: Limits) -> list[Setting]:
        found = [*_cpu(limits), *_memory(limits), *self._io(limits)]
        if limits.pids is not None:
            found.append(Setting("pids", "pids.max", "max" if limits.pids < 0 else str(limits.pids), name="pids"))
        for size, value in limits.hugepages.items():
            found.append(Setting("hugetlb", f"hugetlb.{size}.limit_in_bytes", str(value), "bytes", "hugepages"))
        if limits.unified:
            raise self.missing("unified", f"unified {', '.join(limits.unified)}")
        return found

    def swap_accounted(self) -> bool:
        return os.path.exists(f"{self.roots.get('memory', '')}/memory.memsw.limit_in_bytes")  # noqa: PTH110

    def file(self, setting: Setting, path: str) -> str:
        return f"{self._dir(setting.controller, path)}/{setting.file}"

    def controller_dir(self, controller: str, path: str) -> str:
        return self._dir(controller, path)

    def main_dir(self, path: str) -> str:
        return f"{self._main}/{check_path(path)}"

    def all_dirs(self, path: str) -> list[str]:
        tail = check_path(path)
        return [f"{tree}/{tail}" for tree in self._trees]

    def _dir(self, controller: str, path: str) -> str:
        return f"{self.roots[controller]}/{check_path(path)}"

    def _io(self, limits: Limits) -> list[Setting]:
        found = []
        if limits.io_weight is not None:
            found.append(Setting("blkio", "blkio.bfq.weight", str(limits.io_weight), name="io_weight"))
        for device in limits.io:
            for rate, value in device.rates.items():
                text = f"{device.major}:{device.minor} {value}"
                found.append(Setting("blkio", _IO_FILES[rate], text, "line", f"io {rate}"))
        return found

    def _inherit_cpuset(self, path: str) -> None:
        """A new v1 cpuset is empty and takes no process: give each level what its parent has (cpuset(7))."""
        for name in ("cpuset.cpus", "cpuset.mems"):
            self._filled(check_path(path), name)

    def _filled(self, tail: str, name: str) -> str:
        """The value of a cpuset, taken over from its parent when it has none."""
        file = f"{self.roots['cpuset']}/{tail}/{name}" if tail else f"{self.roots['cpuset']}/{name}"
        value = read_text(file).strip()
        if not value and tail:
            value = self._filled(tail.rpartition("/")[0], name)
            write_text(file, value)
        return value

    # -- freezer

    def _need_freezer(self) -> None:
        if "freezer" not in self.roots:
            raise self.missing("freezer", "pause")

    def _state(self, path: str) -> str:
        try:
            return read_text(f"{self._dir('freezer', path)}/freezer.state").strip()
        except OSError as error:
            raise self.explain(error, path) from None

    def _set_state(self, path: str, state: str) -> None:
        try:
            write_text(f"{self._dir('freezer', path)}/freezer.state", state)
        except OSError as error:
            if error.errno == errno.EBUSY:
                return  # still moving: the caller reads the state and tries again
            raise self.explain(error, path) from None

    # -- counters

    def _cpu_stats(self, path: str, stats: Stats) -> None:
        if "cpuacct" in self.roots:
            base = self._dir("cpuacct", path)
            stats.cpu_usage_ns = read_number(f"{base}/cpuacct.usage")
            stats.cpu_user_ns = read_number(f"{base}/cpuacct.usage_user")
            stats.cpu_system_ns = read_number(f"{base}/cpuacct.usage_sys")
        if "cpu" in self.roots:
            pairs = read_pairs(f"{self._dir('cpu', path)}/cpu.stat")
            stats.cpu_throttled_ns = pairs.get("throttled_time", 0)
            stats.cpu_throttled_periods = pairs.get("nr_throttled", 0)

    def _memory_stats(self, path: str, stats: Stats) -> None:
        if "memory" not in self.roots:
            return
        base = self._dir("memory", path)
        pairs = read_pairs(f"{base}/memory.stat")
        usage = read_number(f"{base}/memory.usage_in_bytes")
        limit = read_number(f"{base}/memory.limit_in_bytes")
        stats.memory_usage_bytes = usage
        stats.memory_working_set_bytes = max(0, usage - pairs.get("total_inactive_file", 0))
        stats.memory_peak_bytes = read_number(f"{base}/memory.max_usage_in_bytes")
        stats.memory_limit_bytes = 0 if limit >= _UNLIMITED else limit
        stats.memory_file_bytes = pairs.get("total_cache", 0)
        stats.memory_anon_bytes = pairs.get("total_rss", 0)
        stats.swap_usage_bytes = pairs.get("total_swap", 0)
        stats.oom_kills = self.oom_kills(path)

    def _io_stats(self, path: str, stats: Stats) -> None:
        if "blkio" not in self.roots:
            return
        base = self._dir("blkio", path)
        stats.io_read_bytes, stats.io_write_bytes = _io_sums(f"{base}/blkio.throttle.io_service_bytes_recursive")
        stats.io_reads, stats.io_writes = _io_sums(f"{base}/blkio.throttle.io_serviced_recursive")


def _cpu(limits: Limits) -> list[Setting]:
    wanted = (
        ("cpu", "cpu.cfs_period_us", limits.period_us, "exact", "cpu period"),
        ("cpu", "cpu.cfs_quota_us", limits.quota_us, "exact", "cpu quota"),
        ("cpu", "cpu.shares", limits.shares, "exact", "cpu_shares"),
        ("cpuset", "cpuset.cpus", limits.cpus, "list", "cpuset_cpus"),
        ("cpuset", "cpuset.mems", limits.mems, "list", "cpuset_mems"),
    )
    return [Setting(c, file, str(value), like, name) for c, file, value, like, name in wanted if value is not None]


def _memory(limits: Limits) -> list[Setting]:
    wanted = (
        ("memory.limit_in_bytes", limits.memory_bytes, "memory_bytes"),
        ("memory.memsw.limit_in_bytes", limits.swap_bytes, "memory_swap_bytes"),
        ("memory.soft_limit_in_bytes", limits.reservation_bytes, "memory_reservation_bytes"),
    )
    found = [Setting("memory", file, str(v), "bytes", name) for file, v, name in wanted if v is not None]
    if limits.swappiness is not None:
        found.append(Setting("memory", "memory.swappiness", str(limits.swappiness), name="memory_swappiness"))
    if limits.oom_kill_disable is not None:
        value = f"{int(limits.oom_kill_disable)}"
        found.append(Setting("memory", "memory.oom_control", value, "oom", "oom_kill_disable"))
    return found


def _io_sums(file: str) -> tuple[int, int]:
    """Read and written, over all devices, of a "major:minor Read 123" file."""
    read = written = 0
    with suppress(OSError):
        for line in read_text(file).splitlines():
            words = line.split()
            if len(words) == 3 and words[1] == "Read":
                read += int(words[2])
            elif len(words) == 3 and words[1] == "Write":
                written += int(words[2])
    return read, written


def _quota(directory: str) -> list[str]:
    try:
        return [read_text(f"{directory}/cpu.cfs_{part}_us") for part in ("quota", "period")]
    except OSError:
        return []
