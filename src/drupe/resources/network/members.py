"""Pods that join further networks, and leave them, while they run."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from ipaddress import ip_address

import msgspec

from drupe.errors import AlreadyExists, InvalidState, NotFound, Unsupported
from drupe.linux import rtnetlink
from drupe.linux.netlink import Netlink
from drupe.linux.rtnetlink import net_namespace_of
from drupe.resources.network.bridge import Bridges, explained
from drupe.resources.network.firewall import Element
from drupe.resources.network.records import Attached, Wire
from drupe.spec.control import NetworkInfo


def check_joins(attached: Attached, network: str) -> None:
    """Unsupported for a pod that is on no built-in network, AlreadyExists for a member."""
    if not attached.wires:
        raise Unsupported(
            f"pod {attached.pod_name} (network mode {attached.mode}) cannot join another network",
            feature="network-change",
            stage="network",
            hint='pods of mode "bridge" can',
        )
    if any(wire.network == network for wire in attached.wires):
        raise AlreadyExists(f"pod {attached.pod_name} is on network {network} already", stage="network")


def check_leaves(attached: Attached, network: str, way_in: Wire | None) -> Wire:
    """The cable to that network. NotFound; InvalidState for one that the pod cannot be without."""
    wire = next((wire for wire in attached.wires if wire.network == network), None)
    if wire is None:
        raise NotFound(f"pod {attached.pod_name} is not on network {network}", stage="network")
    if len(attached.wires) == 1:
        hint = "join another one first; --network none makes a pod without any"
        raise InvalidState(f"{network} is the only network of pod {attached.pod_name}", stage="network", hint=hint)
    if attached.ports and wire is way_in:
        what = f"pod {attached.pod_name} publishes ports through network {network}"
        raise InvalidState(what, stage="network", hint="make the pod anew without -p")
    return wire


def free_place(attached: Attached, names: Sequence[str]) -> int:
    """The number of a further cable. names: of the host's ends by number."""
    used = {wire.host_interface for wire in attached.wires}
    inside = {wire.interface for wire in attached.wires}
    return next(n for n, name in enumerate(names) if name not in used and f"eth{n}" not in inside)


def only_in(with_it: Sequence[Element], without: Sequence[Element]) -> list[Element]:
    """The elements that go with a cable."""
    rest = set(without)
    return [element for element in with_it if element not in rest]


def without(attached: Attached, wire: Wire) -> Attached:
    """The pod's network as it is when a cable has gone."""
    return msgspec.structs.replace(attached, wires=[one for one in attached.wires if one is not wire])


def route_by_another(netns_socket: int, attached: Attached, networks: dict[str, NetworkInfo]) -> None:
    """The default routes went with a cable: the first other one that has a way out carries them. netns_socket: in the
    pod's namespace, closed here."""
    wire = next((wire for wire in attached.wires if not networks[wire.network].internal), None)
    with Netlink(fd=netns_socket) as netns, explained("cannot set the default route"):
        link = rtnetlink.link(netns, wire.interface) if wire else None
        if wire is None or link is None:
            return
        network = networks[wire.network]
        for family, gateway in (
            (socket.AF_INET, network.gateway4),
            (socket.AF_INET6, network.gateway6 if wire.ipv6 else ""),
        ):
            has_one = any(route.destination is None for route in rtnetlink.routes(netns, family))
            if gateway and not has_one:
                netns.batch([rtnetlink.new_route(link.index, ip_address(gateway))])


def connect(bridges: Bridges, netns_socket: int, wire: Wire, networks: dict[str, NetworkInfo], *, routed: bool) -> None:
    """One more cable. routed: another one carries the default routes. netns_socket is closed here."""
    with Netlink(fd=netns_socket) as netns:
        netns_fd = net_namespace_of(netns.fileno())
        try:
            bridges.connect(netns, netns_fd, [wire], networks, routed=routed)
        finally:
            os.close(netns_fd)
