"""Egress policies: checked once, then one nftables chain per pod, enforced on the host's side of its cable."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_network

from drupe.errors import InvalidArgument
from drupe.resources.network.firewall import Element
from drupe.resources.network.records import Wire
from drupe.spec.network import EgressPolicy, EgressRule

_LABEL = re.compile(r"^(?!-)[a-z0-9_-]{1,63}(?<!-)$")


def check_policy(policy: EgressPolicy) -> EgressPolicy:
    """Raises InvalidArgument for a rule that says nothing clear."""
    for number, rule in enumerate(policy.rules, 1):
        where = f"egress rule {number}"
        if rule.cidr is not None and rule.dns is not None:
            raise InvalidArgument(f"{where}: cidr and dns together", hint="write two rules")
        if rule.cidr is not None:
            _check_cidr(rule.cidr, where)
        if rule.dns is not None:
            normal_pattern(rule.dns, where)
        for ports in rule.ports:
            port_range(ports, where)
    return policy


def _check_cidr(cidr: str, where: str) -> None:
    try:
        ip_network(cidr)
    except ValueError as error:
        hint = "write it as 10.0.0.0/8 or 2001:db8::/32"
        raise InvalidArgument(f"{where}: bad CIDR {cidr!r}", cause=str(error), hint=hint) from None


def normal_pattern(pattern: str, where: str = "egress rule") -> str:
    """A DNS name or "*.name" in lower case, without a final dot. Raises InvalidArgument."""
    name = pattern.lower().rstrip(".")
    labels = name.removeprefix("*.").split(".")
    if len(name) > 253 or not all(_LABEL.match(label) for label in labels):
        raise InvalidArgument(f"{where}: bad DNS name {pattern!r}", hint='write "example.org" or "*.example.org"')
    return name


def port_range(text: str, where: str = "egress rule") -> str:
    """ "443" or "8000-8100", checked. Raises InvalidArgument."""
    first, dash, last = text.partition("-")
    numbers = [first, last] if dash else [first]
    if not all(n.isascii() and n.isdigit() and 1 <= int(n) <= 65535 for n in numbers) or (
        dash and int(first) > int(last)
    ):
        raise InvalidArgument(f"{where}: bad port {text!r}", hint="write 443 or 8000-8100")
    return "-".join(str(int(n)) for n in numbers)


def matches(pattern: str, name: str) -> bool:
    """Whether a rule's name covers a name that was asked for; both normal. "*.a.b" covers what is below a.b."""
    return name.endswith(pattern[1:]) if pattern.startswith("*.") else name == pattern


def may_ask(policy: EgressPolicy, name: str) -> bool:
    """Whether a question for `name` may leave the host.

    The first DNS rule that covers it decides. With none, the default does; but a policy without any DNS rule says
    nothing about names, so they may be asked.
    """
    rules = [rule for rule in policy.rules if rule.dns is not None]
    for rule in rules:
        if matches(normal_pattern(rule.dns or ""), name):
            return rule.action == "allow" or bool(rule.ports or rule.protocol)
    return policy.default == "allow" or not rules


def dns_rules(policy: EgressPolicy, name: str) -> list[int]:
    """The numbers of the rules that speak of a name."""
    numbered = enumerate(policy.rules)
    return [number for number, rule in numbered if rule.dns and matches(normal_pattern(rule.dns), name)]


def grant_commands(
    table: str, chain: str, rules: Sequence[int], addresses: Sequence[tuple[IPv4Address | IPv6Address, int]]
) -> str:
    """Commands that put addresses into the sets of DNS rules, each for its seconds; a known one begins anew."""
    lines = []
    for number in rules:
        for address, seconds in addresses:
            name = f"element inet {table} {chain}_{number}_{address.version}"
            lines += [f"add {name} {{ {address} }}", f"delete {name} {{ {address} }}"]
            lines.append(f"add {name} {{ {address} timeout {seconds}s }}")
    return "".join(line + "\n" for line in lines)


def chain_commands(table: str, chain: str, policy: EgressPolicy) -> str:
    """Commands that make the chain with its sets. Where they exist, first give `unchain_commands`."""
    lines = [f"add chain inet {table} {chain}"]
    for number, rule in enumerate(policy.rules):
        if rule.dns:
            for version in (4, 6):
                kind = f"type ipv{version}_addr; flags timeout;"
                lines.append(f"add set inet {table} {chain}_{number}_{version} {{ {kind} }}")
        lines += [f"add rule inet {table} {chain} {text}" for text in _rule(rule, f"{chain}_{number}")]
    if policy.default == "deny":
        lines.append(f"add rule inet {table} {chain} goto denied")
    return "\n".join(lines) + "\n"


def unchain_commands(table: str, chain: str, policy: EgressPolicy) -> str:
    """Commands that empty the chain and remove its sets, whether or not they are there. The chain itself stays."""
    lines = [f"add chain inet {table} {chain}", f"flush chain inet {table} {chain}"]
    for number, rule in enumerate(policy.rules):
        if rule.dns:
            for version in (4, 6):
                name = f"inet {table} {chain}_{number}_{version}"
                lines.append(f"add set {name} {{ type ipv{version}_addr; flags timeout; }}\ndelete set {name}")
    return "\n".join(lines) + "\n"


def policy_elements(chain: str, wires: Sequence[Wire], bridge_macs: dict[str, str]) -> list[Element]:
    """The elements that put a pod under its chain. bridge_macs: of its networks."""
    found = []
    for wire in wires:
        mac = bridge_macs[wire.network]
        found.append(Element("inet", "policies4", wire.ipv4, f"jump {chain}"))
        found += [Element("inet", "policies6", wire.ipv6, f"jump {chain}")] if wire.ipv6 else []
        found.append(Element("bridge", "governed", f'"{wire.host_interface}"'))
        found.append(Element("bridge", "lifted_from", f'"{wire.host_interface}"', mac))
        found.append(Element("bridge", "lifted_to", wire.mac, mac))
    return found


def _rule(rule: EgressRule, dns_set: str) -> list[str]:
    """One rule as nft(8) writes it: one line, or one per family for a name."""
    if rule.dns:
        targets = [f"ip daddr @{dns_set}_4 ", f"ip6 daddr @{dns_set}_6 "]
    elif rule.cidr:
        network = ip_network(rule.cidr)
        targets = [f"{'ip' if network.version == 4 else 'ip6'} daddr {network} "]
    else:
        targets = [""]
    verdict = "return" if rule.action == "allow" else "goto denied"
    return [f"{target}{_transport(rule)}{verdict}" for target in targets]


def _transport(rule: EgressRule) -> str:
    ports = ", ".join(port_range(text) for text in rule.ports)
    if not ports:
        return f"meta l4proto {rule.protocol} " if rule.protocol else ""
    protocols = rule.protocol or "tcp, udp"
    return f"meta l4proto {{ {protocols} }} th dport {{ {ports} }} "
