"""The runtime: all pods of one node, found by name or id, made, run and deleted. Faces call this, decide nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import TypeVar

from drupe.errors import AlreadyExists, HelperFailed, InvalidArgument, InvalidState, NotFound
from drupe.runtime.choosing import ask, choose
from drupe.runtime.container import Container
from drupe.runtime.node import Node
from drupe.runtime.plan import free_name, joins_host_network, plan_container, plan_pod
from drupe.runtime.pod import Pod
from drupe.runtime.snapshots import Origin, Snapshots
from drupe.sandboxers.capabilities import for_platform, needed_by_addition
from drupe.sandboxers.contract import TaskExit
from drupe.spec.base import check_name
from drupe.spec.container import ContainerSpec
from drupe.spec.control import ListFilter
from drupe.spec.pod import PodSpec
from drupe.spec.status import Choice, ContainerStatus, PodStatus
from drupe.state.machine import State

T = TypeVar("T", Pod, Container)


class Core:
    """The pods of a node. Its methods are what every face (CLI, library, containerd, CRI) is built on."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.pods: dict[str, Pod] = {}
        self.snapshots = Snapshots(self)

    # -- finding ------------------------------------------------------------------------------------------------

    def pod(self, ref: str) -> Pod:
        """By id, name ("namespace/name" outside "default") or unique id prefix. NotFound, InvalidArgument. Pods that
        belong to others (containerd) are not found: `pods` has them, for those who serve them."""
        ours = [p for p in self.pods.values() if not p.spec.owner]
        if ref in self.pods and not self.pods[ref].spec.owner:
            return self.pods[ref]
        namespace, _, name = ref.rpartition("/")
        named = [p for p in ours if p.name == name and p.spec.namespace == (namespace or "default")]
        return named[0] if named else _by_prefix(ref, ours, "pod")

    def pod_of(self, ref: str) -> Pod:
        """A pod, or the pod of a container of that name. NotFound."""
        try:
            return self.pod(ref)
        except NotFound:
            return self.container(ref).pod

    def container(self, ref: str) -> Container:
        """By id, "pod/name", unique name, unique id prefix, or the name of a pod that holds just one."""
        ours = [p for p in self.pods.values() if not p.spec.owner]
        every = [c for p in ours for c in p.containers.values()]
        pod_ref, _, name = ref.rpartition("/")
        if pod_ref:
            every = list(self.pod(pod_ref).containers.values())
        named = [c for c in every if name in (c.name, c.id)]
        if len(named) == 1:
            return named[0]
        if len(named) > 1:
            pods = ", ".join(f"{c.pod.name}/{c.name}" for c in named)
            raise InvalidArgument(f"several containers are named {ref!r}", hint=f"say which: {pods}")
        alone = [p for p in ours if p.name == ref and len(p.containers) == 1]
        return next(iter(alone[0].containers.values())) if alone else _by_prefix(ref, every, "container")

    def list_pods(self, wanted: ListFilter) -> list[PodStatus]:
        found = [p for p in self._shown(wanted) if _matches(p.spec.labels, p.state, wanted)]
        if wanted.namespace is not None:
            found = [p for p in found if p.spec.namespace == wanted.namespace]
        return [p.record() for p in sorted(found, key=lambda p: p.status.created_at)]

    def list_containers(self, wanted: ListFilter) -> list[ContainerStatus]:
        pods = [self.pod(wanted.pod)] if wanted.pod is not None else self._shown(wanted)
        if wanted.namespace is not None:
            pods = [p for p in pods if p.spec.namespace == wanted.namespace]
        every = [c for p in pods for c in p.containers.values() if _matches(c.spec.labels, c.state, wanted)]
        return [c.status for c in sorted(every, key=lambda c: c.status.created_at)]

    def _shown(self, wanted: ListFilter) -> list[Pod]:
        return [p for p in self.pods.values() if wanted.all_owners or not p.spec.owner]

    # -- making -------------------------------------------------------------------------------------------------

    async def create_pod(
        self,
        spec: PodSpec,
        *,
        auto_stop: bool = False,
        in_one_go: bool = False,
        fds: Mapping[str, int] | None = None,
        trees: Mapping[str, int] | None = None,
        origin: Origin | None = None,
        held: bool = False,
    ) -> Pod:
        """Plan and make a pod with its containers; on failure nothing is left behind. fds: those of its start. trees:
        what its container's bundle came with. origin: what it goes on from. held: see SandboxConfig. in_one_go: see
        Pod."""
        await self._wait_name_free(spec)
        planned = plan_pod(spec, taken=lambda name: self._taken(name, spec))
        choice = await self.choose(planned)
        free_name(planned.name, taken=lambda name: self._taken(name, spec))  # a probe may have taken a second
        self.node.sandboxer(choice.kind)
        planned = self.node.storage.plan(planned)
        self._check_ids_free(str(planned.id), *(str(c.id) for c in planned.containers))
        pod = Pod(self.node, id_=str(planned.id), name=str(planned.name), spec=planned, choice=choice)
        pod.auto_stop, pod.origin, pod.held, pod.in_one_go = auto_stop, origin, held, in_one_go
        self.pods[pod.id] = pod
        try:
            async with pod.lock:
                await pod.create(fds, trees)
        except BaseException:
            self._drop_if_gone(pod)
            raise
        self._forget_when_gone(pod)
        return pod

    async def choose(self, spec: PodSpec) -> Choice:
        """The kind that a pod would get, and why; nothing is made. NotFound for a missing image, and as `choose`."""
        node = self.node
        node.require_open()
        images = node.storage.image_wishes(spec.containers)
        joined = ("host-network",) if joins_host_network(spec) else ()
        return await choose(ask(spec, images, config=node.config, kinds=node.kinds, probe=node.probe, joined=joined))

    async def run_pod(
        self,
        spec: PodSpec,
        fds: Mapping[str, int] | None = None,
        *,
        window: tuple[int, int] = (0, 0),
        origin: Origin | None = None,
    ) -> Pod:
        """Create and start; the pod ends with its last container. When the start fails nothing is left behind.
        fds, window (rows, columns): of the first container. origin: what it goes on from."""
        pod = await self.create_pod(spec, auto_stop=True, in_one_go=True, fds=fds, origin=origin)
        for first in list(pod.containers.values())[:1]:
            first.window = window
        try:
            async with pod.lock:
                await pod.start(fds)
        except BaseException:
            await self.delete_pod(pod, force=True)
            raise
        return pod

    async def delete_pod(self, pod: Pod, *, force: bool = False) -> None:
        """InvalidState for a running pod unless `force`. Idempotent."""
        async with pod.lock:
            if not force and not pod.is_over:
                pod.require_deletable()
            await pod.delete_now()
        self._drop_if_gone(pod)

    async def create_container(self, pod: Pod, spec: ContainerSpec, fds: Mapping[str, int] | None = None) -> Container:
        """One more container in a pod that is ready or running. fds: those of its start."""
        self.node.require_open()
        async with pod.lock:
            if pod.state not in (State.READY, State.RUNNING):
                raise InvalidState(f"cannot create a container: {pod.what} is {pod.state}, not ready or running")
            others = [c.spec for c in pod.containers.values()]
            planned = plan_container(spec, pod_name="", others=others)
            self.node.storage.check_images((planned,))
            features = needed_by_addition(planned, others)
            features |= {for_platform(image.os) for image in self.node.storage.image_wishes((planned,))}
            pod.check_allowed(f"container {planned.name}", features)
            self._check_ids_free(str(planned.id))
            return await pod.add_container(planned, fds)

    async def delete_container(self, container: Container, *, force: bool = False) -> None:
        """InvalidState for a running one unless `force`. The pod stays, unless `run` made it and it is now empty."""
        pod = container.pod
        async with pod.lock:
            if force:
                container.require_pod_awake("delete a container")
                await container.stop(force=True)
            container.require_deletable()
            notes = await container.delete()
            if notes:
                raise HelperFailed(f"{container.what} is not fully removed", stage="delete", cause="; ".join(notes))
            pod.containers.pop(container.id, None)
            if pod.auto_stop and not pod.containers:
                await pod.delete_now()
        self._drop_if_gone(pod)

    async def rename(self, container: Container, name: str) -> None:
        """Give a container another name; a pod that is called as its only container is, goes with it. AlreadyExists,
        InvalidArgument. Host names stay: they belong to what runs."""
        pod, old = container.pod, container.name
        async with pod.lock:
            if name == old:
                raise InvalidArgument(f"{container.what} has that name already")
            check_name(name, "container")
            if any(other.name == name for other in pod.containers.values()):
                raise AlreadyExists(f"{pod.what} has a container named {name!r} already")
            whole = pod.name == old and len(pod.containers) == 1
            if whole:
                free_name(name, taken=lambda wanted: self._taken(wanted, pod.spec))
                pod.rename(name)
            container.rename(name)
            await self.node.network.rename(pod.id, old, name, whole=whole)

    async def close(self) -> None:
        """Let go of everything; pods go on running under the keeper."""
        await self.node.close()
        for sandboxer in self.node.sandboxers.values():
            await sandboxer.retire()
            sandboxer.close()

    def process_ended(self, exit_: TaskExit) -> None:
        """Take the end of a process to its container or exec. Given to sandboxers as their `on_exit`."""
        for pod in self.pods.values():
            container = pod.containers.get(exit_.task)
            if container is not None:
                if exit_.exec_id:
                    container.execs.ended(exit_.exec_id, exit_.status)
                else:
                    container.ended(exit_.status)
                return

    def sandbox_failed(self, pod_id: str, cause: str) -> None:
        """A pod's sandbox was lost: its containers' ends are told by themselves, and the pod keeps the cause. Given to
        sandboxers as their `on_failed`."""
        pod = self.pods.get(pod_id)
        if pod is not None:
            self.node.spawn(self._fail(pod, cause), f"failure of {pod.what}")

    async def _fail(self, pod: Pod, cause: str) -> None:
        async with pod.lock:
            if pod.state in (State.RUNNING, State.PAUSED):
                await pod.lose(cause)

    # -- inner --------------------------------------------------------------------------------------------------

    def adopt(self, pod: Pod) -> None:
        """Take in a pod that recovery found alive."""
        self.pods[pod.id] = pod
        self._forget_when_gone(pod)

    def pod_removed_with(self, container_id: str) -> Pod | None:
        """The pod that goes when this container has ended (`--rm`), or is about to go."""
        pods = (pod for pod in self.pods.values() if pod.spec.remove)
        return next((pod for pod in pods if any(spec.id == container_id for spec in pod.spec.containers)), None)

    def images_in_use(self) -> set[str]:
        """Manifest digests that containers stand on."""
        running = {c.status.image_digest for p in self.pods.values() for c in p.containers.values()} - {""}
        return running | self.snapshots.images_in_use()

    def _taken(self, name: str, wanted: PodSpec) -> bool:
        same = (wanted.owner, wanted.namespace, name)
        return any((p.spec.owner, p.spec.namespace, p.name) == same for p in self.pods.values())

    def _check_ids_free(self, *ids: str) -> None:
        """AlreadyExists unless they are new: all that pods and containers have is kept by id."""
        used = set(self.pods)
        for pod in self.pods.values():
            used.update(pod.containers)
            if pod.state is State.CREATING:  # some of its containers are still to come
                used.update(str(spec.id) for spec in pod.spec.containers)
        for id_ in ids:
            if id_ in used:
                raise AlreadyExists(f"a pod or container with id {id_} exists")
            used.add(id_)

    async def _wait_name_free(self, spec: PodSpec) -> None:
        """A name whose pod is just being removed (`--rm`) becomes free in a moment: wait for it, briefly."""
        for pod in list(self.pods.values()):
            same = pod.name == spec.name and pod.spec.namespace == spec.namespace
            if same and pod.spec.remove and pod.last_exit() is not None:
                try:
                    await asyncio.wait_for(pod.gone.wait(), timeout=5.0)
                    await asyncio.sleep(0)
                except TimeoutError:
                    return

    def _forget_when_gone(self, pod: Pod) -> None:
        pod.on_gone = self._drop_if_gone

    def _drop_if_gone(self, pod: Pod) -> None:
        if pod.state is State.DELETED:
            self.pods.pop(pod.id, None)


def _by_prefix(ref: str, among: Iterable[T], what: str) -> T:
    found = [item for item in among if ref and item.id.startswith(ref)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InvalidArgument(f"{what} id {ref!r} is ambiguous: {len(found)} match", hint="give more digits")
    raise NotFound(f"no {what} {ref!r}", hint=f"drupe {'ps -a' if what == 'container' else 'pod ls'} lists them")


def _matches(labels: Mapping[str, str], state: State, wanted: ListFilter) -> bool:
    if wanted.states and state not in wanted.states:
        return False
    for label in wanted.labels:
        key, equals, value = label.partition("=")
        if key not in labels or (equals and labels[key] != value):
            return False
    return True
