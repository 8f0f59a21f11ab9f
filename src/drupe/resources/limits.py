"""Limits that hold: applied, then read back from the kernel."""

from __future__ import annotations

from drupe.errors import InternalError
from drupe.resources.cgroups import Cgroups
from drupe.spec.resources import Resources


def apply_verified(cgroups: Cgroups, path: str, resources: Resources) -> None:
    """Apply limits and read each back. InternalError names what the kernel did not take."""
    cgroups.apply(path, resources)
    wrong = cgroups.verify(path, resources)
    if wrong:
        raise InternalError(f"limits not taken by the kernel: {'; '.join(wrong)}", stage="limits")


def end_and_remove(cgroups: Cgroups, path: str) -> None:
    """Kill what lives in a cgroup and remove it and those below; gone already is success. Raises InvalidState."""
    if cgroups.pids(path):
        cgroups.kill_all(path)
    cgroups.delete(path)
