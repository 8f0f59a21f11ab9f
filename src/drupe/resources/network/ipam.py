"""Address management of the built-in networks: which subnets are free, which address a pod gets."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from itertools import chain
from typing import TypeVar

from drupe.errors import AlreadyExists, InvalidArgument, ResourceExhausted

POOL4 = IPv4Network("10.208.0.0/12")  # private (RFC 1918), clear of what Docker and Podman take by default
PREFIX4 = 22  # a Linux bridge has at most 1023 ports
Network = TypeVar("Network", IPv4Network, IPv6Network)
Address = TypeVar("Address", IPv4Address, IPv6Address)


def free_subnet4(used: Iterable[IPv4Network]) -> IPv4Network:
    """The first subnet of the pool that overlaps none of `used`. Raises ResourceExhausted."""
    taken = [subnet for subnet in used if subnet.prefixlen]
    for subnet in POOL4.subnets(new_prefix=PREFIX4):
        if not any(subnet.overlaps(other) for other in taken):
            return subnet
    raise ResourceExhausted(
        f"no free IPv4 subnet in {POOL4}", stage="network", hint="give --subnet, or remove unused networks"
    )


def random_subnet6() -> IPv6Network:
    """A unique local /64 (RFC 4193): fd, then 56 random bits."""
    return IPv6Network((b"\xfd" + os.urandom(7) + bytes(8), 64))


def parse_subnet(text: str, kind: type[Network]) -> Network:
    """A subnet from text such as "10.1.0.0/24". Raises InvalidArgument."""
    try:
        subnet = ip_network(text)
    except ValueError as error:
        raise InvalidArgument(f"bad subnet {text!r}", cause=str(error), hint="write it as 10.1.0.0/24") from None
    if not isinstance(subnet, kind):
        raise InvalidArgument(f"subnet {text!r} is of the wrong family")
    if subnet.num_addresses < 8 or subnet.prefixlen < 8:
        raise InvalidArgument(f"subnet {text!r} has no useful size", hint="use a prefix of 8 to 29 bits (IPv4)")
    return subnet


def parse_member(text: str, subnet: Network, kind: type[Address]) -> Address:
    """A usable address of `subnet` from text. Raises InvalidArgument."""
    try:
        address = ip_address(text)
    except ValueError:
        raise InvalidArgument(f"bad address {text!r}") from None
    if not isinstance(address, kind) or address not in subnet:
        raise InvalidArgument(f"address {text} is not in {subnet}")
    if address == subnet[0] or (address.version == 4 and address == subnet[-1]):
        raise InvalidArgument(f"address {text} is the network or broadcast address of {subnet}")
    return address


def check_free(address: str, owners: dict[str, str], network: str) -> str:
    """Raises AlreadyExists, naming the owner, when the address is taken; returns it otherwise."""
    if address in owners:
        raise AlreadyExists(f"address {address} of network {network} is taken by {owners[address]}", stage="network")
    return address


def next_address(subnet: IPv4Network, taken: Collection[str], *, after: int) -> IPv4Address:
    """The first free host address, searching from offset `after` + 1 round to it: a freed one rests for long.

    Raises ResourceExhausted.
    """
    last = subnet.num_addresses - 2
    after = min(max(after, 0), last)
    for offset in chain(range(after + 1, last + 1), range(1, after + 1)):
        if str(subnet[offset]) not in taken:
            return subnet[offset]
    raise ResourceExhausted(f"no free address in {subnet}", stage="network", hint="make a network with a larger subnet")


def twin6(subnet4: IPv4Network, address: IPv4Address, subnet6: IPv6Network) -> IPv6Address:
    """The IPv6 address with the same offset in its subnet."""
    offset = int(address) - int(subnet4.network_address)
    if offset >= subnet6.num_addresses:
        raise ResourceExhausted(f"no free address in {subnet6}", stage="network")
    return subnet6[offset]


def mac_of(address: IPv4Address) -> str:
    """A locally administered MAC that belongs to the address: reused with it, so neighbours never hold a stale one."""
    return "0a:64:" + address.packed.hex(":")
