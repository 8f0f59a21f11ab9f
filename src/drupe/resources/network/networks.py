"""The built-in networks: their records, their subnets, and which pod has which address."""

from __future__ import annotations

import time
from collections.abc import Iterable
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from drupe.errors import AlreadyExists, InvalidArgument, NotFound
from drupe.resources.network import ipam
from drupe.resources.network.records import NETWORKS, Attached, Records, Wire
from drupe.spec.base import check_name, decode, plain
from drupe.spec.control import NetworkCreate, NetworkInfo
from drupe.spec.network import Attachment

DEFAULT = "default"
_RESERVED = ("none", "host", "bridge", "cni", "path", "cnm")
_MIN_MTU, _MIN_MTU6 = 576, 1280  # RFC 791, RFC 8200


class Networks:
    """All built-in networks, in memory and in the records. tag: sets this runtime root apart from others."""

    def __init__(self, records: Records, tag: str) -> None:
        self._records = records
        self._tag = tag
        self._last: dict[str, int] = {}
        known = records.all(NETWORKS)
        self.table = {name: decode(NetworkInfo, data, where=f"network {name}") for name, data in known.items()}

    def get(self, name: str) -> NetworkInfo:
        """Raises NotFound."""
        if name not in self.table:
            raise NotFound(f"no network {name!r}", stage="network", hint=f"drupe network create {name}")
        return self.table[name]

    def add(self, wanted: NetworkCreate, *, host_subnets: Iterable[IPv4Network], ipv6: bool) -> NetworkInfo:
        """Plans and records a network. ipv6: whether the host has it. Raises AlreadyExists, InvalidArgument."""
        check_name(wanted.name, "network")
        if wanted.name in self.table:
            raise AlreadyExists(f"network {wanted.name} exists", stage="network")
        if wanted.name in _RESERVED:
            raise InvalidArgument(f"network name {wanted.name!r} is reserved", hint="choose another")
        info = self._plan(wanted, list(host_subnets), ipv6=ipv6)
        self._records.put(NETWORKS, info.name, plain(info))
        self.table[info.name] = info
        return info

    def remove(self, name: str) -> None:
        self.table.pop(name, None)
        self._last.pop(name, None)

    def forget(self, name: str) -> None:
        """Removes the record, the last step of a deletion."""
        self._records.delete(NETWORKS, name)

    def allocate(self, wanted: Attachment, index: int, pod_id: str, pods: Iterable[Attached], *, ipv6: bool) -> Wire:
        """The wire of one attachment. pods: all, for the addresses they have. ipv6: whether the pod wants any.

        Raises the errors of ipam.
        """
        network = self.get(wanted.network)
        owners = _owners(network.name, pods)
        subnet = IPv4Network(network.subnet4)
        owners[network.gateway4] = owners[network.gateway6] = "the gateway"
        address = self._address4(network, wanted, subnet, owners)
        self._last[network.name] = int(address) - int(subnet.network_address)
        return Wire(
            network=network.name,
            interface=_interface(wanted.interface, index),
            host_interface=self.port_name(pod_id, index),
            mac=_mac(wanted.mac) or ipam.mac_of(address),
            ipv4=str(address),
            ipv6=_address6(network, wanted, subnet, address, owners) if ipv6 or wanted.ipv6 else "",
            names=[_alias(alias) for alias in wanted.aliases],
        )

    def port_name(self, pod_id: str, index: int) -> str:
        """The host's end of a pod's cable, known from the pod's id alone (IFNAMSIZ: 15 characters)."""
        return f"dv{self.token(pod_id)}{index:x}"

    @staticmethod
    def token(pod_id: str) -> str:
        """A short form of a pod's id for names in the kernel."""
        return sha256(pod_id.encode()).hexdigest()[:11]

    def _address4(
        self, network: NetworkInfo, wanted: Attachment, subnet: IPv4Network, owners: dict[str, str]
    ) -> IPv4Address:
        if wanted.ipv4:
            address = ipam.parse_member(wanted.ipv4, subnet, IPv4Address)
            ipam.check_free(str(address), owners, network.name)
            return address
        last = self._last.get(network.name)
        if last is None:  # after a restart: go on after the highest that is in use
            used = [int(IPv4Address(a)) for a in owners if a and ":" not in a and a != network.gateway4]
            last = max(used, default=int(subnet.network_address)) - int(subnet.network_address)
        return ipam.next_address(subnet, owners, after=last)

    def _plan(self, wanted: NetworkCreate, host_subnets: list[IPv4Network], *, ipv6: bool) -> NetworkInfo:
        used = host_subnets + [IPv4Network(n.subnet4) for n in self.table.values()]
        if wanted.subnet4:
            subnet4 = ipam.parse_subnet(wanted.subnet4, IPv4Network)
            _check_apart(subnet4, used)
        else:
            subnet4 = ipam.free_subnet4(used)
        gateway4 = ipam.parse_member(wanted.gateway4, subnet4, IPv4Address) if wanted.gateway4 else subnet4[1]
        subnet6 = self._subnet6(wanted, ipv6=ipv6)
        if not (_MIN_MTU6 if subnet6 else _MIN_MTU) <= wanted.mtu <= 65535:
            raise InvalidArgument(f"bad MTU {wanted.mtu}", hint="use 1280 to 65535, 1500 is usual")
        return NetworkInfo(
            name=wanted.name,
            bridge=self._bridge_name(wanted.name),
            subnet4=str(subnet4),
            gateway4=str(gateway4),
            subnet6=str(subnet6 or ""),
            gateway6=str(subnet6[1]) if subnet6 else "",
            internal=wanted.internal,
            mtu=wanted.mtu,
            dns=wanted.dns,
            created_at=time.time(),
            labels=dict(wanted.labels),
        )

    def _subnet6(self, wanted: NetworkCreate, *, ipv6: bool) -> IPv6Network | None:
        if wanted.subnet6:
            if not wanted.ipv6:
                raise InvalidArgument("subnet6 given, but ipv6 is off")
            subnet = ipam.parse_subnet(wanted.subnet6, IPv6Network)
            _check_apart(subnet, [IPv6Network(n.subnet6) for n in self.table.values() if n.subnet6])
            return subnet
        return ipam.random_subnet6() if wanted.ipv6 and ipv6 else None

    def _bridge_name(self, name: str) -> str:
        if name == DEFAULT and not self._tag:
            return "drupe0"
        return "dr-" + sha256(f"{self._tag}/{name}".encode()).hexdigest()[:12]


