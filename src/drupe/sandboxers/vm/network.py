"""A machine's interfaces: those that are found in the pod's network namespace, each joined to a tap that the VMM opens.
So all that made the pod's network, and all rules outside of it, hold for a machine too."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from drupe.hypervisors.contract import Nic
from drupe.keeper.client import Keeper
from drupe.linux.rtnetlink import Link
from drupe.resources.network.endpoints import joining
from drupe.resources.network.endpoints.contract import Joined, Wanted
from drupe.rpc.guest import guest_pb2 as pb
from drupe.sandboxers.vm.records import PodRecord

_NODES = Path("/dev/drupe")  # a run directory may be on a file system without device nodes


async def join(keeper: Keeper, record: PodRecord) -> list[Joined]:
    """Join what the namespace holds now. Made before, it is found again."""
    if not record.netns:
        return []
    wanted = _wanted(record)
    if wanted.model == "macvtap":
        wanted.dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = await joining.find(keeper, record.netns, vhost_user=wanted.vhost_user)
    return [await joining.join(keeper, record.netns, one, wanted) for one in found]


def _wanted(record: PodRecord) -> Wanted:
    vhost_user = Path(record.vhost_user) if record.vhost_user else None
    directory = _NODES / record.id
    return Wanted(
        model=record.network, queues=record.queues, owner=record.owner, dir=directory, vhost_user=vhost_user, vfio=False
    )


async def part(keeper: Keeper, record: PodRecord) -> None:
    """Undo `join`. Idempotent."""
    if record.netns:
        await joining.part(keeper, record.netns, directory=_NODES / record.id)
    if record.network == "macvtap":
        with contextlib.suppress(OSError):
            (_NODES / record.id).rmdir()


def nics_of(joined: Sequence[Joined]) -> list[Nic]:
    """As the driver wants them."""
    return [_nic(one, one.endpoint.link) for one in joined if one.how != "left out"]


def _nic(one: Joined, link: Link) -> Nic:
    return Nic(
        id=id_of(link), mac=link.mac, tap=one.tap, mtu=link.mtu, queues=one.queues, socket=one.socket, node=one.node
    )


def id_of(link: Link) -> str:
    """What the machine's interface is called by its program: follows from the link's index."""
    return f"nic{link.index}"


def interfaces_of(joined: Sequence[Joined]) -> list[pb.Interface]:
    """As the guest's agent wants them."""
    found = [one.endpoint for one in joined if one.how != "left out"]
    return [
        pb.Interface(
            device=pb.Device(mac=one.link.mac), name=one.name, mac=one.link.mac, mtu=one.link.mtu,
            addresses=one.addresses, up=True,
        )
        for one in found
    ]  # fmt: skip


def routes_of(joined: Sequence[Joined]) -> list[pb.Route]:
    """The guest's routes."""
    routes = [route for one in joined if one.how != "left out" for route in one.endpoint.routes]
    return [
        pb.Route(
            destination=route.destination, gateway=route.gateway, interface=route.interface, source=route.source,
            scope=route.scope, metric=route.metric,
        )
        for route in routes
    ]  # fmt: skip


def left_out(joined: Sequence[Joined]) -> list[str]:
    """What the guest does not get, or gets by another way than usual, and why."""
    return [one.note for one in joined if one.note]
