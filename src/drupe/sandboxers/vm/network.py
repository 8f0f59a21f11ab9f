"""A machine's interfaces: each of the pod's, found in its network namespace, gets a tap beside it, and what comes in by
one goes out by the other. So all that made the pod's network, and all rules outside of it, hold for a machine too."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from typing import Any

from drupe.errors import HelperFailed
from drupe.hypervisors.contract import Nic
from drupe.keeper.client import Keeper
from drupe.linux import rtnetlink, traffic
from drupe.linux.netlink import NETLINK_ROUTE, Netlink, NetlinkError
from drupe.rpc.guest import guest_pb2 as pb

_TAP = "drupe-tap"


async def find(keeper: Keeper, netns: str) -> tuple[list[dict[str, Any]], list[pb.Route]]:
    """The interfaces of a pod as the records keep them, and its routes."""
    if not netns:
        return [], []
    with await _inside(keeper, netns) as netlink:
        links = [link for link in rtnetlink.links(netlink) if not link.loopback and not link.name.startswith(_TAP)]
        addresses = rtnetlink.addresses(netlink)
        routes = [r for family in (socket.AF_INET, socket.AF_INET6) for r in rtnetlink.routes(netlink, family)]
    names = {link.index: link.name for link in links}
    found = [
        {
            "id": f"nic{number}",
            "name": link.name,
            "mac": link.mac,
            "mtu": link.mtu,
            "tap": f"{_TAP}{number}",
            "addresses": [str(address) for index, address in addresses if index == link.index],
        }
        for number, link in enumerate(link for link in links if link.up)
    ]
    return found, [_route(route, names) for route in routes if route.index in names]


async def join(keeper: Keeper, netns: str, nics: Sequence[dict[str, Any]]) -> None:
    """Bring the taps up, which the VMM has made, and tie each to its interface. HelperFailed names the kernel's
    objection."""
    if not nics:
        return
    try:
        with await _inside(keeper, netns) as netlink:
            index = {link.name: link.index for link in rtnetlink.links(netlink)}
            for nic in nics:
                tie(netlink, index[nic["name"]], index[nic["tap"]])
    except (NetlinkError, KeyError) as error:
        raise HelperFailed(
            "the machine's interfaces cannot be tied to the pod's", stage="network", cause=str(error)
        ) from None


def tie(netlink: Netlink, one: int, other: int) -> None:
    """Tie two interfaces of a namespace to each other. Idempotent."""
    for index in (one, other):
        netlink.batch([rtnetlink.set_up(index)])
        for message in (traffic.ingress_queue(index), traffic.redirect_all(index, other if index == one else one)):
            try:
                netlink.batch([message])
            except NetlinkError as error:
                if error.errno != errno.EEXIST:
                    raise


def nics_of(records: Sequence[dict[str, Any]]) -> list[Nic]:
    """As the driver wants them."""
    return [Nic(id=one["id"], mac=one["mac"], tap=one["tap"], mtu=one["mtu"]) for one in records]


def interfaces_of(records: Sequence[dict[str, Any]]) -> list[pb.Interface]:
    """As the guest's agent wants them."""
    return [
        pb.Interface(
            device=pb.Device(mac=one["mac"]), name=one["name"], mac=one["mac"], mtu=one["mtu"],
            addresses=one["addresses"], up=True,
        )
        for one in records
    ]  # fmt: skip


def _route(route: rtnetlink.Route, names: dict[int, str]) -> pb.Route:
    return pb.Route(
        destination=str(route.destination or ""), gateway=str(route.gateway or ""), interface=names[route.index]
    )


async def _inside(keeper: Keeper, netns: str) -> Netlink:
    return Netlink(fd=await keeper.netns_socket(netns, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE))