def _owners(network: str, pods: Iterable[Attached]) -> dict[str, str]:
    """Address to pod name, for all addresses of a network in use."""
    found: dict[str, str] = {}
    for pod in pods:
        for wire in pod.wires:
            if wire.network == network:
                found[wire.ipv4] = found[wire.ipv6] = f"pod {pod.pod_name}"
    return found


def _address6(
    network: NetworkInfo, wanted: Attachment, subnet4: IPv4Network, address: IPv4Address, owners: dict[str, str]
) -> str:
    if not network.subnet6:
        if wanted.ipv6:
            raise InvalidArgument(f"network {network.name} has no IPv6")
        return ""
    subnet6 = IPv6Network(network.subnet6)
    if wanted.ipv6:
        chosen = ipam.parse_member(wanted.ipv6, subnet6, IPv6Address)
        return ipam.check_free(str(chosen), owners, network.name)
    twin = ipam.twin6(subnet4, address, subnet6)
    return ipam.check_free(str(twin), owners, network.name)


def _check_apart(subnet: IPv4Network | IPv6Network, used: Iterable[IPv4Network | IPv6Network]) -> None:
    for other in used:
        if other.prefixlen and other.version == subnet.version and subnet.overlaps(ip_network(other)):
            raise AlreadyExists(f"subnet {subnet} overlaps {other}, which this host uses", stage="network")


def _interface(wanted: str | None, index: int) -> str:
    name = wanted or f"eth{index}"
    bad = len(name) > 15 or name in (".", "..", "lo") or any(c.isspace() or c in "/:%" for c in name)
    if bad or not name.isascii():
        raise InvalidArgument(f"bad interface name {name!r}", hint="1 to 15 characters without '/', ':' or spaces")
    return name


def _mac(wanted: str | None) -> str:
    if not wanted:
        return ""
    octets = wanted.lower().replace("-", ":").split(":")
    good = len(octets) == 6 and all(len(o) == 2 and set(o) <= set("0123456789abcdef") for o in octets)
    if not good or int(octets[0], 16) & 1:
        raise InvalidArgument(f"bad MAC address {wanted!r}", hint="a unicast address such as 02:00:00:00:00:01")
    return ":".join(octets)


def _alias(name: str) -> str:
    return check_name(name, "alias").lower()
