"""The nftables rules of the built-in networks: three small tables of fixed rules, and sets that say for whom.

Adding a pod adds elements, never rules (an egress policy alone adds a chain). Rules judge by interface and by addresses
that the bridge table has already checked against the port they came from, so a pod cannot pose as another.

inet   published ports (DNAT), masquerade, isolation of networks, egress policies
bridge source check on every pod's port; frames of pods under a policy are lifted to the IP stack, so that traffic
       inside a network meets the same connection-tracked rules as any other
netdev brings answers to connections from the host's ::1 back to its loopback (IPv6 has no route_localnet)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import ip_address
from typing import Any, Final, NamedTuple

from drupe.errors import InternalError, NotFound, Unsupported
from drupe.linux.nftables import LIBRARY, Nftables, NftablesError
from drupe.spec.control import NetworkInfo
from drupe.spec.status import PublishedPort

LOOPBACK_ALIAS6: Final = "fd64:7275:7065::1"  # stands in for ::1 on its way to a pod and back

_INET = """
table inet {t} {{
  set bridges {{ type ifname; }}
  set internal {{ type ifname; }}
  set same {{ type ifname . ifname; }}
  set resolvers4 {{ type ipv4_addr; }}
  set resolvers6 {{ type ipv6_addr; }}
  map ports4 {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
  map ports6 {{ type inet_proto . inet_service : ipv6_addr . inet_service; }}
  map addressed4 {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
  map addressed6 {{ type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; }}
  set self4 {{ type ipv4_addr . ipv4_addr; }}
  set self6 {{ type ipv6_addr . ipv6_addr; }}
  map policies4 {{ type ipv4_addr : verdict; }}
  map policies6 {{ type ipv6_addr : verdict; }}
  chain raw {{
    type filter hook prerouting priority raw;
    iifname != "lo" ip daddr 127.0.0.0/8 drop
    iifname @bridges ip saddr 127.0.0.0/8 drop
  }}
  chain strays {{
    type filter hook prerouting priority mangle;
    iifname "lo" ip6 daddr {alias} ct direction original drop
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat;
    iifname @bridges ip daddr @resolvers4 th dport {dns} return
    iifname @bridges ip6 daddr @resolvers6 th dport {dns} return
    fib daddr type local jump published
  }}
  chain output {{
    type nat hook output priority -100;
    fib daddr type local jump published
  }}
  chain published {{
    dnat ip to ip daddr . meta l4proto . th dport map @addressed4
    dnat ip6 to ip6 daddr . meta l4proto . th dport map @addressed6
    dnat ip to meta l4proto . th dport map @ports4
    dnat ip6 to meta l4proto . th dport map @ports6
  }}
  chain denied {{
    meta l4proto tcp reject with tcp reset
    reject with icmpx type admin-prohibited
  }}
  chain forward {{
    type filter hook forward priority filter;
    ct state established,related accept
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
    ip saddr vmap @policies4
    ip6 saddr vmap @policies6
    iifname . oifname @same accept
    iifname @internal drop
    ct status dnat accept
    oifname @bridges drop
  }}
  chain input {{
    type filter hook input priority filter;
    iifname != @bridges accept
    ct state established,related accept
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
    ip daddr @resolvers4 th dport {dns} meta l4proto {{ tcp, udp }} accept
    ip6 daddr @resolvers6 th dport {dns} meta l4proto {{ tcp, udp }} accept
    ip saddr vmap @policies4
    ip6 saddr vmap @policies6
    iifname @internal drop
  }}
  chain redirects {{
    type filter hook output priority filter;
    oifname @bridges icmp type redirect drop
    oifname @bridges icmpv6 type nd-redirect drop
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    oifname @bridges ip saddr 127.0.0.0/8 masquerade
    oifname @bridges ip6 saddr ::1 snat to {alias}
    iifname . oifname @same ct status dnat masquerade
    ip saddr . ip daddr @self4 ct status dnat masquerade
    ip6 saddr . ip6 daddr @self6 ct status dnat masquerade
    iifname @bridges oifname != @bridges masquerade
  }}
}}
"""
_BRIDGE = """
table bridge {t} {{
  set members {{ type ifname; }}
  set sources4 {{ type ifname . ether_addr . ipv4_addr; }}
  set sources6 {{ type ifname . ether_addr . ipv6_addr; }}
  set governed {{ type ifname; }}
  map lifted_from {{ type ifname : ether_addr; }}
  map lifted_to {{ type ether_addr : ether_addr; }}
  chain prerouting {{
    type filter hook prerouting priority dstnat;
    iifname != @members accept
    ether type arp iifname . ether saddr . arp saddr ip != @sources4 drop
    ether type arp accept
    ether type ip iifname . ether saddr . ip saddr != @sources4 drop
    icmpv6 type {{ nd-router-advert, nd-redirect }} drop
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
    iifname @governed ether type != {{ ip, ip6 }} drop
    iifname @governed ip6 saddr {{ ::, fe80::/10 }} drop
    iifname @governed ether daddr & 01:00:00:00:00:00 == 01:00:00:00:00:00 drop
    ether type ip6 ip6 saddr != {{ ::, fe80::/10 }} iifname . ether saddr . ip6 saddr != @sources6 drop
    ether type != {{ ip, ip6 }} accept
    ether daddr set iifname map @lifted_from meta pkttype set host accept
    ether daddr set ether daddr map @lifted_to meta pkttype set host accept
  }}
}}
"""
_NETDEV_CHAIN = """
add chain netdev {t} {port} {{ type filter hook ingress device "{port}" priority 0; }}
flush chain netdev {t} {port}
add rule netdev {t} {port} ip6 saddr {pod} ip6 daddr {alias} \
    meta pkttype set host ether daddr set 00:00:00:00:00:00 fwd to "lo"
"""


class Element(NamedTuple):
    """One element of a set or map; `value` is for maps. Text as nft(8) writes it."""

    family: str
    set: str
    key: str
    value: str = ""

    def __str__(self) -> str:
        return f"{self.key} : {self.value}" if self.value else self.key


class Firewall:
    """The tables `name` of this host. Used by one thread at a time.

    everything: all commands beyond the fixed rules, for building the tables anew when somebody removed them.
    """

    def __init__(self, name: str, *, dns_port: int, everything: Callable[[], str]) -> None:
        self.name = name
        self._dns_port = dns_port
        self._everything = everything
        self._nft: Nftables | None = None

    def run(self, commands: str) -> list[dict[str, Any]]:
        """One transaction. Missing tables of ours are built anew from `everything`, and it is tried again.

        Raises NotFound when libnftables is not installed, Unsupported when the kernel refuses.
        """
        try:
            return self._library().run(commands)
        except NftablesError as error:
            if self.present():
                raise refused(error) from None
        self.rebuild()
        try:
            return self._library().run(commands)
        except NftablesError as error:
            raise refused(error) from None

    def rebuild(self) -> None:
        """Replaces our tables, in one transaction, by what `everything` says: no packet sees a gap."""
        fixed = (_INET + _BRIDGE).format(t=self.name, dns=self._dns_port, alias=LOOPBACK_ALIAS6)
        clean = "".join(
            f"add table {family} {self.name}\ndelete table {family} {self.name}\n"
            for family in ("inet", "bridge", "netdev")
        )
        wanted = self._everything()
        kept = "".join(text for name, text in self._timed() if f"add set inet {self.name} {name} " in wanted)
        try:
            self._library().run(f"{clean}{fixed}\nadd table netdev {self.name}\n{wanted}{kept}")
        except NftablesError as error:
            raise refused(error) from None

    def present(self) -> bool:
        """Whether all our tables exist."""
        found = self._library().run("list tables")
        ours = {t["table"]["family"] for t in found if t.get("table", {}).get("name") == self.name}
        return ours >= {"inet", "bridge", "netdev"}

    def _timed(self) -> Iterator[tuple[str, str]]:
        """The elements that expire by themselves, as (set, command that adds it again)."""
        if not self.present():
            return
        for item in self._library().run(f"list table inet {self.name}"):
            found = item.get("set", {})
            for entry in found.get("elem", ()) if "timeout" in found.get("flags", ()) else ():
                elem = entry["elem"]
                text = f"{{ {elem['val']} timeout {max(elem['expires'], 1)}s }}"
                yield found["name"], f"add element inet {self.name} {found['name']} {text}\n"

    def remove(self) -> None:
        """Removes our tables; idempotent."""
        found = self._library().run("list tables")
        tables = [t["table"] for t in found if t.get("table", {}).get("name") == self.name]
        self._library().run("".join(f"delete table {t['family']} {t['name']}\n" for t in tables))

    def close(self) -> None:
        if self._nft:
            self._nft.close()
            self._nft = None

    def _library(self) -> Nftables:
        if self._nft is None:
            try:
                self._nft = Nftables()
            except OSError as error:
                raise NotFound(
                    f"cannot load {LIBRARY}", stage="network", cause=str(error), hint="apt install libnftables1"
                ) from None
        return self._nft

    # ── texts ──

    def add(self, elements: Iterable[Element]) -> str:
        """Commands that add the elements; those that are there already are fine."""
        return "".join(f"add element {e.family} {self.name} {e.set} {{ {e} }}\n" for e in elements)

    def delete(self, elements: Sequence[Element]) -> str:
        """Commands that delete the elements; added first, because a missing one would refuse the transaction."""
        gone = "".join(f"delete element {e.family} {self.name} {e.set} {{ {e.key} }}\n" for e in elements)
        return self.add(elements) + gone

    def answer_loopback(self, port: str, ipv6: str) -> str:
        """Commands that bring a pod's answers to ::1 home; caught at its port, before any bridge hook."""
        return _NETDEV_CHAIN.format(t=self.name, port=port, pod=ipv6, alias=LOOPBACK_ALIAS6)

    def forget_loopback(self, port: str) -> str:
        """Commands that undo `answer_loopback`, done or not."""
        name = f"netdev {self.name} {port}"
        return f"add chain {name}\nflush chain {name}\ndelete chain {name}\n"


def network_elements(network: NetworkInfo) -> list[Element]:
    """What a network adds."""
    bridge = f'"{network.bridge}"'
    found = [Element("inet", "bridges", bridge), Element("inet", "same", f"{bridge} . {bridge}")]
    found += [Element("inet", "internal", bridge)] if network.internal else []
    found += [Element("inet", "resolvers4", network.gateway4)] if network.dns else []
    found += [Element("inet", "resolvers6", network.gateway6)] if network.dns and network.gateway6 else []
    return found


def source_elements(interface: str, mac: str, ipv4: str, ipv6: str) -> list[Element]:
    """What a pod's port on a bridge adds: who may speak there."""
    found = [Element("bridge", "members", f'"{interface}"')]
    found.append(Element("bridge", "sources4", f'"{interface}" . {mac} . {ipv4}'))
    return found + ([Element("bridge", "sources6", f'"{interface}" . {mac} . {ipv6}')] if ipv6 else [])


def port_elements(ports: Sequence[PublishedPort], ipv4: str, ipv6: str) -> list[Element]:
    """What published ports add. A port on all addresses is there for both families, where the pod has both."""
    found: list[Element] = []
    for version, address in ((4, ipv4), (6, ipv6)):
        found += [Element("inet", f"self{version}", f"{address} . {address}")] if ports and address else []
    for port in ports:
        host = ip_address(port.host_ip) if port.host_ip else None
        for version, target in ((4, ipv4), (6, ipv6)):
            if not target or (host and host.version != version):
                continue
            key = f"{port.protocol} . {port.host_port}"
            value = f"{target} . {port.container_port}"
            if host and not host.is_unspecified:
                found.append(Element("inet", f"addressed{version}", f"{host} . {key}", value))
            else:
                found.append(Element("inet", f"ports{version}", key, value))
    return found


def refused(error: NftablesError) -> Exception:
    """The drupe error for a refused transaction: the kernel lacks something, or the commands were wrong (a bug)."""
    text = str(error)
    first = text.splitlines()[0] if text else ""
    if "syntax error" in text:
        return InternalError("bad nftables commands", stage="network", cause=first)
    if "Operation not permitted" in text:
        return Unsupported("no permission to change nftables", stage="network", cause=first, hint="run as root")
    return Unsupported(
        "the kernel refused the nftables rules",
        stage="network",
        cause=first,
        hint="needs nf_tables with nat, fib, inet, bridge and netdev families",
    )
