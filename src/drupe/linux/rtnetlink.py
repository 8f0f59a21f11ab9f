"""rtnetlink(7): links, addresses, routes. Functions that make messages, and functions that read the kernel's tables."""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)

from drupe.linux.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Message,
    Netlink,
    NetlinkError,
    attribute,
    attributes,
    nested,
    text,
    u8,
    u32,
)

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

IFF_UP = 0x1
IFF_LOOPBACK = 0x8
ETHERNET = 1  # Link.hardware of what carries Ethernet frames (linux/if_arp.h)

_SIOCGSKNS = 0x894C  # linux/sockios.h
_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK, _RTM_SETLINK = 16, 17, 18, 19
_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_RTM_NEWROUTE, _RTM_GETROUTE = 24, 26
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER, _IFLA_PROTINFO = 1, 3, 4, 5, 10, 12
_IFLA_LINKINFO, _IFLA_IFALIAS, _IFLA_STATS64, _IFLA_AF_SPEC, _IFLA_GROUP, _IFLA_NET_NS_FD = 18, 20, 23, 26, 27, 28
_IFLA_NUM_TX_QUEUES, _IFLA_NUM_RX_QUEUES, _IFLA_CARRIER, _IFLA_PARENT_DEV_NAME, _IFLA_PARENT_DEV_BUS_NAME = (
    31,
    32,
    33,
    56,
    57,
)
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_IFLA_BR_MCAST_SNOOPING = 23
_IFLA_BRPORT_MODE = 4  # hairpin
_IFLA_INET6_ADDR_GEN_MODE = 8
_IN6_ADDR_GEN_MODE_NONE = 1
_VETH_INFO_PEER = 1
_IFLA_MACVLAN_MODE, _MACVLAN_MODE_PASSTHRU = 1, 8
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_IFA_F_NODAD = 0x02
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_CACHEINFO, _RTA_TABLE = 1, 4, 5, 6, 7, 12, 15
_RT_TABLE_MAIN, _RTPROT_KERNEL, _RTPROT_STATIC, _RTN_UNICAST = 254, 2, 4, 1
_RT_SCOPE_UNIVERSE = 0
_IFINFOMSG = struct.Struct("=BxHiII")
_IFADDRMSG = struct.Struct("=BBBBI")
_RTMSG = struct.Struct("=BBBBBBBBI")


