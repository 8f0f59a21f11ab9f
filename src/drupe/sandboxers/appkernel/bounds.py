"""How many processes and threads a pod may have on the host. The host counts: so the bound holds for a kernel that was
taken over, too, and guests are told EAGAIN by the kernel, who is told it by the host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from drupe.resources.cgroups import Cgroups
from drupe.resources.cgroups.base import read_text
from drupe.spec.resources import Resources

_SHARE = 0.15  # as systemd gives a unit (TasksMax): no pod alone can take what the host can number
OWN_TASKS = (
    3  # the kernel, the holder of its stubs' namespaces, and the first stub: the host counts them, guests do not
)
_NUMBERS = ("pid_max", "threads-max")


def most_tasks(kernel: Path = Path("/proc/sys/kernel")) -> int:
    """Of one pod, its kernel's own few included; by the host's own limits (proc_sys_kernel(5))."""
    return int(min(int((kernel / name).read_text()) for name in _NUMBERS) * _SHARE)


def seen_limits(version: int, cgroups: Sequence[str]) -> tuple[int, int]:
    """Memory and processors that a process in these directories may have, 0 for no limit (cgroups(7)). version: of
    their files."""
    name = "memory.limit_in_bytes" if version == 1 else "memory.max"
    limits = [int(text) for cgroup in cgroups if (text := _text(f"{cgroup}/{name}").strip()).isdigit()]
    quotas = [quota for cgroup in cgroups for quota in _quotas(version, Path(cgroup))]
    return min(limits, default=0), int(max(1.0, min(quotas))) if quotas else 0


def _quotas(version: int, cgroup: Path) -> Iterator[float]:
    """Processors' worth of time: of this one, and of those above, which hold too."""
    for one in (cgroup, *cgroup.parents):
        text = _text(f"{one}/cpu.max" if version > 1 else f"{one}/cpu.cfs_quota_us")
        if not text:
            return
        quota, period = text.split() if version > 1 else (text.strip(), _text(f"{one}/cpu.cfs_period_us"))
        if quota.isdigit():
            yield int(quota) / int(period)


def _text(file: str) -> str:
    """Empty where there is none."""
    try:
        return read_text(file)
    except OSError:
        return ""


def bounded(cgroups: Cgroups, resources: Resources) -> Resources:
    """With that bound; without it where the host's cgroups cannot count tasks."""
    if "pids" not in cgroups.controllers:
        return resources
    return msgspec.structs.replace(resources, pids=most_tasks())
