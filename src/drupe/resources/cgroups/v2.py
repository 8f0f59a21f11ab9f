"""cgroup v2: one directory for all controllers (kernel documentation, admin-guide/cgroup-v2)."""

# ruff: noqa: PTH110 - paths are strings all the way, on the hot path
from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from drupe.errors import DeadlineExceeded, NotFound, ResourceExhausted
from drupe.resources.cgroups.base import (
    BaseCgroups,
    backoff,
    check_path,
    processors,
    read_number,
    read_pairs,
    read_text,
    write_text,
)
from drupe.resources.cgroups.contract import Setting, Watcher
from drupe.resources.cgroups.limits import DEFAULT_PERIOD_US, UNLIMITED, IoDevice, Limits
from drupe.resources.cgroups.watch import watch_v2
from drupe.spec import Resources, Stats

_USED = ("cpu", "cpuset", "io", "memory", "pids", "hugetlb")
_RECLAIMABLE = ("inactive_file", "active_file", "slab_reclaimable")
_IO_KEYS = {"read_bps": "rbps", "write_bps": "wbps", "read_iops": "riops", "write_iops": "wiops"}


class CgroupsV2(BaseCgroups):
    """The unified tree mounted at `root`. controllers: those of the root's cgroup.controllers."""

    version = 2

    def __init__(self, root: str, *, controllers: Iterable[str]) -> None:
        self.root = root
        self.controllers = frozenset(controllers)

    # -- contract

    def create(self, path: str, resources: Resources) -> None:
        _, settings = self._planned(resources)
        self.make(self.main_dir(path), path)
        self._enable_controllers(path)
        self.write_all(path, settings)

    def apply(self, path: str, resources: Resources) -> None:
        limits, settings = self._planned(resources)
        self.require(path)
        if limits.memory_bytes not in (None, UNLIMITED):
            self._refuse_to_kill(path, settings)
        self.write_all(path, settings)

    def _refuse_to_kill(self, path: str, settings: list[Setting]) -> None:
        """v1 refuses a limit below what is in use; v2 takes it and kills for it. What cannot be given back counts."""
        new = {setting.file: setting.value for setting in settings}
        base = self.main_dir(path)
        kinds = read_pairs(f"{base}/memory.stat")
        in_use = read_number(f"{base}/memory.current") - sum(kinds.get(kind, 0) for kind in _RECLAIMABLE)
        if in_use - _swap_room(base, new.get("memory.swap.max")) > int(new["memory.max"]):
            raise ResourceExhausted(
                f"cgroup {path}: more memory is in use than memory_bytes = {new['memory.max']}", cause=f"{in_use} bytes"
            )

    def join_files(self, path: str) -> list[str]:
        return []  # one process of many threads, or a thread of a threaded cgroup: only the first exists here

    def room(self, path: str) -> tuple[int, int]:
        directory = self.main_dir(path)
        return read_number(f"{directory}/memory.max"), processors(directory, _quota)

    def restrict_devices(self, path: str, rules: Sequence[Mapping[str, Any]]) -> None:
        raise self.missing("devices", "devices")

    def stats(self, path: str) -> Stats:
        self.require(path)
        base = self.main_dir(path)
        stats = Stats(at=time.time())
        _cpu_stats(base, stats)
        _memory_stats(base, stats)
        _io_stats(base, stats)
        stats.oom_kills = self.oom_kills(path)
        stats.pids = read_number(f"{base}/pids.current")
        stats.pids_limit = read_number(f"{base}/pids.max")
        for name in ("cpu", "memory", "io"):
            stats.pressure |= _pressure(f"{base}/{name}.pressure", name)
        return stats

    def oom_kills(self, path: str) -> int:
        return read_pairs(f"{self.main_dir(path)}/memory.events").get("oom_kill", 0)

    def kill_all(self, path: str, signum: int = signal.SIGKILL, *, timeout_s: float = 5.0) -> int:
        if not self.exists(path):
            return 0
        if signum == signal.SIGKILL and os.path.exists(f"{self.main_dir(path)}/cgroup.kill"):
            return self._kill_file(path)
        was_frozen = self._frozen(path)
        try:
            with suppress(DeadlineExceeded):
                self.freeze(path, timeout_s=min(timeout_s, 1.0))
            return self.signal_pids(path, signum)
        except NotFound:
            return 0
        finally:
            if signum == signal.SIGKILL or not was_frozen:
                with suppress(NotFound):
                    self.thaw(path, timeout_s=timeout_s)

    def freeze(self, path: str, *, timeout_s: float = 5.0) -> None:
        self._write(path, "cgroup.freeze", "1")
        for _ in backoff(timeout_s):
            if self._frozen(path):
                return
        self._write(path, "cgroup.freeze", "0")
        raise self.late(path, "freeze", timeout_s)

    def thaw(self, path: str, *, timeout_s: float = 5.0) -> None:
        self._write(path, "cgroup.freeze", "0")
        for _ in backoff(timeout_s):
            if not self._frozen(path):
                return
        raise self.late(path, "thaw", timeout_s)

    def is_frozen(self, path: str) -> bool:
        return self._frozen(path)

    def watch(self, path: str, *, pressure: Mapping[str, float] | None = None) -> Watcher:
        try:
            return watch_v2(self.main_dir(path), pressure=pressure or {})
        except OSError as error:
            raise self.explain(error, path, "watch") from None

    # -- where things are

    def settings(self, limits: Limits) -> list[Setting]:
        found = [*_cpu(limits), *self._memory(limits)]
        if limits.pids is not None:
            found.append(Setting("pids", "pids.max", _max(limits.pids), name="pids"))
        if limits.io_weight is not None:
            weight = 1 + (limits.io_weight - 10) * 9999 // 990
            found.append(Setting("io", "io.weight", f"default {weight}", "line", "io_weight"))
        found += [_throttle(device) for device in limits.io if device.rates]
        for size, value in limits.hugepages.items():
            found.append(Setting("hugetlb", f"hugetlb.{size}.max", str(value), "bytes", "hugepages"))
        for file, text in limits.unified.items():
            found.append(Setting(file.partition(".")[0], file, text, "raw", f"unified {file}"))
        return found

    def swap_accounted(self) -> bool:
        """The root has no memory.swap.max; any other cgroup does if swap is accounted. None yet: assume so."""
        with os.scandir(self.root) as entries:
            sibling = next((e.path for e in entries if e.is_dir() and os.path.exists(f"{e.path}/memory.max")), "")
        return not sibling or os.path.exists(f"{sibling}/memory.swap.max")

    def file(self, setting: Setting, path: str) -> str:
        return f"{self.main_dir(path)}/{setting.file}"

    def main_dir(self, path: str) -> str:
        return f"{self.root}/{check_path(path)}"

    def all_dirs(self, path: str) -> list[str]:
        return [self.main_dir(path)]

    def _memory(self, limits: Limits) -> list[Setting]:
        if limits.swappiness is not None:
            raise self.missing("memory.swappiness", "memory_swappiness")
        if limits.oom_kill_disable:
            raise self.missing("memory.oom_control", "oom_kill_disable")
        found = []
        if limits.memory_bytes is not None:
            found.append(Setting("memory", "memory.max", _max(limits.memory_bytes), "bytes", "memory_bytes"))
        if limits.reservation_bytes is not None:
            low = _max(limits.reservation_bytes)
            found.append(Setting("memory", "memory.low", low, "bytes", "memory_reservation_bytes"))
        if limits.swap_bytes is not None:
            swap = UNLIMITED if limits.swap_bytes == UNLIMITED else limits.swap_bytes - (limits.memory_bytes or 0)
            found.append(Setting("memory", "memory.swap.max", _max(swap), "bytes", "memory_swap_bytes"))
        return found

    def _enable_controllers(self, path: str) -> None:
        """Hand the controllers down to each level above the cgroup (Top-down Constraint)."""
        wanted = " ".join(f"+{name}" for name in _USED if name in self.controllers)
        if not wanted:
            return
        directory = self.root
        for part in check_path(path).split("/"):
            try:
                write_text(f"{directory}/cgroup.subtree_control", wanted)
            except OSError as error:
                raise self.explain(error, path, f"hand controllers down in {directory}") from None
            directory = f"{directory}/{part}"

    def _frozen(self, path: str) -> bool:
        try:
            return "frozen 1" in read_text(f"{self.main_dir(path)}/cgroup.events").splitlines()
        except OSError as error:
            raise self.explain(error, path) from None

    def _kill_file(self, path: str) -> int:
        number = len(self.pids(path))
        with suppress(NotFound):
            self._write(path, "cgroup.kill", "1")
            self._write(path, "cgroup.freeze", "0")
        return number

    def _write(self, path: str, file: str, value: str) -> None:
        try:
            write_text(f"{self.main_dir(path)}/{file}", value)
        except OSError as error:
            raise self.explain(error, path) from None


