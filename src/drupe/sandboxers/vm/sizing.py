"""How big a machine is: what its pod is limited to, and what its own kernel needs beside that."""

from __future__ import annotations

import math
import os

from drupe.guest import Guest
from drupe.hypervisors.contract import Accelerator
from drupe.sandboxers.contract import SandboxConfig
from drupe.sandboxers.vm.options import VmOptions, rootfs_for
from drupe.sandboxers.vm.records import PodRecord
from drupe.spec.pod import PodSpec
from drupe.spec.resources import Resources

_UNIT_BYTES = 2 << 20
_SHM_BYTES = 64 << 20  # of pods that name no container yet


def plan(config: SandboxConfig, options: VmOptions, guest: Guest, accelerator: Accelerator) -> PodRecord:
    """The machine for a pod, without its network."""
    spec = config.spec
    memory, processors = memory_of(spec, options), processors_of(spec)
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
        machine_type=options.machine_type,
        memory_bytes=memory,
        memory_max_bytes=max(options.memory_max_bytes, memory),
        processors=processors,
        processors_max=max(options.processors_max, processors),
        rootfs=rootfs_for(options, spec),
        share_pid=spec.namespaces.pid == "pod",
        shm_bytes=max((one.shm_size_bytes for one in spec.containers), default=_SHM_BYTES),
        sysctls=dict(spec.sysctls),
    )


def memory_of(spec: PodSpec, options: VmOptions) -> int:
    """Bytes of the machine's memory: the pod's limit or the sum of its containers', where they all have one, and the
    guest's own part; without limits what the node says."""
    limit = spec.resources.memory_bytes
    if limit is None:
        limits = [one.resources.memory_bytes for one in spec.containers]
        limit = sum(one or 0 for one in limits) if limits and all(limits) else None
    size = options.memory_bytes if limit is None else limit + options.overhead_bytes
    return math.ceil(size / _UNIT_BYTES) * _UNIT_BYTES


def processors_of(spec: PodSpec) -> int:
    """As many as the limits let it use, one at least and no more than the host has; without a limit one."""
    wanted = spec.resources.cpus or sum(one.resources.cpus or 0.0 for one in spec.containers)
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
