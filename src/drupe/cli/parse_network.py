"""Flags of a pod's network: modes and attachments, published ports, addresses."""

from __future__ import annotations

import ipaddress
from typing import Any

from drupe.cli.parse import integer
from drupe.errors import InvalidArgument
from drupe.spec import Attachment, EgressPolicy, NetworkSpec, PortMapping

_PROTOCOLS = ("tcp", "udp", "sctp")
_PORT_HINT = "write [[IP:]HOST:]CONTAINER[/tcp|udp|sctp], like 8080:80"


def ports(text: str) -> tuple[PortMapping, ...]:
    """-p [[IP:]HOST:]CONTAINER[/PROTOCOL]; HOST and CONTAINER may be equally long ranges; IPv6 in brackets."""
    address, slash, protocol = text.rpartition("/")
    rest, protocol = (address, protocol) if slash else (text, "tcp")
    if protocol not in _PROTOCOLS:
        raise InvalidArgument(f"port {text!r} has an unknown protocol {protocol!r}", hint=_PORT_HINT)
    host, _, container = rest.rpartition(":")
    host_ip, _, host_port = host.rpartition(":")
    inside = _port_range(container, text)
    outside = _port_range(host_port, text) if host_port else [0] * len(inside)
    if len(inside) != len(outside):
        raise InvalidArgument(f"port {text!r}: the two ranges differ in length", hint=_PORT_HINT)
    ip = _address(host_ip.strip("[]"), text) if host_ip else ""
    return tuple(
        PortMapping(container_port=c, host_port=h, protocol=protocol, host_ip=ip)  # type: ignore[arg-type]
        for c, h in zip(inside, outside, strict=True)
    )


def _port_range(text: str, whole: str) -> list[int]:
    first, dash, last = text.partition("-")
    try:
        low, high = int(first), int(last) if dash else int(first)
    except ValueError:
        raise InvalidArgument(f"bad port {whole!r}", hint=_PORT_HINT) from None
    if not 0 < low <= high < 65536:
        raise InvalidArgument(f"port {whole!r} is not within 1-65535")
    return list(range(low, high + 1))


def _address(text: str, whole: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise InvalidArgument(f"bad address {text!r} in {whole!r}") from None


def ipv4(text: str) -> str:
    """A wanted IPv4 address."""
    return _of_version(text, 4)


def ipv6(text: str) -> str:
    """A wanted IPv6 address."""
    return _of_version(text, 6)


def _of_version(text: str, version: int) -> str:
    if ipaddress.ip_address(_address(text, text)).version != version:
        raise InvalidArgument(f"{text!r} is not an IPv{version} address")
    return text


def network(names: tuple[str, ...], *, policy: EgressPolicy | None = None, **attachment: Any) -> NetworkSpec:
    """--network values with the attachment flags (ipv4, ipv6, mac, aliases); those need a built-in bridge.

    none | host | bridge | NAME (a built-in network, repeatable) | cni:NAME or cni:/path.conflist | ns:/path | cnm
    """
    wanted = {key: value for key, value in attachment.items() if value}
    first = names[0] if names else "bridge"
    special = _special(first)
    if special is None:
        if len(names) > 1 and any(_special(name) is not None for name in names):
            raise InvalidArgument(f"networks {', '.join(names)} can't be combined", hint="only built-in networks can")
        return NetworkSpec(mode="bridge", attachments=_attachments(names or ("bridge",), wanted), policy=policy)
    if len(names) > 1:
        raise InvalidArgument(f"network {first} can't be combined with others")
    if wanted:
        raise InvalidArgument(
            f"network {first} takes no {', '.join(sorted(wanted))}", hint="only built-in bridge networks do"
        )
    return NetworkSpec(attachments=(), policy=policy, **special)


def _special(name: str) -> dict[str, Any] | None:
    prefix, colon, rest = name.partition(":")
    if name in ("none", "host", "cnm"):
        return {"mode": name}
    if prefix == "cni" and rest:
        return {"mode": "cni", "cni_config": rest}
    if prefix == "ns" and rest.startswith("/"):
        return {"mode": "path", "netns_path": rest}
    if prefix == "container":
        raise InvalidArgument(f"network {name!r}: a pod is the unit that shares a network", hint="use --pod NAME")
    if colon:
        raise InvalidArgument(f"bad network {name!r}", hint="none, host, bridge, NAME, cni:NAME or ns:/PATH")
    return None


def _attachments(names: tuple[str, ...], wanted: dict[str, Any]) -> tuple[Attachment, ...]:
    plain = ["default" if name in ("bridge", "default") else name for name in names]
    return (Attachment(network=plain[0], **wanted), *(Attachment(network=name) for name in plain[1:]))


def host_entry(text: str) -> tuple[str, str]:
    """--add-host NAME:IP (or NAME=IP)."""
    name, colon, address = text.partition("=" if "=" in text else ":")
    if not name or not colon:
        raise InvalidArgument(f"bad host entry {text!r}", hint="write NAME:IP")
    return name, _address(address.strip("[]"), text)


def mtu(text: str) -> int:
    """A link's MTU in bytes."""
    value = integer(text, what="MTU")
    if not 68 <= value <= 65535:
        raise InvalidArgument(f"MTU {value} is not within 68-65535")
    return value
