"""What a machine is and what it costs beside what its pod was promised."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from pathlib import Path

from google.protobuf.empty_pb2 import Empty

from drupe.errors import DrupeError
from drupe.hypervisors.contract import Hypervisor
from drupe.rpc.guest import guest_pb2 as pb
from drupe.sandboxers.vm.options import VmOptions
from drupe.sandboxers.vm.pods import VmPod
from drupe.spec.status import MachineInfo

_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+ *(.*)$")
_GUESTS_MEMORY = re.compile(r"^/memfd:|/memory(?: \(deleted\))?$")
_ANSWERS_WITHIN_S = 5.0


async def describe(pod: VmPod, options: VmOptions, hypervisor: Hypervisor) -> MachineInfo:
    """Its record's numbers and, from the guest and from /proc, what is measured; zeros where nobody answers."""
    record = pod.record
    info = MachineInfo(
        hypervisor=hypervisor.name, machine_type=record.machine_type, accelerator=record.accelerator,
        processors=record.processors_now, processors_max=record.processors_max,
        memory_bytes=record.memory_now, memory_max_bytes=record.memory_max_bytes,
        overhead_bytes=options.overhead_bytes, vmm_bytes=options.vmm_bytes, notes=[*record.start_notes, *record.notes],
    )  # fmt: skip
    info.host_bytes = await asyncio.to_thread(lambda: sum(own_bytes(pid) for pid in list(pod.pids.values())))
    if not record.paused:
        info.guest_bytes = await _kept_by_guest(pod)
    return info


async def _kept_by_guest(pod: VmPod) -> int:
    """What its kernel does not hand out, and its agent."""
    try:
        told = await pod.agent.guest("Metrics", Empty(), pb.MetricsResponse, timeout_s=_ANSWERS_WITHIN_S)
    except DrupeError:
        return 0
    return max(pod.record.memory_now - told.memory_total_bytes, 0) + told.agent_rss_bytes


def own_bytes(pid: int) -> int:
    """PSS of a process without what it maps of a machine's memory (proc_pid_smaps(5)); 0 for one that has gone."""
    try:
        with Path(f"/proc/{pid}/smaps").open() as lines:
            return _own(lines)
    except OSError:
        return 0


def _own(lines: Iterable[str]) -> int:
    total, counts = 0, True
    for line in lines:
        if line.startswith("Pss:"):
            total += int(line.split()[1]) * 1024 if counts else 0
        elif (mapping := _MAPPING.match(line)) is not None:
            counts = not _GUESTS_MEMORY.search(mapping[1])
    return total
