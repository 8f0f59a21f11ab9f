"""A machine's interfaces: those that are found in the pod's network namespace, each joined to a tap that the VMM opens.
So all that made the pod's network, and all rules outside of it, hold for a machine too."""

from __future__ import annotations

from collections.abc import Sequence

from drupe.hypervisors.contract import Nic
from drupe.keeper.client import Keeper
from drupe.linux.rtnetlink import Link
from drupe.resources.network.endpoints import joining
from drupe.resources.network.endpoints.contract import Joined, Wanted
from drupe.rpc.guest import guest_pb2 as pb

WANTED = Wanted(vfio=False)  # tc-filter, which goes with whatever carries Ethernet frames


async def join(keeper: Keeper, netns: str) -> list[Joined]:
    """Join what the namespace holds now. Made before, it is found again."""
    if not netns:
        return []
    return [await joining.join(keeper, netns, one, WANTED) for one in await joining.find(keeper, netns)]


async def part(keeper: Keeper, netns: str) -> None:
    """Undo `join`. Idempotent."""
    if netns:
        await joining.part(keeper, netns)


def nics_of(joined: Sequence[Joined]) -> list[Nic]:
    """As the driver wants them."""
    links = [(one.endpoint.link, one.tap) for one in joined if one.tap]
    return [Nic(id=id_of(link), mac=link.mac, tap=tap, mtu=link.mtu) for link, tap in links]


def id_of(link: Link) -> str:
    """What the machine's interface is called by its program: follows from the link's index."""
    return f"nic{link.index}"


def interfaces_of(joined: Sequence[Joined]) -> list[pb.Interface]:
    """As the guest's agent wants them."""
    found = [one.endpoint for one in joined if one.tap]
    return [
        pb.Interface(
            device=pb.Device(mac=one.link.mac), name=one.name, mac=one.link.mac, mtu=one.link.mtu,
            addresses=one.addresses, up=True,
        )
        for one in found
    ]  # fmt: skip


def routes_of(joined: Sequence[Joined]) -> list[pb.Route]:
    """The guest's routes."""
    routes = [route for one in joined if one.tap for route in one.endpoint.routes]
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
