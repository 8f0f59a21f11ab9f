"""What a pod's namespace holds, read by netlink: interfaces with their kind, addresses and routes."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from ipaddress import ip_interface
from pathlib import Path

from drupe.linux import rtnetlink
from drupe.linux.netlink import Netlink
from drupe.linux.rtnetlink import ETHERNET, Link, Route
from drupe.resources.network.endpoints.contract import Endpoint, GuestRoute, Kind
from drupe.resources.network.records import MACHINE_LINKS

_KINDS: dict[str, Kind] = {
    "veth": "veth", "macvlan": "macvlan", "macvtap": "macvtap", "ipvlan": "ipvlan", "vlan": "vlan",
}  # fmt: skip
_IFLA_TUN_TYPE = 3  # linux/if_link.h
_TAP = 2  # IFF_TAP
_LINK_SCOPE = 253  # RT_SCOPE_LINK


def discover(netlink: Netlink, *, vhost_user: Path | None = None) -> list[Endpoint]:
    """The interfaces for a guest: all that are up and neither loopback nor ours, in the kernel's order."""
    links = rtnetlink.links(netlink)
    addresses = rtnetlink.addresses(netlink)
    routes = [*rtnetlink.routes(netlink, socket.AF_INET), *rtnetlink.routes(netlink, socket.AF_INET6)]
    found = [link for link in links if link.up and not link.loopback and link.group != MACHINE_LINKS]
    return [_endpoint(link, addresses, routes, vhost_user) for link in found]


def _endpoint(
    link: Link, addresses: list[tuple[int, rtnetlink.Interface]], routes: Sequence[Route], vhost_user: Path | None
) -> Endpoint:
    own = tuple(str(a) for index, a in addresses if index == link.index and not a.ip.is_link_local)
    path = find_socket(vhost_user, own)
    kind = "vhost-user" if path else classify(link)
    pci = link.device[1] if kind == "physical" and link.device[0] == "pci" else ""
    return Endpoint(kind, link, own, guest_routes(link, routes), link.kind or "hardware", pci, path)


def classify(link: Link) -> Kind:
    """What an interface is to us. A tap that nobody has opened is the VMM's to open; one that has its other end in a
    process (passt, slirp4netns) is a cable like veth."""
    if link.kind == "tun":
        if dict(link.details).get(_IFLA_TUN_TYPE, b"")[:1] != bytes([_TAP]):
            return "layer 3"
        return "tuntap" if link.carrier else "tap"
    if link.hardware != ETHERNET:
        return "layer 3"
    if not link.kind:
        return "physical"
    return _KINDS.get(link.kind, "other")


def find_socket(directory: Path | None, addresses: Sequence[str]) -> Path | None:
    """The vhost-user socket of an interface that has one of `addresses`."""
    if directory is None:
        return None
    paths = (directory / str(ip_interface(address).ip) / "vhu.sock" for address in addresses)
    return next((path for path in paths if path.is_socket()), None)


def guest_routes(link: Link, routes: Sequence[Route]) -> tuple[GuestRoute, ...]:
    """The routes by an interface but those that come with its addresses; what others rest upon first."""
    own = [route for route in routes if route.index == link.index and not route.own and not _link_local(route)]
    own.sort(key=lambda route: (route.gateway is not None, route.destination is None))
    return tuple(
        GuestRoute(
            destination=str(route.destination or ""),
            gateway=str(route.gateway or ""),
            interface=link.name,
            source=str(route.source or ""),
            scope=route.scope,
            metric=route.metric,
        )
        for route in own
    )


def _link_local(route: Route) -> bool:
    return route.destination is not None and route.destination.version == 6 and route.destination.is_link_local
