"""How many processes and threads a pod may have on the host. The host counts: so the bound holds for a kernel that was
taken over, too, and guests are told EAGAIN by the kernel, who is told it by the host."""

from __future__ import annotations

from pathlib import Path

import msgspec

from drupe.resources.cgroups import Cgroups
from drupe.spec.resources import Resources

_SHARE = 0.15  # as systemd gives a unit (TasksMax): no pod alone can take what the host can number
OWN_TASKS = (
    3  # the kernel, the holder of its stubs' namespaces, and the first stub: the host counts them, guests do not
)
_NUMBERS = ("pid_max", "threads-max")


def most_tasks(kernel: Path = Path("/proc/sys/kernel")) -> int:
    """Of one pod, its kernel's own few included; by the host's own limits (proc_sys_kernel(5))."""
    return int(min(int((kernel / name).read_text()) for name in _NUMBERS) * _SHARE)


def bounded(cgroups: Cgroups, resources: Resources) -> Resources:
    """With that bound; without it where the host's cgroups cannot count tasks."""
    if "pids" not in cgroups.controllers:
        return resources
    return msgspec.structs.replace(resources, pids=most_tasks())
