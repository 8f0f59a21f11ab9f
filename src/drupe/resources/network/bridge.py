"""Bridges on the host and veth pairs into pods, by netlink. Used by one thread at a time."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, ip_address, ip_interface
from pathlib import Path

from drupe.errors import AlreadyExists, DrupeError, InvalidArgument, NotFound, PermissionDenied, Unsupported
from drupe.linux import rtnetlink
from drupe.linux.netlink import Message, Netlink, NetlinkError
from drupe.linux.rtnetlink import Link
from drupe.resources.network.records import Wire
from drupe.spec.control import NetworkInfo

_ABSENT = (errno.ENODEV, errno.ENOENT)
_LEAVING = 0x64727570  # the group of links that are about to be deleted


class Bridges:
    """The host's side of the built-in networks. sysctl: ``/proc/sys/net`` of the host."""

    def __init__(self, sysctl: Path) -> None:
        self._sysctl = sysctl
        self._opened: Netlink | None = None

    def close(self) -> None:
        if self._opened:
            self._opened.close()
            self._opened = None

    @property
    def _netlink(self) -> Netlink:
        if self._opened is None:
            self._opened = Netlink()
        return self._opened

    def ensure(self, network: NetworkInfo) -> bool:
        """Makes and configures the bridge of a network when it is missing; whether it was.

        AlreadyExists: the name is another's.
        """
        found = rtnetlink.link(self._netlink, network.bridge)
        mac = bridge_mac(network)
        if found and (found.kind != "bridge" or found.mac != mac):
            raise AlreadyExists(f"interface {network.bridge} is not ours", stage="network", hint="rename or remove it")
        if found and found.up:
            return False
        with explained(f"cannot make bridge {network.bridge}"):
            self._forwarding(network)
            if not found:
                self._netlink.batch([rtnetlink.new_bridge(network.bridge, mac=mac, mtu=network.mtu)])
                found = rtnetlink.link(self._netlink, network.bridge)
            assert found is not None  # noqa: S101  the kernel has just acknowledged it
            self._configure(network)
            addresses = [rtnetlink.new_address(found.index, a) for a in _gateways(network)]
            self._netlink.batch([*addresses, rtnetlink.set_up(found.index)])  # up last: then it is complete
        return True

    def remove(self, network: NetworkInfo) -> None:
        """Deletes the bridge of a network; idempotent."""
        found = rtnetlink.link(self._netlink, network.bridge)
        if found and found.mac == bridge_mac(network):
            self.disconnect([network.bridge])

    def connect(
        self,
        netns: Netlink,
        netns_fd: int,
        wires: Sequence[Wire],
        networks: Mapping[str, NetworkInfo],
        *,
        routed: bool = False,
    ) -> None:
        """Makes the pairs and configures their far ends. netns: a socket in the pod's namespace, netns_fd.

        The first wire of a network with a way out carries the default routes, unless the pod has them (`routed`).
        """
        hairpin = self._bridge_calls_netfilter()
        for wire in wires:
            network = networks[wire.network]
            with explained(f"cannot connect {wire.interface} to network {wire.network}"):
                self._pair(netns_fd, wire, network, hairpin=hairpin)
                self._fill(netns, wire, network, default_route=not routed and not network.internal)
            routed = routed or not network.internal

    def _pair(self, netns_fd: int, wire: Wire, network: NetworkInfo, *, hairpin: bool) -> None:
        bridge = rtnetlink.link(self._netlink, network.bridge)
        if bridge is None:
            raise OSError(errno.ENODEV, f"bridge {network.bridge} is gone")
        self._netlink.batch(
            [
                rtnetlink.new_veth(
                    wire.host_interface,
                    master=bridge.index,
                    mtu=network.mtu,
                    peer_netns=netns_fd,
                    peer=wire.interface,
                    peer_mac=wire.mac,
                )
            ]
        )
        made = rtnetlink.link(self._netlink, wire.host_interface)
        assert made is not None  # noqa: S101  the kernel has just acknowledged it
        todo = [rtnetlink.set_up(made.index)]
        self._netlink.batch(todo + ([rtnetlink.set_hairpin(made.index)] if hairpin else []))

    def _fill(self, netns: Netlink, wire: Wire, network: NetworkInfo, *, default_route: bool) -> None:
        link = rtnetlink.link(netns, wire.interface)
        assert link is not None  # noqa: S101  the kernel has just acknowledged it
        todo: list[Message] = [rtnetlink.set_up(link.index)]
        todo += [rtnetlink.new_address(link.index, address) for address in _addresses(wire, network)]
        if default_route:
            gateways = [g for g in (network.gateway4, network.gateway6 if wire.ipv6 else "") if g]
            todo += [rtnetlink.new_route(link.index, ip_address(gateway)) for gateway in gateways]
        netns.batch(todo)

    def disconnect(self, names: Iterable[str]) -> None:
        """Deletes the host ends, and the far ends with them; idempotent."""
        found = [link for name in names if (link := rtnetlink.link(self._netlink, name))]
        if not found:
            return
        with explained("cannot remove interfaces"):
            self._delete(found)

    def _delete(self, found: Sequence[Link]) -> None:
        """All in one step."""
        doomed = [rtnetlink.set_group(link.index, _LEAVING) for link in found]
        for messages in (doomed, [rtnetlink.delete_group(_LEAVING)]):
            try:
                self._netlink.batch(messages)
            except NetlinkError as error:
                if error.errno not in _ABSENT:  # its namespace may die meanwhile, and takes it along
                    raise

    def strangers(self, bridge: str, known: set[str]) -> list[str]:
        """The veth ports of a bridge that are not known."""
        found = rtnetlink.link(self._netlink, bridge)
        if not found:
            return []
        ports = [link for link in rtnetlink.links(self._netlink) if link.master == found.index]
        return [port.name for port in ports if port.kind == "veth" and port.name not in known]

    def replug(self, bridge: str, names: Iterable[str]) -> list[str]:
        """Plugs host ends that are in no bridge (theirs was deleted and made anew) into it; which."""
        master = rtnetlink.link(self._netlink, bridge)
        loose = [link for name in names if (link := rtnetlink.link(self._netlink, name)) and not link.master]
        if not master or not loose:
            return []
        hairpin = self._bridge_calls_netfilter()
        todo = [rtnetlink.set_master(link.index, master.index) for link in loose]
        with explained(f"cannot plug pods into {bridge}"):
            self._netlink.batch(todo + [rtnetlink.set_hairpin(link.index) for link in loose if hairpin])
        return [link.name for link in loose]

    def port(self, name: str) -> Link | None:
        return rtnetlink.link(self._netlink, name)

    def subnets(self) -> list[IPv4Network]:
        """The IPv4 networks that the host already routes or has addresses in."""
        routes = rtnetlink.routes(self._netlink, socket.AF_INET)
        found = [r.destination for r in routes if isinstance(r.destination, IPv4Network)]
        addresses = rtnetlink.addresses(self._netlink)
        return found + [a.network for _, a in addresses if isinstance(a, IPv4Interface)]

    def has_ipv6(self) -> bool:
        """Whether the host has IPv6 at all."""
        return _read(self._sysctl / "ipv6/conf/all/disable_ipv6") == "0"

    def _bridge_calls_netfilter(self) -> bool:
        """Whether br_netfilter passes bridged frames to the IP hooks: DNAT may then send one back out."""
        names = ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables")
        return any(_read(self._sysctl / "bridge" / name) == "1" for name in names)

    def _forwarding(self, network: NetworkInfo) -> None:
        """Makes the host a router; what listens to router advertisements must be told to go on doing so."""
        _write(self._sysctl / "ipv4/ip_forward", "1")
        conf = self._sysctl / "ipv6/conf"
        if network.subnet6 and _read(conf / "all/forwarding") != "1":
            for interface in conf.iterdir():
                if interface.name not in ("all", "default") and _read(interface / "accept_ra") == "1":
                    _write(interface / "accept_ra", "2")
            _write(conf / "all/forwarding", "1")

    def _configure(self, network: NetworkInfo) -> None:
        _write(self._sysctl / "ipv4/conf" / network.bridge / "route_localnet", "1")
        _write(self._sysctl / "ipv4/conf" / network.bridge / "send_redirects", "0")
        if network.subnet6:
            _write(self._sysctl / "ipv6/conf" / network.bridge / "accept_ra", "0")


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns a refusal of the kernel into a drupe error that says what was being done."""
    try:
        yield
    except OSError as error:
        raise _refusal(what, error) from None


def _refusal(what: str, error: OSError) -> DrupeError:
    cause = error.strerror or str(error)
    match error.errno:
        case errno.EPERM | errno.EACCES:
            return PermissionDenied(what, stage="network", cause=cause, hint="needs CAP_NET_ADMIN: run as root")
        case errno.EEXIST:
            return AlreadyExists(what, stage="network", cause=cause)
        case errno.EOPNOTSUPP:
            return Unsupported(what, stage="network", cause=cause, hint="the kernel needs bridge and veth")
        case errno.ENODEV | errno.ENOENT:
            return NotFound(what, stage="network", cause=cause)
    return InvalidArgument(what, stage="network", cause=cause)


def bridge_mac(network: NetworkInfo) -> str:
    """The bridge's own MAC: fixed, because rules name it."""
    return "0a:65:" + sha256(network.bridge.encode()).digest()[:4].hex(":")


