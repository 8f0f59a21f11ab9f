"""Everything in the kernel that built-in networks are made of: bridges, cables, rules. Runs in one thread."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address

from drupe.errors import InvalidState
from drupe.linux import conntrack
from drupe.linux.netlink import Netlink
from drupe.linux.rtnetlink import net_namespace_of
from drupe.resources.network import members
from drupe.resources.network import policy as policies
from drupe.resources.network.bridge import Bridges, bridge_mac, explained
from drupe.resources.network.firewall import (
    Element,
    Firewall,
    network_elements,
    port_elements,
    source_elements,
)
from drupe.resources.network.networks import Networks
from drupe.resources.network.records import Attached, Counters, HostNet, Wire
from drupe.spec.control import NetworkInfo
from drupe.spec.network import EgressPolicy

_MAX_GRANT_S = 86400
_SLACK_S = 10  # between the answer and the connection that uses it


class Fabric:
    """Bridges and firewall together. networks, pods: the manager's tables, read only."""

    def __init__(
        self, tag: str, host: HostNet, networks: Mapping[str, NetworkInfo], pods: Mapping[str, Attached]
    ) -> None:
        self._networks = networks
        self._pods = pods
        self._granted: dict[str, dict[tuple[str, IPv4Address | IPv6Address], float]] = {}  # → monotonic end
        self._bridges = Bridges(host.sysctl)
        name = f"drupe_{tag}" if tag else "drupe"
        self._firewall = Firewall(name, dns_port=host.dns_port, everything=self._everything)

    def close(self) -> None:
        self._bridges.close()
        self._firewall.close()

    def survey(self) -> tuple[list[IPv4Network], bool]:
        """The subnets that the host uses, and whether it has IPv6."""
        return self._bridges.subnets(), self._bridges.has_ipv6()

    # ── networks ──

    def raise_network(self, network: NetworkInfo) -> None:
        """Makes a network's bridge with its rules, where missing."""
        if self._bridges.ensure(network):
            self._firewall.run(self._firewall.add(network_elements(network)))

    def lower_network(self, network: NetworkInfo) -> None:
        """Removes a network; with the last one, our tables. Idempotent."""
        if not self._networks and not self._pods:
            self._firewall.remove()
        elif self._firewall.present():
            self._firewall.run(self._firewall.delete(network_elements(network)))
        self._bridges.remove(network)

    # ── pods ──

    def connect(self, attached: Attached, netns_socket: int) -> None:
        """Makes a pod's cables and rules. netns_socket: a netlink socket inside its namespace, closed here."""
        with Netlink(fd=netns_socket) as netns:
            netns_fd = net_namespace_of(netns.fileno())
            try:
                for wire in attached.wires:
                    self.raise_network(self._networks[wire.network])
                self._firewall.run(self._pod_commands(attached))  # first: no packet passes unchecked
                self._bridges.connect(netns, netns_fd, attached.wires, self._networks)
                if commands := self._loopback_commands(attached):
                    self._firewall.run(commands)
                _forget_flows(attached)
            finally:
                os.close(netns_fd)

    def disconnect(self, leaving: Sequence[Attached]) -> None:
        """Removes the rules and cables of pods; idempotent, and fine when only some are there."""
        self._bridges.disconnect(wire.host_interface for attached in leaving for wire in attached.wires)
        self._firewall.run("".join(self._removal(attached) for attached in leaving))
        for attached in leaving:
            _forget_flows(attached)

    def plug(self, attached: Attached, wire: Wire, netns_socket: int) -> None:
        """Makes one more cable of a connected pod, which is among its wires already. netns_socket: closed here."""
        self.raise_network(self._networks[wire.network])
        self._firewall.run(self._firewall.add(self._elements(attached)))  # first: no packet passes unchecked
        others = [other for other in attached.wires if other is not wire]
        routed = any(not self._networks[other.network].internal for other in others)
        members.connect(self._bridges, netns_socket, wire, dict(self._networks), routed=routed)

    def unplug(self, attached: Attached, wire: Wire, netns_socket: int) -> None:
        """Takes one cable of a pod away, with its rules. Idempotent. netns_socket: closed here."""
        rest = members.without(attached, wire)
        self._bridges.disconnect([wire.host_interface])
        gone = members.only_in(self._elements(attached), self._elements(rest))
        self._firewall.run(self._firewall.delete(gone))
        members.route_by_another(netns_socket, rest, dict(self._networks))

    def way_in(self, attached: Attached) -> Wire | None:
        """The wire on which published ports arrive."""
        return self._way_in(attached)

    def _removal(self, attached: Attached) -> str:
        """Commands that remove a pod's rules, there or not."""
        self._granted.pop(attached.pod_id, None)
        way_in = self._way_in(attached)
        commands = self._firewall.forget_loopback(way_in.host_interface) if way_in and attached.ports else ""
        chain = chain_name(attached)
        elements = self._elements(attached)
        if attached.policy:
            commands += policies.unchain_commands(self._firewall.name, chain, attached.policy)
        commands += self._firewall.delete(elements)
        if attached.policy:
            commands += f"delete chain inet {self._firewall.name} {chain}\n"
        return commands

    def govern(self, attached: Attached, old: EgressPolicy | None) -> None:
        """Replaces the policy of a connected pod in one transaction."""
        table, chain = self._firewall.name, chain_name(attached)
        commands = policies.unchain_commands(table, chain, old) if old else ""
        elements = self._policy_elements(attached)
        if attached.policy:
            commands += policies.chain_commands(table, chain, attached.policy)
            commands += self._firewall.add(elements) + self._grants(attached)
        elif old:
            commands += self._firewall.delete(elements) + f"delete chain inet {table} {chain}\n"
        self._firewall.run(commands)

    def grant(self, attached: Attached, name: str, addresses: Sequence[tuple[IPv4Address | IPv6Address, int]]) -> None:
        """Lets a pod reach addresses for so many seconds and a little longer, as far as its rules speak of `name`."""
        if not attached.policy or self._pods.get(attached.pod_id) is not attached:
            return
        lasting = [(address, min(max(seconds, 0), _MAX_GRANT_S) + _SLACK_S) for address, seconds in addresses]
        now = time.monotonic()
        granted = self._granted.setdefault(attached.pod_id, {})
        for key in [key for key, end in granted.items() if end < now]:
            del granted[key]
        granted.update({(name, address): now + seconds for address, seconds in lasting})
        rules = policies.dns_rules(attached.policy, name)
        self._firewall.run(policies.grant_commands(self._firewall.name, chain_name(attached), rules, lasting))

    def _grants(self, attached: Attached) -> str:
        """Commands that grant again what is granted still, to the rules of a new policy."""
        commands, now = "", time.monotonic()
        for (name, address), end in self._granted.get(attached.pod_id, {}).items():
            rules = policies.dns_rules(attached.policy, name) if attached.policy else []
            if end > now + 1:
                left = [(address, int(end - now))]
                commands += policies.grant_commands(self._firewall.name, chain_name(attached), rules, left)
        return commands

    def check(self, attached: Attached) -> None:
        """Raises InvalidState naming the first thing that is missing."""
        for wire in attached.wires:
            bridge = self._bridges.port(self._networks[wire.network].bridge)
            link = self._bridges.port(wire.host_interface)
            if not bridge or not link or not link.up or link.master != bridge.index:
                what = f"{wire.interface} of pod {attached.pod_name} is not connected to network {wire.network}"
                raise InvalidState(what, stage="network", hint="delete the pod and make it anew")
        if not self._firewall.present():
            self._firewall.rebuild()

    def counters(self, attached: Attached) -> Counters:
        """The pod receives what the host's end sends."""
        links = [link for wire in attached.wires if (link := self._bridges.port(wire.host_interface))]
        return Counters(
            rx_bytes=sum(link.tx_bytes for link in links),
            tx_bytes=sum(link.rx_bytes for link in links),
            rx_packets=sum(link.tx_packets for link in links),
            tx_packets=sum(link.rx_packets for link in links),
        )

    def restore(self) -> list[str]:
        """After a restart: cables of nobody removed, bridges in use and rules as the records say. What was done."""
        notes = []
        known = {wire.host_interface for pod in self._pods.values() for wire in pod.wires}
        for network in self._networks.values():
            strangers = self._bridges.strangers(network.bridge, known)
            self._bridges.disconnect(strangers)
            notes += [f"orphan interface {name} removed" for name in strangers]
            wires = [w.host_interface for pod in self._pods.values() for w in pod.wires if w.network == network.name]
            if wires and self._bridges.ensure(network):
                notes.append(f"bridge of network {network.name} made anew")
            notes += [f"{name} plugged in again" for name in self._bridges.replug(network.bridge, wires)]
        if known or self._firewall.present():
            self._firewall.rebuild()
        return notes

    def rest(self) -> None:
        """Takes bridges and rules off the host while no pod uses them; the next attach makes them again."""
        self._firewall.remove()
        for network in self._networks.values():
            self._bridges.remove(network)

    # ── texts ──

    def _everything(self) -> str:
        commands = ""
        for network in self._networks.values():
            commands += self._firewall.add(network_elements(network))
        for pod in self._pods.values():
            if pod.wires:
                commands += self._pod_commands(pod) + self._loopback_commands(pod)
        return commands

    def _pod_commands(self, attached: Attached) -> str:
        chain = ""
        if attached.policy:
            chain = policies.chain_commands(self._firewall.name, chain_name(attached), attached.policy)
        return chain + self._firewall.add(self._elements(attached))

    def _elements(self, attached: Attached) -> list[Element]:
        found: list[Element] = []
        for wire in attached.wires:
            found += source_elements(wire.host_interface, wire.mac, wire.ipv4, wire.ipv6)
        if way_in := self._way_in(attached):
            found += port_elements(attached.ports, way_in.ipv4, way_in.ipv6)
        return found + (self._policy_elements(attached) if attached.policy else [])

    def _policy_elements(self, attached: Attached) -> list[Element]:
        macs = {wire.network: bridge_mac(self._networks[wire.network]) for wire in attached.wires}
        return policies.policy_elements(chain_name(attached), attached.wires, macs)

    def _loopback_commands(self, attached: Attached) -> str:
        way_in = self._way_in(attached)
        if not attached.ports or not way_in or not way_in.ipv6 or not self._bridges.port(way_in.host_interface):
            return ""
        return self._firewall.answer_loopback(way_in.host_interface, way_in.ipv6)

    def _way_in(self, attached: Attached) -> Wire | None:
        """The wire on which published ports arrive: the first in a network that has a way out."""
        for wire in attached.wires:
            if wire.network in self._networks and not self._networks[wire.network].internal:
                return wire
        return None


def _forget_flows(attached: Attached) -> None:
    """A UDP caller that never pauses would be sent to where its first packet went, for ever."""
    for port in attached.ports:
        if port.protocol == "udp":
            with explained(f"cannot forget flows to port {port.host_port}"):
                conntrack.forget(socket.IPPROTO_UDP, port.host_port)


def chain_name(attached: Attached) -> str:
    """The name of a pod's policy chain, known from the pod's id alone."""
    return "pod_" + Networks.token(attached.pod_id)
