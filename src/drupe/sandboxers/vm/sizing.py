"""How big a machine is: what its pod is limited to, and what its own kernel needs beside that."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

from drupe.errors import ResourceExhausted
from drupe.guest import Guest
from drupe.hypervisors.contract import Accelerator, Hypervisor
from drupe.resources.cgroups.limits import UNLIMITED
from drupe.sandboxers.contract import SandboxConfig
from drupe.sandboxers.vm.options import VmOptions, check_annotations, network_for, queues_for, rootfs_for
from drupe.sandboxers.vm.records import PodRecord
from drupe.spec.pod import PodSpec
from drupe.spec.resources import Resources

_UNIT_BYTES = 2 << 20
_SHM_BYTES = 64 << 20  # of pods that name no container yet
_PROCESSORS_AT_MOST = 8  # a guest keeps memory for each processor that may come


def plan(
    config: SandboxConfig, options: VmOptions, guest: Guest, accelerator: Accelerator, hypervisor: Hypervisor
) -> PodRecord:
    """The machine for a pod, without its network."""
    spec = config.spec
    check_annotations(spec)
    memory, processors = memory_of(spec, options), processors_of(spec)
    machine_type = machine_type_of(options, hypervisor)
    able = hypervisor.abilities_of(machine_type)
    require_fits(memory, options)
    memory_max, processors_max = _room(options, able)
    return PodRecord(
        id=config.id,
        dir=str(config.dir),
        cgroup=config.cgroup,
        hostname=config.hostname,
        netns="",
        kernel=str(guest.kernel),
        initrd=str(guest.initrd or ""),
        append=list(options.append),
        accelerator=accelerator,
        machine_type=machine_type,
        hypervisor=hypervisor.name,
        memory_bytes=memory,
        memory_max_bytes=max(memory_max, memory),
        processors=processors,
        processors_max=max(processors_max, processors),
        memory_now=memory,
        processors_now=processors,
        limits=spec.resources,
        network=network_for(options, spec),
        queues=min(queues_for(options, spec, able), processors),  # one serves no more than its own
        owner=hypervisor.owner(config.id),
        vhost_user=options.vhost_user,
        rootfs=rootfs_for(options, spec, able),
        share_pid=spec.namespaces.pid == "pod",
        shm_bytes=max((one.shm_size_bytes for one in spec.containers), default=_SHM_BYTES),
        sysctls=dict(spec.sysctls),
    )


def machine_type_of(options: VmOptions, hypervisor: Hypervisor) -> str:
    """The node's setting speaks of its own program."""
    return options.machine_type if hypervisor.name == options.hypervisor else ""


def _room(options: VmOptions, able: Mapping[str, str]) -> tuple[int, int]:
    """Up to what memory and how many processors a machine may grow: what the node says, or what the host has, as far
    as its program can."""
    memory = most_memory(options)
    processors = options.processors_max or min(os.cpu_count() or 1, _PROCESSORS_AT_MOST)
    grows = {word: not able[f"resize-{word}"].startswith("no") for word in ("memory", "processors")}
    return (memory // _UNIT_BYTES * _UNIT_BYTES if grows["memory"] else 0), (processors if grows["processors"] else 0)


def most_memory(options: VmOptions) -> int:
    """Bytes of memory that a machine has at most: what the node says, or what the host has."""
    return options.memory_max_bytes or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def require_fits(memory_bytes: int, options: VmOptions) -> None:
    """ResourceExhausted for a machine of more memory than there is: its kernel would be busy with the tables alone."""
    if memory_bytes > (most := most_memory(options)):
        raise ResourceExhausted(
            f"a machine here has at most {most >> 20} MiB of memory, not {memory_bytes >> 20}",
            stage="size",
            hint="a smaller --memory; kinds.vm.memory_max_bytes, where that is what holds it",
        )


def memory_of(spec: PodSpec, options: VmOptions) -> int:
    """Bytes of memory of the machine for a pod."""
    return memory_for(spec.resources, [one.resources for one in spec.containers], options)


def processors_of(spec: PodSpec) -> int:
    """How many processors the machine for a pod has."""
    return processors_for(spec.resources, [one.resources for one in spec.containers])


def memory_for(pod: Resources, containers: Sequence[Resources], options: VmOptions) -> int:
    """Bytes of memory for a pod's limit, or its containers' limits together, and the guest's own part; what the node
    says for those without a limit."""
    limits = [limit for one in containers if (limit := _limit(one)) is not None]
    if (whole := _limit(pod)) is not None:
        size = whole + options.overhead_bytes
    elif limits and len(limits) == len(containers):
        size = sum(limits) + options.overhead_bytes
    else:
        size = sum(limits) + options.memory_bytes
    return math.ceil(size / _UNIT_BYTES) * _UNIT_BYTES


def _limit(resources: Resources) -> int | None:
    return None if resources.memory_bytes == UNLIMITED else resources.memory_bytes


def processors_for(pod: Resources, containers: Sequence[Resources]) -> int:
    """As many as the limits let it use, one at least and no more than the host has; without a limit one."""
    wanted = pod.cpus or sum(one.cpus or 0.0 for one in containers)
    return min(max(math.ceil(wanted), 1), os.cpu_count() or 1)


def host_limits(resources: Resources, memory_bytes: int, options: VmOptions) -> Resources:
    """The limits of a pod's cgroup on the host: its machine needs more than what runs in it."""
    import msgspec

    if resources.memory_bytes is None:
        return resources
    return msgspec.structs.replace(
        resources,
        memory_bytes=memory_bytes + options.vmm_bytes,
        memory_swap_bytes=None,
        memory_reservation_bytes=None,
        pids=None,
    )