def _swap_room(base: str, limit: str | None) -> int:
    """How much more of the cgroup's memory may go to swap. limit: a new memory.swap.max, if not the one it has."""
    areas = [line.split() for line in read_text("/proc/swaps").splitlines()[1:]]
    free = sum(int(size) - int(used) for _, _, size, used, _ in areas) * 1024
    file = f"{base}/memory.swap.max"
    limit = limit or (read_text(file).strip() if os.path.exists(file) else "0")
    used = read_number(f"{base}/memory.swap.current")
    return min(free, max(0, int(limit) - used)) if limit.isdigit() else free


def weight_of_shares(shares: int) -> int:
    """cpu.weight (1..10000) of v1 shares (2..262144), by the formula crun, runc and Kubernetes share."""
    return 1 + (shares - 2) * 9999 // 262142


def _cpu(limits: Limits) -> list[Setting]:
    found = []
    if limits.quota_us is not None or limits.period_us is not None:
        quota = _max(limits.quota_us if limits.quota_us is not None else UNLIMITED)
        value = f"{quota} {limits.period_us or DEFAULT_PERIOD_US}"
        found.append(Setting("cpu", "cpu.max", value, name="cpus"))
    if limits.shares is not None:
        found.append(Setting("cpu", "cpu.weight", str(weight_of_shares(limits.shares)), name="cpu_shares"))
    for file, value_ in (("cpuset.cpus", limits.cpus), ("cpuset.mems", limits.mems)):
        if value_ is not None:
            found.append(Setting("cpuset", file, value_, "list", file.replace(".", "_")))
    return found