def _gateways(network: NetworkInfo) -> list[IPv4Interface | IPv6Interface]:
    found = [ip_interface(f"{network.gateway4}/{network.subnet4.split('/')[1]}")]
    if network.gateway6:
        found.append(ip_interface(f"{network.gateway6}/{network.subnet6.split('/')[1]}"))
        found.append(link_local(bridge_mac(network)))  # the kernel asks for neighbours from it
    return found


def _addresses(wire: Wire, network: NetworkInfo) -> list[IPv4Interface | IPv6Interface]:
    """The addresses of a far end, with an IPv6 link-local one that needs no duplicate detection."""
    found = [ip_interface(f"{wire.ipv4}/{network.subnet4.split('/')[1]}")]
    if wire.ipv6:
        found.append(ip_interface(f"{wire.ipv6}/{network.subnet6.split('/')[1]}"))
        found.append(link_local(wire.mac))
    return found


def link_local(mac: str) -> IPv6Interface:
    """The IPv6 link-local address of a MAC (RFC 4291, modified EUI-64)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return IPv6Interface((b"\xfe\x80" + bytes(6) + identifier, 64))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _write(path: Path, value: str) -> None:
    """Sets a sysctl unless it has that value already (it may be read-only then)."""
    if _read(path) == value:
        return
    try:
        path.write_text(value)
    except OSError as error:
        name = ".".join(path.parts[-4:])
        raise PermissionDenied(
            f"cannot set sysctl {name}={value}", stage="network", cause=error.strerror or ""
        ) from None
