"""The network of pods: attach, detach, check, recover. One door for all modes and for the built-in networks."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from drupe.errors import AlreadyExists, DrupeError, InvalidArgument, InvalidState, NotFound, Unsupported
from drupe.linux.netlink import NETLINK_ROUTE
from drupe.resources.network.directory import Directory
from drupe.resources.network.dns import Granted, Resolver
from drupe.resources.network.fabric import Fabric
from drupe.resources.network.networks import DEFAULT, Networks
from drupe.resources.network.policy import check_policy
from drupe.resources.network.ports import Ports, check
from drupe.resources.network.records import (
    PODS,
    Attached,
    Counters,
    HostNet,
    Keeper,
    PodNetwork,
    Records,
    Wire,
)
from drupe.resources.network.resolvconf import ResolvConf, read_resolv_conf
from drupe.spec.base import decode, plain
from drupe.spec.control import NetworkCreate, NetworkInfo
from drupe.spec.network import EgressPolicy
from drupe.spec.pod import PodSpec
from drupe.spec.status import Endpoint, PublishedPort

T = TypeVar("T")
_MAIN_ROOT = Path("/run/drupe")


class NetworkManager:
    """Networks of one runtime root. run: its run directory, whose path sets its names apart from another root's.

    Everything is journalled in `records` before it is made and has a name that follows from the pod's id, so that
    `detach` can undo what a crash left half made. Kernel work runs in one thread of its own.
    """

    def __init__(self, *, run: Path, records: Records, keeper: Keeper, host: HostNet | None = None) -> None:
        self._tag = "" if run == _MAIN_ROOT else sha256(str(run.absolute()).encode()).hexdigest()[:6]
        self._records = records
        self._keeper = keeper
        self._host = host or HostNet()
        self._networks = Networks(records, self._tag)
        known = records.all(PODS)
        self._pods = {key: decode(Attached, data, where=f"network of pod {key}") for key, data in known.items()}
        self._ports = Ports()
        self._directory = Directory(self._pods)
        self._resolver = Resolver(
            self._directory, servers=self._servers_of, grant=self._grant, port=self._host.dns_port
        )
        self._fabric = Fabric(self._tag, self._host, self._networks.table, self._pods)
        self._worker: ThreadPoolExecutor | None = None
        self._creating = asyncio.Lock()

    # ── pods ──

    async def attach(self, pod_id: str, pod_name: str, spec: PodSpec, netns: str) -> PodNetwork:
        """Gives a pod its network. netns: its namespace as the keeper sees it ("" for the host's).

        All or nothing. Raises InvalidArgument, NotFound (network, plug-in), AlreadyExists (port, address), Unsupported,
        ResourceExhausted, HelperFailed (a plug-in's own words).
        """
        if pod_id in self._pods:
            raise AlreadyExists(f"pod {pod_name} has a network already", stage="network")
        self._check_spec(spec)
        match spec.network.mode:
            case "bridge":
                return await self._attach_bridge(pod_id, pod_name, spec, netns)
            case "none" | "host":
                return self._attach_plain(pod_id, pod_name, spec, netns)
        raise InvalidArgument(f"network mode {spec.network.mode} is not there yet")

    async def detach(self, pod_id: str) -> None:
        """Undoes an attach, whole or half made, whether or not the namespace still exists. Idempotent."""
        attached = self._pods.get(pod_id)
        if attached is None:
            return
        if attached.wires:
            await self._work(lambda: self._fabric.disconnect(attached))
        self._ports.release(pod_id)
        self._records.delete(PODS, pod_id)
        self._pods.pop(pod_id, None)
        self._directory.changed()

    async def check(self, pod_id: str) -> None:
        """Raises InvalidState saying what is missing of a pod's network, NotFound for a pod without one."""
        attached = self._attached(pod_id)
        if attached.wires:
            await self._work(lambda: self._fabric.check(attached))

    async def stats(self, pod_id: str) -> Counters | None:
        """What the pod's interfaces carried; None when it has none of its own."""
        attached = self._pods.get(pod_id)
        if attached is None or not attached.wires:
            return None
        return await self._work(lambda: self._fabric.counters(attached))

    async def update_policy(self, pod_id: str, policy: EgressPolicy | None) -> None:
        """Replaces a pod's egress policy in one step; connections that are established go on."""
        attached = self._attached(pod_id)
        if not attached.wires:
            raise self._no_policy(attached.mode)
        old, attached.policy = attached.policy, policy and check_policy(policy)
        try:
            await self._work(lambda: self._fabric.govern(attached, old))
        except BaseException:
            attached.policy = old
            raise
        self._records.put(PODS, pod_id, plain(attached))

    # ── built-in networks ──

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

    async def list(self) -> Sequence[NetworkInfo]:
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

    async def prune(self, labels: Sequence[str] = ()) -> Sequence[str]:
        """Removes networks without pods, but not the default one; the names removed. labels: "k" or "k=v"."""
        unused = [n for n in self._networks.table.values() if n.name != DEFAULT and not self._users(n.name)]
        gone = [network for network in unused if all(_labelled(network.labels, label) for label in labels)]
        for network in gone:
            await self._remove(network)
        return [network.name for network in gone]

    # ── the daemon's life ──

    async def recover(self, live: set[str]) -> Sequence[str]:
        """After a restart: removes what belongs to no live pod, makes the rest whole. What was done, in words."""
        notes = []
        for pod_id in [pod_id for pod_id in self._pods if pod_id not in live]:
            await self.detach(pod_id)
            notes.append(f"network of pod {pod_id} removed")
        for attached in self._pods.values():
            try:
                self._ports.hold(attached.pod_id, attached.pod_name, attached.ports)
            except DrupeError as error:
                notes.append(f"pod {attached.pod_name}: {error}")
        if self._networks.table:
            notes += await self._work(self._fabric.restore)
        for network in self._networks.table.values():
            try:
                await self._resolver.serve(network)
            except DrupeError as error:
                notes.append(str(error))
        return notes

    async def close(self) -> None:
        """Lets go of sockets and threads. Pods keep their network; `recover` of a later manager takes over."""
        self._ports.close()
        self._resolver.close()
        if self._worker:
            await self._work(self._fabric.close)
            self._worker.shutdown(wait=True)
            self._worker = None

    # ── within ──

    def _check_spec(self, spec: PodSpec) -> None:
        mode = spec.network.mode
        for mapping in spec.ports:
            check(mapping)
        if spec.network.policy is not None:
            check_policy(spec.network.policy)
            if mode != "bridge":
                raise self._no_policy(mode)
        if mode == "none" and spec.ports:
            raise InvalidArgument("a pod without a network cannot publish ports", stage="network")
        moved = [p for p in spec.ports if p.host_port not in (0, p.container_port)]
        if mode == "host" and moved:
            raise InvalidArgument(
                f"port {moved[0].container_port} of a pod in the host's network cannot become {moved[0].host_port}",
                stage="network",
                hint="it is reachable under its own number",
            )

    def _attach_plain(self, pod_id: str, pod_name: str, spec: PodSpec, netns: str) -> PodNetwork:
        """none and host: nothing to make."""
        ports = [
            PublishedPort(
                host_ip=p.host_ip, host_port=p.container_port, container_port=p.container_port, protocol=p.protocol
            )
            for p in spec.ports
        ]
        resolv = self._resolv() if spec.network.mode == "host" else ResolvConf()
        result = PodNetwork(
            mode=spec.network.mode,
            ports=ports,
            dns_servers=list(spec.dns.servers or resolv.servers),
            dns_searches=list(spec.dns.searches or resolv.searches),
        )
        attached = Attached(pod_id=pod_id, pod_name=pod_name, mode=spec.network.mode, netns=netns, result=result)
        self._record(attached)
        return result

    async def _attach_bridge(self, pod_id: str, pod_name: str, spec: PodSpec, netns: str) -> PodNetwork:
        if any(a.network == DEFAULT for a in spec.network.attachments) and DEFAULT not in self._networks.table:
            await self._make_default()
        attached = self._plan_bridge(pod_id, pod_name, spec, netns)
        try:
            fd = await self._keeper.netns_socket(netns, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE)
            await self._work(lambda: self._fabric.connect(attached, fd))
            for wire in attached.wires:
                await self._resolver.serve(self._networks.get(wire.network))
        except BaseException:
            await self.detach(pod_id)
            raise
        return attached.result

    def _plan_bridge(self, pod_id: str, pod_name: str, spec: PodSpec, netns: str) -> Attached:
        """Chooses addresses and ports and journals them; nothing is made yet. No await: it is atomic."""
        wires: list[Wire] = []
        attached = Attached(
            pod_id=pod_id,
            pod_name=pod_name,
            mode="bridge",
            netns=netns,
            names=_names(pod_name, spec),
            wires=wires,
            policy=spec.network.policy,
            servers=list(spec.dns.servers),
            result=PodNetwork(mode="bridge"),
        )
        for index, wanted in enumerate(spec.network.attachments):
            wires.append(self._networks.allocate(wanted, index, pod_id, [*self._pods.values(), attached]))
        self._check_wires(attached, spec)
        attached.ports = self._ports.reserve(pod_id, pod_name, spec.ports)
        attached.result = self._result(attached, spec)
        try:
            self._record(attached)
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
        if any(rule.dns for rule in (attached.policy.rules if attached.policy else ())) and not all(
            network.dns for network in used
        ):
            raise InvalidArgument("DNS rules need networks with a resolver (dns)", stage="network")

    def _result(self, attached: Attached, spec: PodSpec) -> PodNetwork:
        resolv = self._resolv()
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

    def _record(self, attached: Attached) -> None:
        self._records.put(PODS, attached.pod_id, plain(attached))
        self._pods[attached.pod_id] = attached
        self._directory.changed()

    def _attached(self, pod_id: str) -> Attached:
        if pod_id not in self._pods:
            raise NotFound(f"pod {pod_id} has no network", stage="network")
        return self._pods[pod_id]

    def _users(self, name: str) -> Sequence[Attached]:
        return [pod for pod in self._pods.values() if any(wire.network == name for wire in pod.wires)]

    def _described(self, network: NetworkInfo) -> NetworkInfo:
        data = plain(network) | {"pods": [pod.pod_id for pod in self._users(network.name)]}
        return decode(NetworkInfo, data, where="network")

    def _servers_of(self, attached: Attached) -> Sequence[str]:
        """Where a pod's questions go that no pod's name answers: its own servers, or the host's."""
        return attached.servers or self._resolv().servers

    async def _grant(self, attached: Attached, name: str, addresses: Sequence[Granted]) -> None:
        await self._work(lambda: self._fabric.grant(attached, name, addresses))

    def _resolv(self) -> ResolvConf:
        return read_resolv_conf(self._host.resolv_conf)

    @staticmethod
    def _no_policy(mode: str) -> DrupeError:
        return Unsupported(
            f"an egress policy cannot be enforced on network mode {mode}",
            feature="egress policy",
            stage="network",
            hint='policies are enforced on the host\'s side of a built-in network: use mode "bridge"',
        )

    async def _work(self, function: Callable[[], T]) -> T:
        """Runs kernel work in the one network thread, in order."""
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="network")
        return await asyncio.get_running_loop().run_in_executor(self._worker, function)


def _names(pod_name: str, spec: PodSpec) -> list[str]:
    """What others may look up: the pod's name, its host name, its containers' names; lower case, no doubles."""
    wanted = [pod_name, spec.hostname, *(container.name for container in spec.containers)]
    return list(dict.fromkeys(name.lower() for name in wanted if name))


def _labelled(labels: dict[str, str], wanted: str) -> bool:
    key, equals, value = wanted.partition("=")
    return key in labels and (not equals or labels[key] == value)
