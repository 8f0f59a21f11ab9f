"""What is inside a network namespace: interfaces, addresses, default gateways, counters, read by netlink."""

from __future__ import annotations

import socket
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path

from drupe.linux import rtnetlink
from drupe.linux.netlink import NETLINK_ROUTE, Netlink
from drupe.resources.network.bridge import explained
from drupe.resources.network.records import MACHINE_LINKS, Counters, Keeper
from drupe.spec.status import Endpoint


async def scan(keeper: Keeper, netns: str) -> list[Endpoint]:
    """The interfaces of a namespace that are not loopback, in the kernel's order, with their first lasting address.

    Raises NotFound when the namespace is gone.
    """
    with await open_netlink(keeper, netns) as netlink, explained(f"cannot read network namespace {netns}"):
        addresses = rtnetlink.addresses(netlink)
        gateways = {
            family: {
                route.index: str(route.gateway) for route in rtnetlink.routes(netlink, family) if _leads_out(route)
            }
            for family in (socket.AF_INET, socket.AF_INET6)
        }
        return [
            Endpoint(
                interface=link.name,
                mac=link.mac,
                ipv4=_first(addresses, link.index, IPv4Interface),
                ipv6=_first(addresses, link.index, IPv6Interface),
                gateway4=gateways[socket.AF_INET].get(link.index, ""),
                gateway6=gateways[socket.AF_INET6].get(link.index, ""),
            )
            for link in rtnetlink.links(netlink)
            if link.up and _is_pods(link)
        ]


async def counters(keeper: Keeper, netns: str) -> Counters:
    """What all interfaces but loopback have carried. Raises NotFound when the namespace is gone."""
    with await open_netlink(keeper, netns) as netlink, explained(f"cannot read network namespace {netns}"):
        links = [link for link in rtnetlink.links(netlink) if _is_pods(link)]
    return Counters(
        rx_bytes=sum(link.rx_bytes for link in links),
        tx_bytes=sum(link.tx_bytes for link in links),
        rx_packets=sum(link.rx_packets for link in links),
        tx_packets=sum(link.tx_packets for link in links),
    )


async def open_netlink(keeper: Keeper, netns: Path | str) -> Netlink:
    """A netlink socket inside a namespace. Raises NotFound when that is gone."""
    with explained(f"cannot open network namespace {netns}"):
        fd = await keeper.netns_socket(netns, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE)
    return Netlink(fd=fd)


def _is_pods(link: rtnetlink.Link) -> bool:
    return not link.loopback and link.group != MACHINE_LINKS


def _leads_out(route: rtnetlink.Route) -> bool:
    return route.destination is None and route.gateway is not None


def _first(
    addresses: list[tuple[int, rtnetlink.Interface]], index: int, kind: type[IPv4Interface] | type[IPv6Interface]
) -> str:
    """The first address of a link that is not link-local, or ""."""
    fitting = (a for at, a in addresses if at == index and isinstance(a, kind) and not a.ip.is_link_local)
    return next((str(a.ip) for a in fitting), "")
