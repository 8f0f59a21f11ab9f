"""Limits of containers that share one kernel, which the host sees as one program: they hold for the pod, added up.

containerd's CRI sends limits for every container, and users give them so. What they hold a pod to is the sum, as the
kubelet has it: a container may use what its neighbours leave. `Status` tells the sums (docs/containerd.md).
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from drupe.errors import Unsupported
from drupe.runtime.pod import Pod
from drupe.services.containerd.podspecs import limits
from drupe.services.containerd.sandboxes import config_made_of
from drupe.services.containerd.tasks import Task, Tasks
from drupe.spec.base import plain
from drupe.spec.container import ContainerSpec
from drupe.spec.resources import Resources
from drupe.state.machine import State

UNLIMITED = -1
_PERIOD_US = 100_000
_MOST_SHARES = 262_144
_LIFTED = ("memory_swap_bytes", "memory_bytes", "cpu_quota_us")
_ADDED = {"cpu_quota_us", "cpu_period_us", "cpu_shares", "memory_bytes", "memory_swap_bytes"}


def are_shared(pod: Pod) -> bool:
    """Whether containers of this pod cannot be limited one by one."""
    return pod.sandboxer.capabilities()["container-limits"] != "yes"


def split(pod: Pod, spec: ContainerSpec) -> tuple[ContainerSpec, Resources]:
    """A container as the pod can make it, and what the pod is to be held to for it. Raises Unsupported for limits that
    cannot be added up."""
    if not are_shared(pod):
        return spec, Resources()
    for name in plain(spec.resources):
        if name not in _ADDED:
            raise Unsupported(
                f"{name} of a container is not carried out by {pod.kind} sandboxes",
                kind=pod.kind,
                feature="container-limits",
                cause="its containers share one kernel; time and memory are limited for all of them together",
            )
    return msgspec.structs.replace(spec, resources=Resources()), spec.resources


async def hold(tasks: Tasks, pod: Pod, *coming: Resources, without: Task | None = None) -> None:
    """Limit a pod by the sums over its containers, and those to come. without: of whom only what is to come counts."""
    if not are_shared(pod):
        return
    living = (task for task in tasks.in_pod(pod) if task.container.state is not State.STOPPED and task is not without)
    total = added([*(task.record.limits for task in living), *coming])
    given, now = _given(tasks, pod), plain(pod.spec.resources)
    lifted = {name: UNLIMITED for name in _LIFTED if name in now}
    wanted = {name: value for name, value in {**lifted, **plain(total)}.items() if name not in given}
    new = msgspec.convert(wanted, Resources)
    if any(now.get(name) != value for name, value in wanted.items()):
        async with pod.lock:
            await pod.update(new)


def _given(tasks: Tasks, pod: Pod) -> set[str]:
    """The limits that the pod itself was made with: they hold whatever its containers have."""
    if pod.spec.cgroup_parent is not None:
        return set()
    return set(plain(limits(config_made_of(tasks.node.journal, pod.id).linux)))


def added(limits: Iterable[Resources]) -> Resources:
    """The sums: of memory and of processors' time where every one is limited, of weights that were given."""
    every = list(limits)
    quotas = [_per_period(one) for one in every]
    shares = sum(one.cpu_shares or 0 for one in every)
    memory = _sum(one.memory_bytes for one in every)
    return Resources(
        cpu_quota_us=_sum(quotas),
        cpu_period_us=_PERIOD_US if _sum(quotas) else None,
        cpu_shares=min(shares, _MOST_SHARES) or None,
        memory_bytes=memory,
        memory_swap_bytes=_sum(one.memory_swap_bytes for one in every) if memory else None,
    )


def _per_period(one: Resources) -> int | None:
    if not one.cpu_quota_us or one.cpu_quota_us < 0:
        return None
    return one.cpu_quota_us * _PERIOD_US // (one.cpu_period_us or _PERIOD_US)


def _sum(values: Iterable[int | None]) -> int | None:
    """None where one has none: together they have none either."""
    every = list(values)
    return sum(value or 0 for value in every) if every and all((value or 0) > 0 for value in every) else None
