"""A running machine's interfaces are those of its namespace, whatever comes and goes there: a network that the pod
joins, a namespace that is filled late (Docker's way), an address that changes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from drupe.errors import DrupeError
from drupe.hypervisors.contract import Nic
from drupe.keeper.client import Keeper
from drupe.linux import tuntap
from drupe.resources.network.endpoints import joining
from drupe.resources.network.endpoints.contract import Joined
from drupe.resources.network.endpoints.late import LinkWatch
from drupe.rpc.guest import guest_pb2 as pb
from drupe.sandboxers.vm import network
from drupe.sandboxers.vm.pods import VmPod

_LETS_GO_WITHIN_S = 30.0


async def plug_nic(keeper: Keeper, pod: VmPod, nic: Nic) -> None:
    """Plug an interface in."""
    async with opened(keeper, pod.record.netns, [nic]) as nics:
        await pod.require().add(nics[0])


@contextlib.asynccontextmanager
async def opened(keeper: Keeper, netns: str, nics: Sequence[Nic]) -> AsyncIterator[list[Nic]]:
    """The same with descriptors of their taps, each opened once for each queue; closed at the end."""
    found: list[Nic] = []
    with contextlib.ExitStack() as ours:
        for nic in nics:
            own = [] if nic.socket is not None else [await _open(keeper, netns, nic, ours) for _ in range(nic.queues)]
            found.append(replace(nic, descriptor=own[0], more=tuple(own[1:])) if own else nic)
        yield found


async def _open(keeper: Keeper, netns: str, nic: Nic, ours: contextlib.ExitStack) -> int:
    if nic.node is not None:
        descriptor = os.open(nic.node, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    else:
        descriptor = await keeper.netns_open(netns, tuntap.DEVICE)
    ours.callback(os.close, descriptor)
    tuntap.attach_tap(descriptor, nic.tap or nic.id, queues=nic.queues)
    return descriptor


def told(joined: Sequence[Joined]) -> str:
    """A digest of what a guest is told of its interfaces, to see whether it is something else now."""
    every = [*network.interfaces_of(joined), *network.routes_of(joined)]
    return hashlib.sha256(b"".join(one.SerializeToString(deterministic=True) for one in every)).hexdigest()


class Interfaces:
    """Keeps them the same for machines that run."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    async def follow(self, pod: VmPod) -> None:
        """As long as it runs; what cannot be plugged in is a note of its record."""
        if not pod.record.netns:
            return
        try:
            watch = await LinkWatch.open(self._keeper, pod.record.netns)
        except DrupeError:
            return  # it ends just now
        try:
            while True:
                with contextlib.suppress(DrupeError):
                    await self.settle(pod, strictly=False)
                await watch.changed()
        finally:
            watch.close()

    async def settle(self, pod: VmPod, *, strictly: bool = True) -> None:
        """Have the guest see what the namespace holds now. strictly: raise what cannot be plugged in."""
        async with pod.plugging:
            if pod.machine is None or pod.record.paused or pod.ending:
                return
            joined, notes = await self._join(pod)
            mine = {nic.id: nic for nic in network.nics_of(joined)}
            have = {name for name, _ in pod.record.nics}
            try:
                for name in sorted(have - mine.keys()):
                    await pod.machine.remove(name, timeout_s=_LETS_GO_WITHIN_S)
                await joining.part_orphans(self._keeper, pod.record.netns)
                for nic in (nic for name, nic in mine.items() if name not in have):
                    await plug_nic(self._keeper, pod, nic)
                    have.add(nic.id)
            except DrupeError as error:
                notes.append(f"interfaces: {error}")
                if strictly:
                    raise
            finally:
                self._note(pod, [nic for nic in mine.values() if nic.id in have], notes)
            await self._tell(pod, [one for one in joined if _nic_id(one) in have])

    async def _join(self, pod: VmPod) -> tuple[list[Joined], list[str]]:
        joined = await network.join(self._keeper, pod.record)
        return joined, network.left_out(joined)

    def _note(self, pod: VmPod, nics: Sequence[Nic], notes: list[str]) -> None:
        now = [(nic.id, nic.mac) for nic in nics]
        if now != pod.record.nics or notes != pod.record.notes:
            pod.record.nics, pod.record.notes = now, notes
            pod.record.save()

    async def _tell(self, pod: VmPod, joined: Sequence[Joined]) -> None:
        """The guest's names, addresses and routes."""
        news = told(joined)
        if news == pod.record.told:
            return
        faces = pb.SetInterfacesRequest(interfaces=network.interfaces_of(joined))
        await pod.agent.guest("SetInterfaces", faces)
        await pod.agent.guest("SetRoutes", pb.SetRoutesRequest(routes=network.routes_of(joined)))
        pod.record.told = news
        pod.record.save()


def following(interfaces: Interfaces, pod: VmPod) -> asyncio.Task[None]:
    """`Interfaces.follow`, in the background."""
    return asyncio.ensure_future(interfaces.follow(pod))


def _nic_id(one: Joined) -> str:
    return network.id_of(one.endpoint.link)
