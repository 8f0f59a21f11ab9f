"""The network of pods: attach, detach, check, recover. One door for all modes and for the built-in networks."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from drupe.errors import AlreadyExists, DrupeError, InvalidArgument, InvalidState, NotFound, Unsupported
from drupe.resources.network import cni, cnm, scan
from drupe.resources.network.builtin import BuiltIn, wants_ipv6
from drupe.resources.network.policy import check_policy
from drupe.resources.network.ports import Ports, check
from drupe.resources.network.records import PODS, Attached, Counters, HostNet, Keeper, PodNetwork, Records
from drupe.resources.network.resolvconf import ResolvConf, read_resolv_conf
from drupe.spec.base import decode, plain
from drupe.spec.control import NetworkCreate, NetworkInfo
from drupe.spec.network import Attachment, EgressPolicy
from drupe.spec.pod import PodSpec
from drupe.spec.status import Endpoint, PublishedPort

Names = list[str]  # the class has a method `list`
Infos = list[NetworkInfo]
_MAIN_ROOT = Path("/run/drupe")


class NetworkManager:
    """Networks of one runtime root. run: its run directory, whose path sets its names apart from another root's.

    Everything is journalled in `records` before it is made and has a name that follows from the pod's id, so that
    `detach` can undo what a crash left half made.
    """

    def __init__(self, *, run: Path, records: Records, keeper: Keeper, host: HostNet | None = None) -> None:
        tag = "" if run == _MAIN_ROOT else sha256(str(run.absolute()).encode()).hexdigest()[:6]
        self._records = records
        self._keeper = keeper
        self._host = host or HostNet()
        known = records.all(PODS)
        self._pods = {key: decode(Attached, data, where=f"network of pod {key}") for key, data in known.items()}
        self._ports = Ports()
        self._builtin = BuiltIn(
            tag,
            records=records,
            keeper=keeper,
            host=self._host,
            pods=self._pods,
            ports=self._ports,
            journal=self._record,
        )

    # ── pods ──

    async def attach(self, pod_id: str, pod_name: str, spec: PodSpec, netns: str) -> PodNetwork:
        """Gives a pod its network. netns: its namespace as the keeper sees it ("" for the host's).

        All or nothing. Raises InvalidArgument, NotFound (network, plug-in), AlreadyExists (port, address), Unsupported,
        ResourceExhausted, HelperFailed (a plug-in's own words).
        """
        if pod_id in self._pods:
            raise AlreadyExists(f"pod {pod_name} has a network already", stage="network")
        _check_spec(spec)
        try:
            match spec.network.mode:
                case "bridge":
                    return await self._builtin.attach(pod_id, pod_name, spec, netns)
                case "cni":
                    return await self._attach_cni(pod_id, pod_name, spec, netns)
                case "path" | "cnm":
                    return await self._attach_given(pod_id, pod_name, spec, netns)
                case "none" | "host":
                    return self._attach_plain(pod_id, pod_name, spec, netns)
        except BaseException as error:
            await self._undo(pod_id, error)
            raise

    async def detach(self, pod_id: str) -> None:
        """Undoes an attach, whole or half made, whether or not the namespace still exists. Idempotent.

        Raises HelperFailed when a CNI plug-in refuses its DEL; the record stays, so that it can be tried again.
        """
        attached = self._pods.get(pod_id)
        if attached is None:
            return
        if attached.wires:
            await self._builtin.detach(attached)
        if attached.cni:
            await cni.delete(self._keeper, attached, decode(cni.Chain, attached.cni, where="CNI record"))
        self._ports.release(pod_id)
        self._records.delete(PODS, pod_id)
        self._pods.pop(pod_id, None)
        self._builtin.directory.changed()

    async def check(self, pod_id: str) -> None:
        """Raises InvalidState saying what is missing of a pod's network, NotFound for a pod without one."""
        attached = self._attached(pod_id)
        if attached.wires:
            await self._builtin.check(attached)
        elif attached.cni:
            await cni.check(self._keeper, attached, decode(cni.Chain, attached.cni, where="CNI record"))
        elif attached.mode in ("path", "cnm"):
            gone = {e.interface for e in attached.result.endpoints} - {
                e.interface for e in await scan.scan(self._keeper, attached.netns)
            }
            if gone:
                raise InvalidState(f"pod {attached.pod_name} lost {', '.join(sorted(gone))}", stage="network")

    async def stats(self, pod_id: str) -> Counters | None:
        """What the pod's interfaces carried; None when it has none of its own."""
        attached = self._pods.get(pod_id)
        if attached is None or attached.mode in ("none", "host"):
            return None
        if attached.wires:
            return await self._builtin.counters(attached)
        return await scan.counters(self._keeper, attached.netns)

    async def scan(self, pod_id: str) -> Sequence[Endpoint]:
        """The interfaces that are in the pod's namespace now, whoever made them."""
        return await scan.scan(self._keeper, self._attached(pod_id).netns)

    async def rename(self, pod_id: str, old: str, new: str, *, whole: bool) -> None:
        """A container has another name, and so has its pod, if `whole`: others look it up by that from now on."""
        attached = self._pods.get(pod_id)
        if attached is None:
            return
        if whole:
            attached.pod_name = new
        attached.names = [new.lower() if name == old.lower() else name for name in attached.names]
        self._record(attached)

    async def update_policy(self, pod_id: str, policy: EgressPolicy | None) -> None:
        """Replaces a pod's egress policy in one step; connections that are established go on.

        Raises InvalidArgument, Unsupported (only built-in networks have policies), NotFound.
        """
        attached = self._attached(pod_id)
        if not attached.wires:
            raise _no_policy(attached.mode)
        await self._builtin.govern(attached, policy and check_policy(policy))

    async def join(self, pod_id: str, wanted: Attachment, spec: PodSpec) -> PodNetwork:
        """One more built-in network for a pod that is on one.

        Raises Unsupported (other modes), NotFound, AlreadyExists (a member, an address, an interface's name).
        """
        attached = self._attached(pod_id)
        await self._builtin.join(attached, wanted, ipv6=wants_ipv6(spec))
        return attached.result

    async def leave(self, pod_id: str, name: str) -> PodNetwork:
        """Raises NotFound for a pod that is not on it, InvalidState when it cannot be without it."""
        attached = self._attached(pod_id)
        await self._builtin.leave(attached, name)
        return attached.result

    # ── built-in networks ──

    async def create(self, wanted: NetworkCreate) -> NetworkInfo:
        """Makes a network. Raises AlreadyExists, InvalidArgument, ResourceExhausted, PermissionDenied."""
        return await self._builtin.create(wanted)

    async def list(self) -> Infos:
        """All networks, with the ids of their pods, by name."""
        return await self._builtin.list()

    async def inspect(self, name: str) -> NetworkInfo:
        """Raises NotFound."""
        return await self._builtin.inspect(name)

    async def delete(self, name: str) -> None:
        """Raises NotFound, or InvalidState naming the pods that use it."""
        await self._builtin.delete(name)

    async def prune(self, labels: Sequence[str] = ()) -> Names:
        """Removes networks without pods, but not the default one; the names removed. labels: "k" or "k=v"."""
        return await self._builtin.prune(labels)

    # ── the daemon's life ──

    async def recover(self, live: set[str]) -> Names:
        """After a restart: removes what belongs to no live pod, makes the rest whole. What was done, in words."""
        notes: Names = []
        for pod_id in [pod_id for pod_id in self._pods if pod_id not in live]:
            try:
                await self.detach(pod_id)
                notes.append(f"network of pod {pod_id} removed")
            except DrupeError as error:
                notes.append(f"network of pod {pod_id} not removed: {error}")
        for attached in self._pods.values():
            try:
                self._ports.hold(attached.pod_id, attached.pod_name, attached.ports)
            except DrupeError as error:
                notes.append(f"pod {attached.pod_name}: {error}")
        return [*notes, *(await self._builtin.recover())]

    async def close(self) -> None:
        """Lets go of sockets and threads. Pods keep their network; `recover` of a later manager takes over."""
        self._ports.close()
        await self._builtin.close()

    # ── modes ──

    def _attach_plain(self, pod_id: str, pod_name: str, spec: PodSpec, netns: str) -> PodNetwork:
        """none and host: nothing to make."""
        ports = [
            PublishedPort(
                host_ip=p.host_ip, host_port=p.container_port, container_port=p.container_port, protocol=p.protocol
            )
            for p in spec.ports
        ]
        resolv = read_resolv_conf(self._host.resolv_conf) if spec.network.mode == "host" else ResolvConf()
        result = PodNetwork(
            mode=spec.network.mode,
            ports=ports,
            dns_servers=list(spec.dns.servers or resolv.servers),
            dns_searches=list(spec.dns.searches or resolv.searches),
        )
        attached = Attached(pod_id=pod_id, pod_name=pod_name, mode=spec.network.mode, netns=netns, result=result)
        self._record(attached)
        return result

    async def _attach_given(self, pod_id: str, pod_name: str, spec: PodSpec, netns: str) -> PodNetwork:
        """path: a namespace that others filled. cnm: one that the pod's prestart hooks fill now."""
        mode = spec.network.mode
        netns = netns or spec.network.netns_path
        result = PodNetwork(mode=mode)
        attached = Attached(pod_id=pod_id, pod_name=pod_name, mode=mode, netns=netns, result=result)
        if mode == "cnm":
            await cnm.run_hooks(self._keeper, spec.hooks.prestart, pod_id=pod_id, netns=netns)
        result.endpoints = await scan.scan(self._keeper, netns)
        self._name_servers(result, spec)
        self._record(attached)
        return result

    async def _attach_cni(self, pod_id: str, pod_name: str, spec: PodSpec, netns: str) -> PodNetwork:
        """Journalled twice: before ADD, so that a crash leaves enough for DEL, and with the result."""
        result = PodNetwork(mode="cni")
        attached = Attached(pod_id=pod_id, pod_name=pod_name, mode="cni", netns=netns, result=result)
        attached.ports = result.ports = self._ports.reserve(pod_id, pod_name, spec.ports)
        try:
            chain = cni.plan(pod_id, pod_name, spec, attached.ports)
            attached.cni = plain(chain)
            self._record(attached)
        except BaseException:
            self._ports.release(pod_id)
            raise
        await cni.add(self._keeper, attached, chain)
        attached.cni = plain(chain)
        result.endpoints = cni.endpoints(chain) or await scan.scan(self._keeper, netns)
        self._name_servers(result, spec, *cni.dns(chain))
        self._record(attached)
        return result

    # ── within ──

    async def _undo(self, pod_id: str, error: BaseException) -> None:
        """Detaches what a failed attach journalled; that this fails too is told beside the first error."""
        try:
            await self.detach(pod_id)
        except DrupeError as second:
            error.add_note(f"undo: {second}")

    def _name_servers(
        self, result: PodNetwork, spec: PodSpec, servers: Sequence[str] = (), searches: Sequence[str] = ()
    ) -> None:
        """The pod's own wishes, then what its network said, then the host's."""
        host = read_resolv_conf(self._host.resolv_conf)
        result.dns_servers = [*(spec.dns.servers or servers or host.servers)]
        result.dns_searches = [*(spec.dns.searches or searches or host.searches)]

    def _record(self, attached: Attached) -> None:
        self._records.put(PODS, attached.pod_id, plain(attached))
        self._pods[attached.pod_id] = attached
        self._builtin.directory.changed()

    def _attached(self, pod_id: str) -> Attached:
        if pod_id not in self._pods:
            raise NotFound(f"pod {pod_id} has no network", stage="network")
        return self._pods[pod_id]


def _check_spec(spec: PodSpec) -> None:
    """Refuses, before anything is made, what the mode cannot do."""
    mode = spec.network.mode
    for mapping in spec.ports:
        check(mapping)
    if spec.network.policy is not None:
        check_policy(spec.network.policy)
        if mode != "bridge":
            raise _no_policy(mode)
    if mode in ("none", "path", "cnm") and spec.ports:
        raise Unsupported(
            f"network mode {mode} cannot publish ports",
            stage="network",
            hint='use mode "bridge", or "cni" with the portmap plug-in',
        )
    moved = [p for p in spec.ports if p.host_port not in (0, p.container_port)]
    if mode == "host" and moved:
        raise InvalidArgument(
            f"port {moved[0].container_port} of a pod in the host's network cannot become {moved[0].host_port}",
            stage="network",
            hint="it is reachable under its own number",
        )
    if mode == "cni" and len(spec.network.attachments) > 1:
        raise Unsupported("a CNI pod has one attachment", stage="network", hint="use a chain or a meta plug-in")
    if mode == "path" and not spec.network.netns_path:
        raise InvalidArgument('network mode "path" needs netns_path', stage="network")


def _no_policy(mode: str) -> Unsupported:
    return Unsupported(
        f"an egress policy cannot be enforced on network mode {mode}",
        feature="egress policy",
        stage="network",
        hint='policies are enforced on the host\'s side of a built-in network: use mode "bridge"',
    )
