"""Egress rules as people write them: DESTINATION[,port=N or N-M]…[,proto=tcp|udp|sctp].

DESTINATION is an address, a CIDR, a DNS name, "*.name", or "any".
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Literal, cast, get_args

from drupe.errors import InvalidArgument
from drupe.spec.network import EgressPolicy, EgressRule, Protocol

Action = Literal["allow", "deny"]
_NAME = re.compile(
    r"^(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?$"
)
_HINT = "write it like 10.0.0.0/8, example.org,port=443 or any,port=53,proto=udp"


def parse_policy(
    allow: Sequence[str] = (), deny: Sequence[str] = (), *, default: Action | None = None
) -> EgressPolicy | None:
    """The policy of two lists, `deny` tried before `allow`; None when nothing is said.

    Without a default, a list of allowed destinations denies the rest, and a list of denied ones alone allows the rest.
    """
    if not (allow or deny or default):
        return None
    rules = [parse_rule("deny", text) for text in deny] + [parse_rule("allow", text) for text in allow]
    return EgressPolicy(default=default or ("deny" if allow else "allow"), rules=tuple(rules))


def parse_rule(action: Action, text: str) -> EgressRule:
    """One rule of its text form. Raises InvalidArgument."""
    destination, *options = text.split(",")
    ports: list[str] = []
    protocol: Protocol | None = None
    for option in options:
        key, _, value = option.partition("=")
        if key == "port" and _is_port_range(value):
            ports.append(value)
        elif key == "proto" and value in get_args(Protocol):
            protocol = cast(Protocol, value)
        else:
            raise InvalidArgument(f"bad part {option!r} of egress rule {text!r}", hint=_HINT)
    cidr, dns = _destination(destination, text)
    return EgressRule(action=action, cidr=cidr, dns=dns, ports=tuple(ports), protocol=protocol)


def _destination(text: str, whole: str) -> tuple[str | None, str | None]:
    if text in ("any", "all"):
        return None, None
    try:
        return str(ipaddress.ip_network(text)), None
    except ValueError as error:
        if "/" in text or ":" in text or text.replace(".", "").isdigit():
            raise InvalidArgument(f"bad CIDR {text!r} in egress rule {whole!r}", cause=str(error)) from None
    if not _NAME.match(text):
        raise InvalidArgument(f"bad destination {text!r} in egress rule {whole!r}", hint=_HINT)
    return None, text


def _is_port_range(text: str) -> bool:
    first, dash, last = text.partition("-")
    if not first.isdigit() or (dash and not last.isdigit()):
        return False
    return 0 < int(first) <= int(last or first) < 65536