@dataclass(frozen=True, slots=True)
class Link:
    """One interface. kind: "veth", "bridge"… or "" for hardware. master: index of its bridge, or 0. lower: of what it
    stands on, or 0. hardware: ARPHRD_*. details: what its kind says of itself, by attribute. device: bus and address of
    the hardware, where the kernel (5.14) tells."""

    index: int
    name: str
    kind: str = ""
    mac: str = ""
    mtu: int = 0
    up: bool = False
    loopback: bool = False
    master: int = 0
    rx_packets: int = 0
    tx_packets: int = 0
    rx_bytes: int = 0
    tx_bytes: int = 0
    lower: int = 0
    hardware: int = ETHERNET
    group: int = 0
    carrier: bool = False
    queues: int = 1
    alias: str = ""
    device: tuple[str, str] = ("", "")
    details: tuple[tuple[int, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """One route of the main table. destination None: the default route. gateway None: on the link. own: made by the
    kernel itself, for an address."""

    destination: Network | None
    gateway: Address | None
    index: int
    source: Address | None = None
    scope: int = 0
    metric: int = 0
    own: bool = False


def net_namespace_of(sock: int) -> int:
    """ioctl SIOCGSKNS: a descriptor of the network namespace in which the socket was made (needs CAP_NET_ADMIN)."""
    return fcntl.ioctl(sock, _SIOCGSKNS)


def new_bridge(name: str, *, mac: str, mtu: int) -> Message:
    """A bridge, down, that floods multicasts. EEXIST when the name is taken."""
    data = nested(_IFLA_INFO_DATA, u8(_IFLA_BR_MCAST_SNOOPING, 0))
    body = _IFINFOMSG.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name) + attribute(_IFLA_ADDRESS, _mac(mac))
    body += u32(_IFLA_MTU, mtu) + nested(_IFLA_LINKINFO, text(_IFLA_INFO_KIND, "bridge"), data)
    return Message(_RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def new_veth(name: str, *, master: int, mtu: int, peer_netns: int, peer: str, peer_mac: str) -> Message:
    """A veth pair: one end here, down and in bridge `master`; the other, `peer`, in the namespace of a descriptor."""
    far = _IFINFOMSG.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, peer) + attribute(_IFLA_ADDRESS, _mac(peer_mac))
    far += u32(_IFLA_MTU, mtu) + u32(_IFLA_NET_NS_FD, peer_netns)
    data = nested(_IFLA_INFO_DATA, attribute(_VETH_INFO_PEER | 0x8000, far))
    body = _IFINFOMSG.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name) + u32(_IFLA_MTU, mtu)
    body += u32(_IFLA_MASTER, master) + nested(_IFLA_LINKINFO, text(_IFLA_INFO_KIND, "veth"), data)
    return Message(_RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def new_macvtap(name: str, *, lower: int, mtu: int, queues: int) -> Message:
    """A macvtap, down, in passthru mode: it takes all frames and the address of the interface that it stands on."""
    body = _IFINFOMSG.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name) + u32(_IFLA_LINK, lower) + u32(_IFLA_MTU, mtu)
    body += u32(_IFLA_NUM_TX_QUEUES, queues) + u32(_IFLA_NUM_RX_QUEUES, queues)
    data = nested(_IFLA_INFO_DATA, u32(_IFLA_MACVLAN_MODE, _MACVLAN_MODE_PASSTHRU))
    body += nested(_IFLA_LINKINFO, text(_IFLA_INFO_KIND, "macvtap"), data)
    return Message(_RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def set_up(index: int, *, link_local: bool = False) -> Message:
    """Brings a link up. link_local False: the kernel adds no IPv6 link-local address by itself."""
    body = _IFINFOMSG.pack(0, 0, index, IFF_UP, IFF_UP)
    if not link_local:
        mode = u8(_IFLA_INET6_ADDR_GEN_MODE, _IN6_ADDR_GEN_MODE_NONE)
        body += nested(_IFLA_AF_SPEC, nested(socket.AF_INET6, mode))
    return Message(_RTM_SETLINK, 0, body)


def set_hairpin(index: int) -> Message:
    """Lets a bridge port send a frame back out where it came from (bridge(8), hairpin)."""
    body = _IFINFOMSG.pack(socket.AF_BRIDGE, 0, index, 0, 0)
    return Message(_RTM_SETLINK, 0, body + nested(_IFLA_PROTINFO, u8(_IFLA_BRPORT_MODE, 1)))


def delete_link(index: int) -> Message:
    return Message(_RTM_DELLINK, 0, _IFINFOMSG.pack(0, 0, index, 0, 0))


def set_master(index: int, master: int) -> Message:
    """Makes a link a port of a bridge."""
    return Message(_RTM_SETLINK, 0, _IFINFOMSG.pack(0, 0, index, 0, 0) + u32(_IFLA_MASTER, master))


def set_mac(index: int, mac: str) -> Message:
    return Message(_RTM_SETLINK, 0, _IFINFOMSG.pack(0, 0, index, 0, 0) + attribute(_IFLA_ADDRESS, _mac(mac)))


def adjust(index: int, *, mtu: int, group: int, alias: str = "") -> Message:
    """Sets the MTU, group and description of a link."""
    body = _IFINFOMSG.pack(0, 0, index, 0, 0) + u32(_IFLA_MTU, mtu) + u32(_IFLA_GROUP, group)
    return Message(_RTM_SETLINK, 0, body + (text(_IFLA_IFALIAS, alias) if alias else b""))


def set_group(index: int, group: int) -> Message:
    """Puts a link into a group, so that `delete_group` takes it along."""
    return Message(_RTM_SETLINK, 0, _IFINFOMSG.pack(0, 0, index, 0, 0) + u32(_IFLA_GROUP, group))


def delete_group(group: int) -> Message:
    """Deletes all links of a group at once: the kernel then waits only once for its readers, not once for each link."""
    return Message(_RTM_DELLINK, 0, _IFINFOMSG.pack(0, 0, 0, 0, 0) + u32(_IFLA_GROUP, group))


def new_address(index: int, address: Interface) -> Message:
    """Adds (or replaces) an address; IPv6 without duplicate address detection, so that it is usable at once."""
    packed = address.ip.packed
    body = _IFADDRMSG.pack(_family(address), address.network.prefixlen, 0, 0, index)
    body += attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)
    if isinstance(address, IPv4Interface):
        body += attribute(_IFA_BROADCAST, address.network.broadcast_address.packed)
    else:
        body += u32(_IFA_FLAGS, _IFA_F_NODAD)
    return Message(_RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, body)


