"""A pod's life: the sandbox and the network made in steps, its containers inside, stopped and deleted as one.

`lock` serializes what changes the pod or its containers. Reads, kill, exec and attach take no lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from drupe.errors import DrupeError, HelperFailed
from drupe.resources.limits import apply_verified, end_and_remove
from drupe.resources.network.records import PodNetwork
from drupe.runtime import hostfiles
from drupe.runtime.container import Container
from drupe.runtime.plan import joins_host_network
from drupe.runtime.policy import level_of, refuse_forbidden, rules_for
from drupe.runtime.steps import Step, do_all, side_by_side, undo_all
from drupe.sandboxers.capabilities import needed, needed_by_update, refuse_unless_able
from drupe.sandboxers.contract import SandboxConfig, Sandboxer, SandboxInfo
from drupe.spec.base import plain
from drupe.spec.container import ContainerSpec
from drupe.spec.network import Attachment
from drupe.spec.pod import PodSpec, root_ids
from drupe.spec.resources import Resources, merged
from drupe.spec.status import Choice, ExitStatus, PodStatus, Stats
from drupe.state.machine import State, check_move, require

if TYPE_CHECKING:
    from drupe.runtime.node import Node
    from drupe.runtime.snapshots import Origin

_ENDS_WITHIN_S = 5.0  # what ran in a sandbox that was ended


class Pod:
    """One pod. auto_stop: stop when the last container ended (pods made by `run`). in_one_go: `run` makes and starts
    it, or nobody has it; what was only made waits for its start. held: see SandboxConfig."""

    def __init__(self, node: Node, *, id_: str, name: str, spec: PodSpec, choice: Choice) -> None:
        self.node = node
        self.id = id_
        self.name = name
        self.spec = spec
        self.kind = choice.kind
        self.state = State.CREATING
        self.auto_stop = self.in_one_go = False
        self.held = False
        self.origin: Origin | None = None  # what it goes on from at its first start
        self.deadline_at = 0.0  # when `timeout_s` ends it; 0: never
        self.containers: dict[str, Container] = {}
        self.info = SandboxInfo(netns="")
        self._deadline: asyncio.Task[None] | None = None
        self.lock = asyncio.Lock()
        self.gone = asyncio.Event()
        self.over = asyncio.Event()  # it is gone, or could not be removed
        self.on_gone: Callable[[Pod], None] | None = None
        self.hostname = spec.hostname or id_[:12]
        self.status = PodStatus(
            id=id_,
            name=name,
            namespace=spec.namespace,
            owner=spec.owner,
            state=self.state,
            sandbox=choice.kind,
            choice=choice,
            created_at=time.time(),
            hostname=self.hostname,
            labels=dict(spec.labels),
            annotations=dict(spec.annotations),
        )

    # -- where things are ---------------------------------------------------------------------------------------

    @property
    def what(self) -> str:
        return f"pod {self.name}"

    @property
    def cgroup(self) -> str:
        if self.spec.cgroup:
            return self.spec.cgroup
        parent = self.spec.cgroup_parent
        return f"{parent.rstrip('/')}/drupe-{self.id}" if parent else f"{self.node.paths.cgroup}/{self.id}"

    @property
    def sandboxer(self) -> Sandboxer:
        return self.node.sandboxer(self.kind)

    @property
    def config(self) -> SandboxConfig:
        directory = self.node.paths.pod(self.id)
        spec = msgspec.structs.replace(self.spec, containers=self._container_specs())
        return SandboxConfig(
            id=self.id, spec=spec, dir=directory, cgroup=self.cgroup, hostname=self.hostname, held=self.held
        )

    @property
    def is_over(self) -> bool:
        """Whether it was made to end with its containers, and they all have: it is stopped in a moment."""
        return self.auto_stop and not any(c.is_live or c.restart_at for c in self.containers.values())

    def record(self) -> PodStatus:
        """The pod as callers see it, its containers included."""
        self.status.containers = [container.status for container in self.containers.values()]
        return self.status

    def check_allowed(self, what: str, features: set[str]) -> None:
        """Raise Unsupported or PermissionDenied unless its kind and the node's policy allow the pod these features."""
        kind = self.node.kinds[self.kind]
        refuse_unless_able(kind.name, self.sandboxer.capabilities(), features)
        rules = rules_for(self.node.config.policy, namespace=self.spec.namespace, labels=self.spec.labels)
        refuse_forbidden(what, rules, level_of(kind.level, features), features)

    def _check_start(self) -> None:
        """A pod that was made before a rule is held to it when it starts again."""
        if self.node.config.policy:
            containers = tuple(container.spec for container in self.containers.values())
            features = needed(msgspec.structs.replace(self.spec, containers=containers))
            joined = {"host-network"} if joins_host_network(self.spec) else set()
            self.check_allowed(f"the start of {self.what}", features | joined)

    # -- life ---------------------------------------------------------------------------------------------------

    def steps(self) -> list[Step]:
        """How it is made and unmade, in order. Cgroup and /dev/shm are made in the time that the sandbox takes."""
        storage = self.node.storage
        sandbox, network = self._sandbox_steps()
        shm = Step("shm", lambda: storage.mount_shm(self), lambda: storage.umount_shm(self))
        cgroup = Step("cgroup", self._make_cgroup, self._remove_cgroup)
        return [
            Step("files", self._make_files, self._remove_files),
            side_by_side("boundary", (cgroup, sandbox, shm), self.status.timings_ms),
            network,
        ]

    def _sandbox_steps(self) -> list[Step]:
        return [
            Step("sandbox", self._create_sandbox, self._delete_sandbox),
            Step("network", self._attach_network, self._detach_network),
        ]

    async def create(self, fds: Mapping[str, int] | None = None, trees: Mapping[str, int] | None = None) -> None:
        """Make the sandbox, its network and its containers; nothing runs yet. All or nothing. fds: those that `start`
        will be given. trees: what the first container's bundle came with."""
        self.save()
        try:
            await do_all(self.steps(), advance=self._advance, timings_ms=self.status.timings_ms)
            for number, spec in enumerate(self.spec.containers):
                await self.add_container(spec, *((None, None) if number else (fds, trees)))
            self.set_state(State.READY)
        except BaseException:
            await self._abandon()
            raise
        self._event("create", **_told(self.status.choice))

    async def _abandon(self) -> None:
        """Remove a half-made pod; what cannot be removed leaves a failed pod that says so, and the first error
        counts."""
        try:
            await self.delete()
        except HelperFailed as error:
            self.node.note(f"{self.what}: {error}")

    async def add_container(
        self, spec: ContainerSpec, fds: Mapping[str, int] | None = None, trees: Mapping[str, int] | None = None
    ) -> Container:
        """Create one more container (already planned: its name and id are free). fds: of its first start. trees: what
        its bundle came with."""
        container = Container(self.node, self, id_=str(spec.id), name=str(spec.name), spec=spec)
        container.first_fds, container.trees = fds or {}, trees or {}
        self.containers[container.id] = container
        try:
            await container.create()
        except BaseException:
            del self.containers[container.id]
            raise
        finally:
            container.trees = {}
        return container

    async def start(self, fds: Mapping[str, int] | None = None) -> None:
        """Start the sandbox and every container, in order; `fds` belong to the first. When one container cannot
        start, those before it are stopped and the pod fails, keeping the cause."""
        check_move(self.what, self.state, State.RUNNING)
        require(self.what, self.state, State.READY, State.STOPPED, to="start it")
        self._check_start()
        if self.state is State.STOPPED:
            await self._make_files()
            await self._make_cgroup()
            await self.node.storage.mount_shm(self)
            await do_all(self._sandbox_steps(), advance=self._advance, timings_ms=self.status.timings_ms)
        self._advance("starting")
        await self._start_sandbox()
        self.deadline_at = time.time() + self.spec.timeout_s if self.spec.timeout_s else 0.0
        self.set_state(State.RUNNING, phase="containers")
        self._event("start")
        self.watch_deadline()
        await self.start_containers(fds)

    async def _start_sandbox(self) -> None:
        origin, self.origin = self.origin, None
        if origin is None:
            await self.sandboxer.start(self.id)
        else:
            await self.sandboxer.restore(self.id, origin.memory, origin.ids_of(self))
        self.note_phases()

    def note_phases(self) -> None:
        """What the kind says of how long parts of the last start took."""
        phases = self.sandboxer.phases(self.id)
        self.status.timings_ms |= {f"start {name}": took for name, took in phases.items()}

    async def start_containers(self, fds: Mapping[str, int] | None = None) -> None:
        """Start, in order, those that are not running. The journal's phase is `containers` until all are."""
        try:
            for number, container in enumerate(list(self.containers.values())):
                if not container.is_live:
                    await container.start(fds if number == 0 else None)
        except DrupeError as error:
            await self._start_failed(error)
            raise
        self._advance("")

    async def stop(self, *, timeout_s: float | None = None, force: bool = False) -> None:
        """Stop all containers at once, then the sandbox and its network. No-op when stopped."""
        if self.state in (State.STOPPED, State.FAILED, State.DELETED):
            return
        self._drop_deadline()
        self._advance("stopping")
        if self.state is State.PAUSED:
            await self.thaw()
        stops = (c.stop(timeout_s=timeout_s, force=force) for c in self.containers.values())
        results = await asyncio.gather(*stops, return_exceptions=True)
        await self._leave_sandbox(deadline_s=timeout_s or 10.0)
        if errors := [result for result in results if isinstance(result, BaseException)]:
            await self._ended_with_sandbox(errors[0])
        self.set_state(State.STOPPED)
        self._event("stop")

    async def _ended_with_sandbox(self, error: BaseException) -> None:
        """What could not be stopped has ended with its sandbox, if that was one with an end of its own. Raises `error`
        where something still lives."""
        waiting = [asyncio.ensure_future(c.wait()) for c in self.containers.values() if c.is_live]
        if waiting:
            _, living = await asyncio.wait(waiting, timeout=_ENDS_WITHIN_S)
            for one in waiting:
                one.cancel()
            if living:
                raise error

    async def pause(self) -> None:
        """Freeze the whole pod; every running container becomes paused."""
        check_move(self.what, self.state, State.PAUSED)
        self._advance("pausing")
        await self.sandboxer.pause(self.id)
        for container in self.containers.values():
            if container.state is State.RUNNING:
                container.set_state(State.PAUSED)
        self.set_state(State.PAUSED)
        self._event("pause")

    async def resume(self) -> None:
        require(self.what, self.state, State.PAUSED, to="resume it")
        self._advance("resuming")
        await self.thaw()
        self.set_state(State.RUNNING)
        self._event("unpause")

    async def update(self, resources: Resources) -> None:
        """Change the limits of the pod as a whole, verified."""
        require(self.what, self.state, State.READY, State.RUNNING, State.PAUSED, to="update it")
        self.check_allowed(f"an update of {self.what}", needed_by_update(resources))
        self.node.cgroups.check(resources)
        spec = msgspec.structs.replace(self.spec, resources=merged(self.spec.resources, resources))
        wanted = msgspec.structs.replace(spec, containers=self._container_specs())
        self.status.notes = list(await self.sandboxer.update(self.id, wanted, resources, self._apply))
        self.spec = spec
        self.save()
        self._event("update")

    async def join_network(self, wanted: Attachment) -> None:
        """One more network; what runs sees another interface. It has it after a restart too."""
        require(self.what, self.state, State.READY, State.RUNNING, to="connect it to a network")
        self.check_allowed(f"a change of networks of {self.what}", {"network-change"})
        attached = await self.node.network.join(self.id, wanted, self.spec)
        try:
            await self.sandboxer.network_changed(self.id)
        except BaseException:
            await self.node.network.leave(self.id, wanted.network)
            raise
        interface = attached.endpoints[-1].interface
        one = msgspec.structs.replace(wanted, interface=interface)
        self._networks_changed(attached, (*self.spec.network.attachments, one))
        self._event("connect", network=wanted.network)

    async def leave_network(self, name: str) -> None:
        """The interface goes with it."""
        require(self.what, self.state, State.READY, State.RUNNING, to="disconnect it from a network")
        self.check_allowed(f"a change of networks of {self.what}", {"network-change"})
        attached = await self.node.network.leave(self.id, name)
        await self.sandboxer.network_changed(self.id)
        kept = [one for one in self.spec.network.attachments if one.network != name]
        self._networks_changed(attached, tuple(kept))
        self._event("disconnect", network=name)

    def _networks_changed(self, attached: PodNetwork, attachments: tuple[Attachment, ...]) -> None:
        names = {endpoint.network: endpoint.interface for endpoint in attached.endpoints}
        named = (msgspec.structs.replace(one, interface=names.get(one.network)) for one in attachments)
        network = msgspec.structs.replace(self.spec.network, attachments=tuple(named))
        self.spec = msgspec.structs.replace(self.spec, network=network)
        self.status.endpoints = attached.endpoints
        hostfiles.write(self.node.paths.pod(self.id), self.hostname, self.spec, attached)
        self.save(self.status.phase)

    def _apply(self, limits: Resources) -> None:
        apply_verified(self.node.cgroups, self.cgroup, limits)

    def _container_specs(self) -> tuple[ContainerSpec, ...]:
        """As they are now; before they are made, as they are to be."""
        return tuple(container.spec for container in self.containers.values()) or self.spec.containers

    async def measured(self) -> PodStatus:
        """Its record, with what its machine is and costs now."""
        machine = await self.sandboxer.measure(self.id) if self.state is State.RUNNING else None
        return msgspec.structs.replace(self.record(), machine=machine)

    async def stats(self) -> Stats:
        """Counters of the whole pod."""
        return await self.with_network(await self.sandboxer.stats(self.id))

    async def with_network(self, stats: Stats) -> Stats:
        """Add the pod's network counters."""
        counters = await self.node.network.stats(self.id)
        if counters is not None:
            stats.net_rx_bytes, stats.net_tx_bytes = counters.rx_bytes, counters.tx_bytes
            stats.net_rx_packets, stats.net_tx_packets = counters.rx_packets, counters.tx_packets
        return stats

    async def delete(self) -> None:
        """Remove the pod and all of its containers. Idempotent; the caller has checked `require_deletable`.
        HelperFailed names what could not be removed; the pod is then kept as failed, to be deleted again."""
        if self.state is State.DELETED:
            return
        self._advance("deleting")
        if self.state in (State.PAUSED, State.FAILED):  # what is frozen cannot die
            with contextlib.suppress(DrupeError):
                await self.thaw()
        notes = []
        for container in list(self.containers.values()):
            left = await container.delete()
            if not left:
                del self.containers[container.id]
            notes += left
        if not notes:
            notes = await undo_all(self.steps())
        if notes:
            self.fail("deleting", "; ".join(notes))
            raise HelperFailed(f"{self.what} is not fully removed", stage="delete", cause="; ".join(notes))
        self.set_state(State.DELETED, save=False)
        self.node.journal.remove("pod", self.id)
        self.gone.set()
        self.over.set()
        if self.on_gone is not None:
            self.on_gone(self)
        self._event("destroy")

    async def delete_now(self) -> None:
        """Delete whatever the state: what lives is killed first."""
        try:
            await self.stop(force=True)
            await self.delete()
        finally:
            self.over.set()

    def require_deletable(self) -> None:
        """Raise InvalidTransition for a running pod: all other states may be deleted (virtcontainers' rule)."""
        if self.state is State.RUNNING:
            check_move(self.what, self.state, State.DELETED)

    # -- what happens to it -------------------------------------------------------------------------------------

    def container_started(self, container: Container) -> None:
        self.note_phases()
        if container.spec.health is not None and container.spec.health.argv:
            from drupe.runtime.health import watch_health

            self.node.spawn(watch_health(container), f"health of {container.what}")

    def watch_deadline(self) -> None:
        """Have the pod ended when its time is up, if it has a limit."""
        from drupe.runtime.supervision import enforce_deadline

        if self.deadline_at:
            self._deadline = self.node.spawn(enforce_deadline(self), f"deadline of {self.what}")

    def container_ended(self, container: Container) -> None:
        """Called by the event loop when a container has ended: what follows runs in the background."""
        from drupe.runtime.supervision import after_end

        self.note_phases()
        self.node.spawn(after_end(container), f"after the end of {container.what}")

    def fail(self, phase: str, cause: str) -> None:
        """Enter `failed`; cause and phase stay to be inspected."""
        self.status.cause = cause
        self.set_state(State.FAILED, phase=phase)
        if phase == "deleting":
            self.over.set()
        self._event("fail", cause=cause)

    async def lose(self, cause: str) -> None:
        """Its sandbox has ended under it: what is left is taken down, and it fails."""
        self._drop_deadline()
        for container in self.containers.values():
            if container.is_live:
                container.ended(ExitStatus(code=255, at=time.time(), reason="Lost", message=cause))
        await self._leave_sandbox(deadline_s=1.0)
        self.fail("running", cause)

    def last_exit(self) -> ExitStatus | None:
        """The end of the first container that failed, else of the first; None while any lives."""
        if any(c.is_live for c in self.containers.values()):
            return None
        exits = [c.status.exit for c in self.containers.values() if c.status.exit is not None]
        return next((e for e in exits if e.code), exits[0] if exits else None)

    def set_state(self, state: State, *, save: bool = True, phase: str = "") -> None:
        self.state = state
        self.status.state = state
        self.status.finished_at = time.time() if state in (State.STOPPED, State.FAILED, State.DELETED) else 0.0
        if save:
            self.save(phase)

    def save(self, phase: str = "") -> None:
        self.status.phase = phase
        self.status.containers = []
        data = {"spec": plain(_without_containers(self.spec)), "status": plain(self.status), "kind": self.kind}
        data |= {"netns": self.info.netns, "namespaces": self.info.namespaces}
        data |= {"auto_stop": self.auto_stop, "deadline_at": self.deadline_at}
        data |= {"held": self.held, "init_pid": self.info.pid, "in_one_go": self.in_one_go}
        self.node.journal.put("pod", self.id, state=self.state, phase=phase, data=data)

    # -- steps --------------------------------------------------------------------------------------------------

    async def _make_files(self) -> None:
        self.make_directory(self.node.paths.pod(self.id))

    def make_directory(self, path: Path) -> None:
        """A private directory that root *inside* the pod's user namespace can enter while it sets up its mounts."""
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        uid0, gid0 = root_ids(self.spec)
        if uid0:
            os.chown(path, uid0, gid0)

    async def _remove_files(self) -> None:
        await self.node.storage.remove_tree(self.node.paths.pod(self.id))

    async def _make_cgroup(self) -> None:
        await asyncio.sleep(0)  # what waits for others is begun first
        limits = self.sandboxer.host_limits(self.spec, self.spec.resources)
        self.node.cgroups.create(self.cgroup, limits)

    async def _remove_cgroup(self) -> None:
        await asyncio.to_thread(end_and_remove, self.node.cgroups, self.cgroup)

    async def _create_sandbox(self) -> None:
        self.info = await self.sandboxer.create(self.config)
        self.status.netns = self.info.netns

    async def _delete_sandbox(self) -> None:
        await self.sandboxer.delete(self.id)

    async def _attach_network(self) -> None:
        attached = await self.node.network.attach(self.id, self.name, self.spec, self.info.netns)
        self.status.endpoints = attached.endpoints
        self.status.ports = attached.ports
        hostfiles.write(self.node.paths.pod(self.id), self.hostname, self.spec, attached)

    async def _detach_network(self) -> None:
        await self.node.network.detach(self.id)
        self.status.endpoints = []
        self.status.ports = []

    async def _leave_sandbox(self, *, deadline_s: float) -> None:
        await self.sandboxer.stop(self.id, deadline_s=deadline_s)
        notes = await undo_all(self._sandbox_steps())
        for note in notes:
            self.node.note(f"{self.what}: {note}")

    async def _start_failed(self, error: DrupeError) -> None:
        running = [c for c in self.containers.values() if c.is_live]
        await asyncio.gather(*(c.stop(force=True) for c in running), return_exceptions=True)
        await self._leave_sandbox(deadline_s=10.0)
        self.fail("starting", str(error))

    def _drop_deadline(self) -> None:
        """The deadline's own task calls stop too: it must not cancel itself."""
        if self._deadline is not None and self._deadline is not asyncio.current_task():
            self._deadline.cancel()
        self._deadline = None

    async def thaw(self) -> None:
        """Let everything in it run again, whatever was paused by whom."""
        await self.sandboxer.resume(self.id)
        for container in self.containers.values():
            if container.state is State.PAUSED:
                await container.tasks.resume(container.id)
                container.moved(State.PAUSED, State.RUNNING)

    async def thaw_for(self, container: Container) -> None:
        """Let a killed container die. A pod that was paused as a whole goes on with that: nothing else lives in it."""
        if self.state is not State.PAUSED:
            await container.tasks.resume(container.id)
            return
        await self.thaw()
        if self.state is State.PAUSED:
            self.set_state(State.RUNNING)

    def others_live(self, container: Container) -> bool:
        """Whether a container beside this one has a process."""
        return any(c.is_live for c in self.containers.values() if c is not container)

    @property
    def is_kept_up(self) -> bool:
        """Whether it has a container that lives or is about to."""
        return any(c.is_live or c.restart_at or c.state is State.READY for c in self.containers.values())

    def rename(self, name: str) -> None:
        """The caller has seen to it that the name is free."""
        self.spec = msgspec.structs.replace(self.spec, name=name)
        self.name = self.status.name = name
        self.save(self.status.phase)

    def _advance(self, phase: str) -> None:
        self.status.phase = phase
        self.node.journal.advance("pod", self.id, phase=phase)

    def _event(self, action: str, **attributes: str) -> None:
        self.node.events.publish("pod", action, self.id, name=self.name, **attributes)


def _told(choice: Choice | None) -> dict[str, str]:
    """The choice of the kind as attributes of an event."""
    if choice is None:
        return {}
    passed_over = "; ".join(f"{one.kind}: {one.reason}" for one in choice.passed_over)
    told = {"sandbox": choice.kind, "level": choice.level, "asked": choice.asked, "by": choice.by}
    return told | ({"passed_over": passed_over} if passed_over else {})


def _without_containers(spec: PodSpec) -> PodSpec:
    """Containers have rows of their own."""
    return msgspec.structs.replace(spec, containers=()) if spec.containers else spec
