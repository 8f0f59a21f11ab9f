"""Model bridged: the interface and the tap are ports of a bridge in the pod's namespace."""

from __future__ import annotations

from drupe.linux import rtnetlink
from drupe.linux.netlink import Netlink
from drupe.linux.rtnetlink import Link
from drupe.resources.network.records import MACHINE_LINKS

_LOCAL = "02"  # the first byte of an address that nobody has bought


def bridge_name(link: Link) -> str:
    return f"drupe-br{link.index}"


def stand_in_mac(mac: str) -> str:
    """The address that the interface has meanwhile: a bridge keeps for itself what is sent to its ports' own."""
    first = int(mac[:2], 16)
    return f"{(first | 0x02) ^ 0x40:02x}{mac[2:]}"


def join(netlink: Netlink, link: Link, tap: Link) -> None:
    """Raises NetlinkError. The tap's description keeps the interface's own address."""
    name, other = bridge_name(link), stand_in_mac(link.mac)
    if rtnetlink.link(netlink, name) is None:
        netlink.batch([rtnetlink.new_bridge(name, mac=stand_in_mac(other), mtu=link.mtu)])
    bridge = rtnetlink.link(netlink, name)
    if bridge is None:
        raise FileNotFoundError(f"bridge {name} went as it came")
    netlink.batch(
        [
            rtnetlink.adjust(bridge.index, mtu=link.mtu, group=MACHINE_LINKS),
            rtnetlink.set_mac(bridge.index, f"{_LOCAL}{other[2:-2]}{int(other[-2:], 16) ^ 1:02x}"),
            rtnetlink.set_mac(link.index, other),
            rtnetlink.set_master(tap.index, bridge.index),
            rtnetlink.set_master(link.index, bridge.index),
            rtnetlink.set_up(bridge.index),
        ]
    )


def part(netlink: Netlink, link: Link, tap: Link) -> None:
    """Idempotent."""
    if bridge := rtnetlink.link(netlink, bridge_name(link)):
        netlink.batch([rtnetlink.delete_link(bridge.index)])
    if tap.alias and tap.alias != link.mac:
        netlink.batch([rtnetlink.set_mac(link.index, tap.alias)])
