"""Machines that run get another size: processors and memory come and go, and the guest takes them into use."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from drupe.errors import DeadlineExceeded, InvalidState, ResourceExhausted, Unsupported
from drupe.hypervisors.contract import Hypervisor, Machine
from drupe.rpc.guest import guest_pb2 as pb
from drupe.sandboxers.vm.options import VmOptions
from drupe.sandboxers.vm.pods import VmPod
from drupe.sandboxers.vm.sizing import memory_for, processors_for, require_fits
from drupe.spec.resources import Resources

_MIB = 1 << 20
_ONLINE_WITHIN_S = 20.0
_BALLOON_WITHIN_S = 30.0
_BALLOON_STANDS_S = 3.0  # a guest that has not moved for so long has no more to give
_LOOK_EVERY_S = 0.05
_HINT = (
    "kinds.vm.memory_max_bytes and processors_max say up to where; a pod that is stopped and started has its new size"
)


async def fit(
    pod: VmPod, hypervisor: Hypervisor, containers: Sequence[Resources], options: VmOptions, *, grow_only: bool
) -> Sequence[str]:
    """Have a machine be as its pod and these containers are limited; one that does not run is noted so. Answers, in
    words, what could not be had."""
    record = pod.record
    memory, processors = memory_for(record.limits, containers, options), processors_for(record.limits, containers)
    if pod.machine is None:
        require_fits(memory, options)
        record.memory_bytes = record.memory_now = memory
        record.processors = record.processors_now = processors
        record.memory_max_bytes = max(record.memory_max_bytes, memory)
        record.processors_max = max(record.processors_max, processors)
        record.save()
        return ()
    if grow_only:
        memory, processors = max(memory, record.memory_now), max(processors, record.processors_now)
    return await resize(pod, hypervisor, memory_bytes=memory, processors=processors)


async def resize(pod: VmPod, hypervisor: Hypervisor, *, memory_bytes: int, processors: int) -> list[str]:
    """Have a machine that runs be of that size; answers, in words, what could not be had. ResourceExhausted for more
    than it was made for, Unsupported when its program cannot, InvalidState while it is paused."""
    record = pod.record
    if (memory_bytes, processors) == (record.memory_now, record.processors_now):
        return []
    if record.paused:
        raise InvalidState("a paused machine keeps its size", hint="resume the pod first")
    able = hypervisor.abilities_of(record.machine_type)
    async with pod.plugging:
        notes = await _set_processors(pod, able["resize-processors"], processors)
        notes += await _set_memory(pod, able["resize-memory"], memory_bytes)
        record.save()
    return notes


async def _set_processors(pod: VmPod, able: str, wanted: int) -> list[str]:
    """Those that it had from the start stay and are taken out of use by the guest."""
    record, machine = pod.record, pod.require()
    if wanted == record.processors_now:
        return []
    if wanted > record.processors_max:
        raise _too_large(able, f"{record.processors_max} processors, not {wanted}")
    if able.startswith("no"):
        return [f"the machine keeps its {record.processors_now} processors{_because(able)}"]
    online = pb.SetOnlineRequest(processors=wanted, timeout_ms=round(_ONLINE_WITHIN_S * 1000))
    try:
        await machine.resize(processors=max(wanted, await _fewest(pod)))
        answer = await pod.agent.guest("SetOnline", online, pb.SetOnlineResponse, timeout_s=2 * _ONLINE_WITHIN_S)
    except DeadlineExceeded as error:
        return [f"{wanted} processors could not be had: {error.message}"]
    record.processors_now = answer.processors
    return []


async def _fewest(pod: VmPod) -> int:
    """How many processors stay plugged in, out of use. By emulation all do: QEMU (7.2) aborts, and the machine with it,
    where one comes back that was taken out (tcg_register_thread counts them only up)."""
    return (await pod.require().status()).processors if pod.record.accelerator == "tcg" else pod.record.processors


async def _set_memory(pod: VmPod, able: str, wanted: int) -> list[str]:
    record, machine = pod.record, pod.require()
    if wanted == record.memory_now:
        return []
    if wanted > record.memory_max_bytes:
        raise _too_large(able, f"{record.memory_max_bytes // _MIB} MiB of memory, not {wanted // _MIB}")
    if able.startswith("no"):
        return [f"the machine keeps its {record.memory_now // _MIB} MiB{_because(able)}"]
    reached = (await machine.resize(memory_bytes=wanted)).memory_bytes
    if wanted < record.memory_bytes:
        reached -= record.memory_bytes - await _deflated(machine, wanted)
    record.memory_now = reached
    if reached == wanted:
        return []
    missing = abs(reached - wanted) // _MIB
    what = "were not given back: the guest uses them" if reached > wanted else "were not taken by the guest"
    return [f"{missing} MiB of memory {what}; the machine has {reached // _MIB} MiB now"]


async def _deflated(machine: Machine, wanted: int) -> int:
    """What the guest has left once it has given back what was asked, or time is over."""
    until, seen, moved = time.monotonic() + _BALLOON_WITHIN_S, 0, time.monotonic()
    while (now := round((await machine.metrics()).get("balloon_actual_bytes", wanted))) > wanted:
        if now != seen:
            seen, moved = now, time.monotonic()
        if time.monotonic() > until or time.monotonic() > moved + _BALLOON_STANDS_S:
            return now
        await asyncio.sleep(_LOOK_EVERY_S)
    return wanted


def _too_large(able: str, what: str) -> ResourceExhausted | Unsupported:
    if able.startswith("no"):
        return Unsupported(f"the machine of the pod is for {what}", kind="vm", feature="update", cause=able[4:])
    return ResourceExhausted(f"the machine of the pod is for at most {what}", hint=_HINT)


def _because(able: str) -> str:
    return f": {able.partition(': ')[2]}" if ": " in able else ""
