"""The built-in networks and the pods on them: planned, journalled, made by the fabric, named by the resolver."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from drupe.errors import AlreadyExists, DrupeError, InvalidArgument, InvalidState
from drupe.linux.netlink import NETLINK_ROUTE
from drupe.resources.network import members
from drupe.resources.network.directory import Directory
from drupe.resources.network.dns import Granted, Resolver
from drupe.resources.network.fabric import Fabric
from drupe.resources.network.networks import DEFAULT, Networks
from drupe.resources.network.ports import Ports
from drupe.resources.network.records import Attached, Counters, HostNet, Keeper, PodNetwork, Records, Wire
from drupe.resources.network.resolvconf import read_resolv_conf
from drupe.spec.base import decode, plain
from drupe.spec.control import NetworkCreate, NetworkInfo
from drupe.spec.network import Attachment, EgressPolicy
from drupe.spec.pod import PodSpec
from drupe.spec.status import Endpoint

T = TypeVar("T")
Names = list[str]  # the class has a method `list`
Infos = list[NetworkInfo]
_CABLES_AT_MOST = 256  # of one pod


class BuiltIn:
    """Bridge networks of one runtime root. pods: the manager's table; `ports` and `journal` are the manager's too.

    Kernel work runs in one thread of its own, in order; plans are made on the event loop without an await in between.
    """

    def __init__(
        self,
        tag: str,
        *,
        records: Records,
        keeper: Keeper,
        host: HostNet,
        pods: dict[str, Attached],
        ports: Ports,
        journal: Callable[[Attached], None],
    ) -> None:
        self._keeper = keeper
        self._host = host
        self._pods = pods
        self._ports = ports
        self._journal = journal
        self._networks = Networks(records, tag)
        self._fabric = Fabric(tag, host, self._networks.table, pods)
        self.directory = Directory(pods)
        self._resolver = Resolver(self.directory, servers=self._servers_of, grant=self._grant, port=host.dns_port)
        self._worker: ThreadPoolExecutor | None = None
        self._creating = asyncio.Lock()
        self._door = asyncio.Lock()
        self._leaving: list[Attached] = []

    # ── pods ──

    async def attach(self, pod_id: str, pod_name: str, spec: PodSpec, netns: str) -> PodNetwork:
        """Plans, journals and connects. When it fails, what was made stays for the manager's `detach`."""
        if any(a.network == DEFAULT for a in spec.network.attachments) and DEFAULT not in self._networks.table:
            await self._make_default()
        attached = self._plan(pod_id, pod_name, spec, netns)
        fd = await self._netlink_in(attached)
        await self._work(lambda: self._fabric.connect(attached, fd))
        for wire in attached.wires:
            await self._resolver.serve(self._networks.get(wire.network))
        return attached.result

    async def detach(self, attached: Attached) -> None:
        """Removes cables and rules; idempotent. Pods that leave while others do go together."""
        self._leaving.append(attached)
        async with self._door:
            if not any(other is attached for other in self._leaving):
                return  # gone along with another
            leaving, self._leaving = self._leaving, []
            try:
                await self._work(lambda: self._fabric.disconnect(leaving))
            except (DrupeError, OSError):
                if len(leaving) == 1:
                    raise
                self._leaving += [other for other in leaving if other is not attached]
                await self._work(lambda: self._fabric.disconnect([attached]))

    async def join(self, attached: Attached, wanted: Attachment, *, ipv6: bool) -> Endpoint:
        """One more network for a connected pod; on failure it is as it was."""
        members.check_joins(attached, wanted.network)
        if wanted.network == DEFAULT and DEFAULT not in self._networks.table:
            await self._make_default()
        network = self._networks.get(wanted.network)
        self._check_policy(attached.policy, [network])
        names = [self._networks.port_name(attached.pod_id, number) for number in range(_CABLES_AT_MOST)]
        place = members.free_place(attached, names)
        wire = self._networks.allocate(wanted, place, attached.pod_id, self._pods.values(), ipv6=ipv6)
        if wire.interface in {other.interface for other in attached.wires}:
            raise AlreadyExists(f"pod {attached.pod_name} has an interface {wire.interface}", stage="network")
        attached.wires.append(wire)
        try:
            self._describe_again(attached)
            fd = await self._netlink_in(attached)
            await self._work(lambda: self._fabric.plug(attached, wire, fd))
            await self._resolver.serve(network)
        except BaseException:
            await self._unplug(attached, wire)
            raise
        return attached.result.endpoints[-1]

    async def leave(self, attached: Attached, name: str) -> None:
        """Raises NotFound, or InvalidState when the pod cannot be without that network."""
        way_in = self._fabric.way_in(attached)
        await self._unplug(attached, members.check_leaves(attached, name, way_in))

    async def _unplug(self, attached: Attached, wire: Wire) -> None:
        fd = await self._netlink_in(attached)
        await self._work(lambda: self._fabric.unplug(attached, wire, fd))
        attached.wires.remove(wire)
        self._describe_again(attached)

    async def _netlink_in(self, attached: Attached) -> int:
        return await self._keeper.netns_socket(attached.netns, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE)

    def _describe_again(self, attached: Attached) -> None:
        """Other cables: journal it, and ask a resolver that the pod can reach."""
        networks = [self._networks.get(wire.network) for wire in attached.wires]
        attached.result.endpoints = [self._endpoint(attached, index) for index in range(len(attached.wires))]
        attached.result.dns_servers = [n.gateway4 for n in networks if n.dns][:1] or attached.result.dns_servers
        self._journal(attached)

    async def check(self, attached: Attached) -> None:
        """Raises InvalidState."""
        await self._work(lambda: self._fabric.check(attached))

    async def counters(self, attached: Attached) -> Counters:
        return await self._work(lambda: self._fabric.counters(attached))

    async def govern(self, attached: Attached, policy: EgressPolicy | None) -> None:
        """Replaces a pod's policy."""
        self._check_policy(policy, [self._networks.get(wire.network) for wire in attached.wires])
        old, attached.policy = attached.policy, policy
        try:
            await self._work(lambda: self._fabric.govern(attached, old))
        except BaseException:
            attached.policy = old
            raise
        self._journal(attached)

    # ── networks ──

    async def create(self, wanted: NetworkCreate) -> NetworkInfo:
        """Makes a network. Raises AlreadyExists, InvalidArgument, ResourceExhausted, PermissionDenied."""
        async with self._creating:
            subnets, ipv6 = await self._work(self._fabric.survey)
            network = self._networks.add(wanted, host_subnets=subnets, ipv6=ipv6)
            try:
                await self._work(lambda: self._fabric.raise_network(network))
                await self._resolver.serve(network)
            except BaseException:
                await self._remove(network)
                raise
        return network

    async def list(self) -> Infos:
        """All networks, with the ids of their pods, by name."""
        return [self._described(network) for _, network in sorted(self._networks.table.items())]

    async def inspect(self, name: str) -> NetworkInfo:
        """Raises NotFound."""
        return self._described(self._networks.get(name))

    async def delete(self, name: str) -> None:
        """Raises NotFound, or InvalidState naming the pods that use it."""
        network = self._networks.get(name)
        if users := [pod.pod_name for pod in self._users(name)]:
            hint = "delete these pods first"
            raise InvalidState(f"network {name} is used by {', '.join(users)}", stage="network", hint=hint)
        await self._remove(network)

    async def prune(self, labels: Sequence[str] = ()) -> Names:
        """Removes networks without pods, but not the default one; the names removed. labels: "k" or "k=v"."""
        unused = [n for n in self._networks.table.values() if n.name != DEFAULT and not self._users(n.name)]
        gone = [network for network in unused if all(_labelled(network.labels, label) for label in labels)]
        for network in gone:
            await self._remove(network)
        return [network.name for network in gone]

    # ── the daemon's life ──

    async def recover(self) -> Sequence[str]:
        """Makes bridges, rules and resolvers whole, and removes cables of nobody. What was done, in words."""
        notes: list[str] = []
        if self._networks.table:
            notes += await self._work(self._fabric.restore)
        for network in [n for n in self._networks.table.values() if self._users(n.name)]:
            try:
                await self._resolver.serve(network)
            except DrupeError as error:
                notes.append(str(error))
        return notes

    async def close(self) -> None:
        """Lets go of sockets and the thread. Pods keep their network; with none, nothing stays on the host."""
        self._resolver.close()
        if self._networks.table and not any(pod.wires for pod in self._pods.values()):
            with suppress(DrupeError, OSError):  # what stays is used again by the next daemon
                await self._work(self._fabric.rest)
        if self._worker:
            await self._work(self._fabric.close)
            self._worker.shutdown(wait=True)
            self._worker = None

    # ── within ──

    def _plan(self, pod_id: str, pod_name: str, spec: PodSpec, netns: str) -> Attached:
        """Chooses addresses and ports and journals them; nothing is made yet. No await: it is atomic."""
        wires: list[Wire] = []
        attached = Attached(
            pod_id=pod_id,
            pod_name=pod_name,
            mode="bridge",
            netns=netns,
            names=_names(pod_id, pod_name, spec),
            wires=wires,
            policy=spec.network.policy,
            servers=list(spec.dns.servers),
            result=PodNetwork(mode="bridge"),
        )
        for index, wanted in enumerate(spec.network.attachments):
            pods = [*self._pods.values(), attached]
            wires.append(self._networks.allocate(wanted, index, pod_id, pods, ipv6=wants_ipv6(spec)))
        self._check_wires(attached, spec)
        attached.ports = self._ports.reserve(pod_id, pod_name, spec.ports)
        try:
            attached.result = self._result(attached, spec)
            self._journal(attached)
        except BaseException:
            self._ports.release(pod_id)
            raise
        return attached

    def _check_wires(self, attached: Attached, spec: PodSpec) -> None:
        if not attached.wires:
            raise InvalidArgument("no network to attach to", stage="network", hint='use mode "none" for no network')
        names = [wire.interface for wire in attached.wires]
        if len(set(names)) != len(names):
            raise InvalidArgument(f"two attachments with one interface name: {', '.join(names)}", stage="network")
        used = [self._networks.get(wire.network) for wire in attached.wires]
        if spec.ports and all(network.internal for network in used):
            raise InvalidArgument("an internal network has no way in for published ports", stage="network")
        self._check_policy(attached.policy, used)

    @staticmethod
    def _check_policy(policy: EgressPolicy | None, networks: Iterable[NetworkInfo]) -> None:
        by_name = any(rule.dns for rule in (policy.rules if policy else ()))
        if by_name and not all(network.dns for network in networks):
            raise InvalidArgument("DNS rules need networks with a resolver (dns)", stage="network")

    def _result(self, attached: Attached, spec: PodSpec) -> PodNetwork:
        resolv = read_resolv_conf(self._host.resolv_conf)
        networks = [self._networks.get(wire.network) for wire in attached.wires]
        own = [network.gateway4 for network in networks if network.dns][:1]
        return PodNetwork(
            mode="bridge",
            endpoints=[self._endpoint(attached, index) for index in range(len(attached.wires))],
            ports=attached.ports,
            dns_servers=own or attached.servers or list(resolv.servers),
            dns_searches=list(spec.dns.searches or resolv.searches),
        )

    def _endpoint(self, attached: Attached, index: int) -> Endpoint:
        wire = attached.wires[index]
        network = self._networks.get(wire.network)
        return Endpoint(
            network=wire.network,
            interface=wire.interface,
            mac=wire.mac,
            ipv4=wire.ipv4,
            ipv6=wire.ipv6,
            gateway4=network.gateway4,
            gateway6=network.gateway6,
            host_interface=wire.host_interface,
        )

    async def _make_default(self) -> None:
        try:
            await self.create(NetworkCreate(name=DEFAULT))
        except AlreadyExists:
            if DEFAULT not in self._networks.table:  # not made by another pod meanwhile
                raise

    async def _remove(self, network: NetworkInfo) -> None:
        self._networks.remove(network.name)
        self._resolver.stop(network.name)
        await self._work(lambda: self._fabric.lower_network(network))
        self._networks.forget(network.name)

    def _users(self, name: str) -> Sequence[Attached]:
        return [pod for pod in self._pods.values() if any(wire.network == name for wire in pod.wires)]

    def _described(self, network: NetworkInfo) -> NetworkInfo:
        data = plain(network) | {"pods": [pod.pod_id for pod in self._users(network.name)]}
        return decode(NetworkInfo, data, where="network")

    def _servers_of(self, attached: Attached) -> Sequence[str]:
        """Where a pod's questions go that no pod's name answers: its own servers, or the host's."""
        return attached.servers or read_resolv_conf(self._host.resolv_conf).servers

    async def _grant(self, attached: Attached, name: str, addresses: Sequence[Granted]) -> None:
        await self._work(lambda: self._fabric.grant(attached, name, addresses))

    async def _work(self, function: Callable[[], T]) -> T:
        """Runs kernel work in the one network thread, in order."""
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="network")
        return await asyncio.get_running_loop().run_in_executor(self._worker, function)


def _names(pod_id: str, pod_name: str, spec: PodSpec) -> list[str]:
    """What others may look up: the pod's name, short id, host name, its containers' names; lower case, no doubles."""
    wanted = [pod_name, pod_id[:12], spec.hostname, *(container.name for container in spec.containers)]
    return list(dict.fromkeys(name.lower() for name in wanted if name))


def wants_ipv6(spec: PodSpec) -> bool:
    """Whether the pod's own sysctls leave IPv6 on."""
    return not any(spec.sysctls.get(f"net.ipv6.conf.{which}.disable_ipv6") == "1" for which in ("all", "default"))


def _labelled(labels: dict[str, str], wanted: str) -> bool:
    key, equals, value = wanted.partition("=")
    return key in labels and (not equals or labels[key] == value)