def _throttle(device: IoDevice) -> Setting:
    rates = " ".join(f"{_IO_KEYS[rate]}={value}" for rate, value in device.rates.items())
    return Setting("io", "io.max", f"{device.major}:{device.minor} {rates}", "line", "io")


def _max(value: int) -> str:
    return "max" if value == UNLIMITED else str(value)


def _cpu_stats(base: str, stats: Stats) -> None:
    pairs = read_pairs(f"{base}/cpu.stat")
    stats.cpu_usage_ns = pairs.get("usage_usec", 0) * 1000
    stats.cpu_user_ns = pairs.get("user_usec", 0) * 1000
    stats.cpu_system_ns = pairs.get("system_usec", 0) * 1000
    stats.cpu_throttled_ns = pairs.get("throttled_usec", 0) * 1000
    stats.cpu_throttled_periods = pairs.get("nr_throttled", 0)


def _memory_stats(base: str, stats: Stats) -> None:
    pairs = read_pairs(f"{base}/memory.stat")
    usage = read_number(f"{base}/memory.current")
    stats.memory_usage_bytes = usage
    stats.memory_working_set_bytes = max(0, usage - pairs.get("inactive_file", 0))
    stats.memory_peak_bytes = read_number(f"{base}/memory.peak")
    stats.memory_limit_bytes = read_number(f"{base}/memory.max")
    stats.memory_file_bytes = pairs.get("file", 0)
    stats.memory_anon_bytes = pairs.get("anon", 0)
    stats.swap_usage_bytes = read_number(f"{base}/memory.swap.current")


def _io_stats(base: str, stats: Stats) -> None:
    with suppress(OSError):
        for line in read_text(f"{base}/io.stat").splitlines():
            pairs = dict(word.split("=", 1) for word in line.split()[1:] if "=" in word)
            stats.io_read_bytes += int(pairs.get("rbytes", 0))
            stats.io_write_bytes += int(pairs.get("wbytes", 0))
            stats.io_reads += int(pairs.get("rios", 0))
            stats.io_writes += int(pairs.get("wios", 0))


def _pressure(file: str, name: str) -> dict[str, float]:
    """ "some avg10=0.12 …" lines as {"cpu.some.avg10": 0.12, …}; percent of time; {} without PSI."""
    found: dict[str, float] = {}
    with suppress(OSError):
        for line in read_text(file).splitlines():
            kind, *pairs = line.split()
            for pair in pairs:
                key, _, value = pair.partition("=")
                if key.startswith("avg"):
                    found[f"{name}.{kind}.{key}"] = float(value)
    return found


def _quota(directory: str) -> list[str]:
    try:
        return read_text(f"{directory}/cpu.max").split()
    except OSError:
        return []
