"""How many processes and threads there may be. On the host, of a pod: the host counts, so the bound holds for a kernel
that was taken over, too. In the pod (`--pids-limit`): its kernel counts, who knows its guests' tasks from its stubs."""

from __future__ import annotations

from pathlib import Path

import msgspec

from drupe.errors import Unsupported
from drupe.resources.cgroups import Cgroups
from drupe.spec.base import plain
from drupe.spec.resources import Resources

_SHARE = 0.15  # as systemd gives a unit (TasksMax): no pod alone can take what the host can number
# The kernel, the holder of its stubs' namespaces, and the first stub: the host counts them, guests do not.
OWN_TASKS = 3
_NUMBERS = ("pid_max", "threads-max")
_TIME = frozenset({"cpus", "cpu_quota_us", "cpu_period_us"})
_OF_ONE = _TIME | {"memory_bytes", "memory_swap_bytes", "memory_reservation_bytes", "pids"}
_PERIOD_US = 100_000


def most_tasks(kernel: Path = Path("/proc/sys/kernel")) -> int:
    """Of one pod, its kernel's own few included; by the host's own limits (proc_sys_kernel(5))."""
    return int(min(int((kernel / name).read_text()) for name in _NUMBERS) * _SHARE)


def bounded(cgroups: Cgroups, resources: Resources) -> Resources:
    """Limits of a kernel's cgroup: with that bound, where the host's cgroups can count tasks."""
    return msgspec.structs.replace(resources, pids=most_tasks() if "pids" in cgroups.controllers else None)


def check_of_one(resources: Resources) -> None:
    """Raise Unsupported for limits of one container among several that only the host could hold: it would hold the
    kernel up for the others, too, for that waits for its stubs, however slow they are made."""
    for name in plain(resources):
        if name not in _OF_ONE:
            raise Unsupported(
                f"{name} of one container among several is not carried out by appkernel sandboxes",
                kind="appkernel", feature="container-limits", cause="its containers share one kernel",
                hint="limit the pod; of one container memory, time (quota) and the number of tasks can be limited",
            )  # fmt: skip


def on_host(resources: Resources) -> Resources:
    """Without what the kernel counts by itself."""
    return msgspec.structs.replace(resources, pids=None)


def of_one_on_host(resources: Resources) -> Resources:
    """What the host holds of the limits of one container among several."""
    return msgspec.structs.replace(on_host(resources), cpus=None, cpu_quota_us=None, cpu_period_us=None)


def time_of(resources: Resources, before: list[int]) -> list[int]:
    """Quota and period in microseconds, of which `before` was set; []: no bound (cgroups(7), cpu.max)."""
    period = resources.cpu_period_us or (before[1:] or [_PERIOD_US])[0]
    quota = resources.cpu_quota_us
    if resources.cpus is not None:
        quota = int(resources.cpus * period)
    elif quota is None:
        quota = before[0] * period // before[1] if before else 0
    return [quota, period] if quota > 0 else []


def memory_of(resources: Resources) -> int:
    """In bytes; 0: all there is."""
    return max(0, resources.memory_bytes or 0)


def tasks_of(resources: Resources) -> int:
    """How many tasks the guests may have; 0: any number."""
    return max(0, resources.pids or 0)