def new_route(index: int, gateway: Address, destination: Network | None = None) -> Message:
    """A route through `gateway`; to everywhere unless `destination` says less."""
    length = destination.prefixlen if destination else 0
    family = _family(gateway)
    body = _RTMSG.pack(family, length, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, _RT_SCOPE_UNIVERSE, _RTN_UNICAST, 0)
    body += attribute(_RTA_GATEWAY, gateway.packed) + u32(_RTA_OIF, index)
    if destination:
        body += attribute(_RTA_DST, destination.network_address.packed)
    return Message(_RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body)


def link(netlink: Netlink, name: str) -> Link | None:
    """The interface of that name, or None."""
    body = _IFINFOMSG.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name)
    try:
        return _parse_link(netlink.get(Message(_RTM_GETLINK, 0, body)))
    except NetlinkError as error:
        if error.errno == errno.ENODEV:
            return None
        raise


def links(netlink: Netlink) -> list[Link]:
    """All interfaces of the namespace."""
    answers = netlink.dump(Message(_RTM_GETLINK, 0, _IFINFOMSG.pack(0, 0, 0, 0, 0)))
    return [_parse_link(body) for kind, body in answers if kind == _RTM_NEWLINK]


def addresses(netlink: Netlink) -> list[tuple[int, Interface]]:
    """All (link index, address with prefix) of the namespace."""
    found = []
    for kind, body in netlink.dump(Message(_RTM_GETADDR, 0, _IFADDRMSG.pack(0, 0, 0, 0, 0))):
        if kind != _RTM_NEWADDR:
            continue
        _, prefix, _, _, index = _IFADDRMSG.unpack_from(body)
        values = dict(attributes(body[_IFADDRMSG.size :]))
        packed = values.get(_IFA_LOCAL, values.get(_IFA_ADDRESS, b""))
        if len(packed) in (4, 16):
            found.append((index, ip_interface((ip_address(packed), prefix))))
    return found


def routes(netlink: Netlink, family: int) -> list[Route]:
    """The unicast routes of the main table. family: AF_INET or AF_INET6."""
    request = Message(_RTM_GETROUTE, 0, _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0))
    found = [_parse_route(body) for kind, body in netlink.dump(request) if kind == _RTM_NEWROUTE]
    return [route for route in found if route]


def _parse_route(body: bytes) -> Route | None:
    _, length, _, _, table, protocol, scope, kind, _ = _RTMSG.unpack_from(body)
    values = dict(attributes(body[_RTMSG.size :]))
    if kind != _RTN_UNICAST or _number(values.get(_RTA_TABLE), table) != _RT_TABLE_MAIN:
        return None
    destination = values.get(_RTA_DST)
    gateway, source = values.get(_RTA_GATEWAY), values.get(_RTA_PREFSRC)
    return Route(
        ip_network((ip_address(destination), length)) if destination else None,
        ip_address(gateway) if gateway else None,
        _number(values.get(_RTA_OIF), 0),
        ip_address(source) if source else None,
        scope,
        _number(values.get(_RTA_PRIORITY), 0),
        protocol == _RTPROT_KERNEL,
    )


def _parse_link(body: bytes) -> Link:
    _, hardware, index, flags, _ = _IFINFOMSG.unpack_from(body)
    values = dict(attributes(body[_IFINFOMSG.size :]))
    info = dict(attributes(values.get(_IFLA_LINKINFO, b"")))
    counters = values.get(_IFLA_STATS64, b"")
    rx_packets, tx_packets, rx_bytes, tx_bytes = struct.unpack_from("=4Q", counters) if counters else (0,) * 4
    return Link(
        index=index,
        name=_string(values.get(_IFLA_IFNAME)),
        kind=_string(info.get(_IFLA_INFO_KIND)),
        mac=values.get(_IFLA_ADDRESS, b"").hex(":"),
        mtu=_number(values.get(_IFLA_MTU), 0),
        up=bool(flags & IFF_UP),
        loopback=bool(flags & IFF_LOOPBACK),
        master=_number(values.get(_IFLA_MASTER), 0),
        rx_packets=rx_packets,
        tx_packets=tx_packets,
        rx_bytes=rx_bytes,
        tx_bytes=tx_bytes,
        lower=_number(values.get(_IFLA_LINK), 0),
        hardware=hardware,
        group=_number(values.get(_IFLA_GROUP), 0),
        carrier=bool(_number(values.get(_IFLA_CARRIER), 0)),
        queues=_number(values.get(_IFLA_NUM_TX_QUEUES), 1),
        alias=_string(values.get(_IFLA_IFALIAS)),
        device=(_string(values.get(_IFLA_PARENT_DEV_BUS_NAME)), _string(values.get(_IFLA_PARENT_DEV_NAME))),
        details=tuple(attributes(info.get(_IFLA_INFO_DATA, b""))),
    )


def _family(address: Address | Interface) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _string(data: bytes | None) -> str:
    return (data or b"").rstrip(b"\0").decode(errors="replace")


def _number(data: bytes | None, default: int) -> int:
    return int.from_bytes(data, "little") if data else default


def as_set_again(netlink: Netlink) -> list[Message]:
    """All addresses and routes of a namespace but the loopback's, as the messages that set them: addresses first."""
    header = _IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    found = [body for _, body in netlink.dump(Message(_RTM_GETADDR, 0, header))]
    messages = [Message(_RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, body) for body in found if not _of_loopback(body)]
    for family in (socket.AF_INET, socket.AF_INET6):
        request = Message(_RTM_GETROUTE, 0, _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0))
        messages += [
            Message(_RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, _RTMSG.pack(*fields) + _without_cache(body))
            for _, body in netlink.dump(request)
            if _is_made(fields := _RTMSG.unpack_from(body))
        ]
    return messages


def _of_loopback(body: bytes) -> bool:
    """Whether an address is of interface 1, which is the loopback's in every namespace."""
    return bool(_IFADDRMSG.unpack_from(body)[4] == 1)


def _is_made(fields: tuple[int, ...]) -> bool:
    """Whether a route was set by somebody: the kernel's own come with their addresses."""
    _, _, _, _, table, protocol, _, kind, _ = fields
    return table == _RT_TABLE_MAIN and protocol != _RTPROT_KERNEL and kind == _RTN_UNICAST


def _without_cache(body: bytes) -> bytes:
    """The attributes of a route but those that only the kernel writes."""
    kept = (attribute(kind, data) for kind, data in attributes(body[_RTMSG.size :]) if kind != _RTA_CACHEINFO)
    return b"".join(kept)
