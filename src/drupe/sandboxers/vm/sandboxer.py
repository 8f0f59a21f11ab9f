"""The vm kind: a machine for each pod, its containers made there by the guest's agent."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import msgspec

from drupe import guest as guests
from drupe.errors import DrupeError, NotFound, Unsupported
from drupe.hypervisors.contract import Hypervisor
from drupe.images.store import ImageStore
from drupe.keeper.client import Keeper
from drupe.keeper.records import Exit
from drupe.resources.cgroups import Cgroups
from drupe.sandboxers.contract import OnExit, SandboxConfig, Sandboxer, SandboxInfo, TaskState
from drupe.sandboxers.kept.namespaces import drop_namespaces, make_namespaces, network_types
from drupe.sandboxers.kinds import Means
from drupe.sandboxers.vm import hardware
from drupe.sandboxers.vm.able import ABLE
from drupe.sandboxers.vm.accelerator import choose_accelerator
from drupe.sandboxers.vm.console import last_words, named_logs, why
from drupe.sandboxers.vm.dialling import Dialler
from drupe.sandboxers.vm.machines import Machines
from drupe.sandboxers.vm.measuring import describe
from drupe.sandboxers.vm.options import VmOptions
from drupe.sandboxers.vm.plugging import Interfaces, following
from drupe.sandboxers.vm.pods import VmPod
from drupe.sandboxers.vm.records import SHARE, VMM, PodRecord
from drupe.sandboxers.vm.sizing import host_limits, memory_of, plan
from drupe.sandboxers.vm.snapshots import Saver, guests_of, require_saveable
from drupe.sandboxers.vm.tasks import VmTasks
from drupe.sandboxers.vm.watching import Watch, lives
from drupe.spec.base import Spec
from drupe.spec.control import Pruned
from drupe.spec.pod import PodSpec
from drupe.spec.resources import Resources
from drupe.spec.status import MachineInfo, Stats
from drupe.spec.template import TemplateInfo

_FOLLOWS_WITHIN_S = 0.5
_LOST = {VMM: "the virtual machine monitor ended", SHARE: "virtiofsd ended"}


class VmSandboxer(Sandboxer):
    """Sandboxes that are machines."""

    kind = "vm"
    dials = True

    def __init__(
        self,
        *,
        keeper: Keeper,
        cgroups: Cgroups,
        hypervisor: Hypervisor,
        root: Path,
        images: ImageStore,
        on_exit: OnExit,
        options: VmOptions,
    ) -> None:
        self._keeper = keeper
        self._cgroups = cgroups
        self._root = root
        self._options = options
        self._configs: dict[str, SandboxConfig] = {}
        self._machines = Machines(
            keeper=keeper, cgroups=cgroups, hypervisor=hypervisor, root=root, images=images, options=options
        )
        self._machines.on_begun = self._watch
        self._machines.starter.on_answered = self._listen
        self._machines.on_ready = self._follow
        self._machines.on_nonsense = self._lost
        self._saver = Saver(keeper, self._machines.starter)
        self._tasks = VmTasks(keeper=keeper, machines=self._machines, cgroups=cgroups, on_exit=on_exit, options=options)
        self._interfaces = Interfaces(keeper)
        self._dialler = Dialler()
        self._watches: dict[str, Watch] = {}
        self._following: dict[str, list[asyncio.Task[None]]] = {}
        self._templating = asyncio.Lock()
        keeper.on_exit(self._exited)

    def capabilities(self) -> Mapping[str, str]:
        return ABLE

    def tasks(self) -> VmTasks:
        return self._tasks

    def close(self) -> None:
        for pod in self._machines:
            self._unfollow(pod)
        self._dialler.close()
        self._tasks.close()
        self._closing = asyncio.ensure_future(self._machines.close())

    def host_limits(self, spec: PodSpec, resources: Resources) -> Resources:
        return host_limits(resources, memory_of(spec, self._options), self._options)

    # -- sandboxes --------------------------------------------------------------------------------------------------

    async def create(self, config: SandboxConfig) -> SandboxInfo:
        """Its network namespace and its shared directory; the machine itself starts when its addresses are known."""
        record = await self._plan(config)
        self._configs[config.id] = config
        info = await self._make_network(config)
        record.netns = info.netns
        if not record.shares:
            record.images = [one.image for one in config.spec.containers if one.image]
        pod = self._machines.add(record)
        await hardware.take(record, config.spec)
        if record.shares:
            await pod.share.make()
        return SandboxInfo(netns=info.netns, pid=info.pid)

    async def _plan(self, config: SandboxConfig) -> PodRecord:
        """The machine for a pod, without its network."""
        guest = guests.find(self._root, self._options.guest)
        native = self._options.hypervisor == "uml"
        accelerator = "native" if native else await choose_accelerator(self._keeper)
        return plan(config, self._options, guest, accelerator, self._machines.hypervisors.wished(config.spec))

    async def make_template(self, spec: PodSpec, cgroup: str) -> TemplateInfo:
        first = self._machines.hypervisors.first
        if first.name != "qemu" or first.abilities_of(self._options.machine_type)["save"].startswith("no"):
            raise Unsupported("templates are of QEMU's machines that can be saved", kind="vm", feature="template")
        directory = self._root / "vm" / "templates"
        like = SandboxConfig(id="template", spec=spec, dir=directory, cgroup=cgroup, hostname="")
        async with self._templating:
            return await self._machines.make_template(await self._plan(like))

    def templates(self) -> list[TemplateInfo]:
        return list(self._machines.starter.templates)

    def remove_template(self, template_id: str) -> None:
        self._machines.starter.templates.remove(template_id)

    async def prune_templates(self, *, everything: bool) -> Pruned:
        basis, templates = "", self._machines.starter.templates
        like = SandboxConfig(id="template", spec=PodSpec(), dir=templates.directory, cgroup="", hostname="")
        with contextlib.suppress(NotFound):  # without a guest image none is of use
            record = await self._plan(like)
            basis = templates.basis_of(record, self._machines.starter.program(record))
        async with self._templating:
            old = [one for one in templates if everything or one.basis != basis]
            for one in old:
                templates.remove(one.id)
        return Pruned(removed=[one.id for one in old], reclaimed_bytes=sum(one.size_bytes for one in old))

    async def _make_network(self, config: SandboxConfig) -> SandboxInfo:
        """The pod's place in the host's network. Its sysctls are for the guest's kernel."""
        plain = replace(config, spec=msgspec.structs.replace(config.spec, sysctls={}))
        return await make_namespaces(self._keeper, plain, network_types(config.spec))

    async def start(self, sandbox_id: str) -> None:
        pod = self._machines.get(sandbox_id)
        await self._machines.start(pod, self._tasks.cold_disks(pod))

    def phases(self, sandbox_id: str) -> Mapping[str, float]:
        pod = self._machines.find(sandbox_id)
        return {} if pod is None else pod.record.phases_ms

    async def stop(self, sandbox_id: str, *, deadline_s: float) -> None:
        pod = self._machines.find(sandbox_id)
        if pod is not None:
            await self._machines.shut_down(pod, deadline_s=deadline_s)
            self._unfollow(pod)
            await self._machines.end(pod)
            self._tasks.machine_ended(pod)

    async def delete(self, sandbox_id: str) -> None:
        config = self._configs.pop(sandbox_id, None)
        pod = self._machines.find(sandbox_id)
        if pod is None and config is not None:
            pod = self._machines.load(config.dir)
        if pod is not None:
            self._unfollow(pod)
            await self._machines.end(pod)
            if pod.record.shares:
                await pod.share.remove()
            await hardware.give_back(pod.record)
            self._machines.forget(pod)
        if config is not None:
            await drop_namespaces(self._keeper, config)

    async def pause(self, sandbox_id: str) -> None:
        pod = self._machines.get(sandbox_id)
        with pod.explained(), pod.standing_still():
            await pod.require().pause()
            pod.record.paused = True
        pod.record.save()

    async def resume(self, sandbox_id: str) -> None:
        pod = self._machines.get(sandbox_id)
        if pod.machine is None or pod.record.failed:
            return
        with pod.explained():
            await pod.machine.resume()
        if pod.record.paused:
            pod.record.paused = False
            pod.record.save()
            await self._machines.set_clock(pod)
            await self._interfaces.settle(pod, strictly=False)

    async def snapshot(self, sandbox_id: str, directory: Path, *, meanwhile: Callable[[], Awaitable[None]]) -> str:
        pod = self._machines.get(sandbox_id)
        self._tasks.require_saveable(pod)
        tasks = list(self._tasks.records(sandbox_id))
        with pod.explained():
            return await self._saver.save(pod, directory, tasks, self._tasks.offsets, meanwhile)

    async def restore(self, sandbox_id: str, directory: Path, ids: Mapping[str, str]) -> None:
        pod = self._machines.get(sandbox_id)
        require_saveable(pod)
        saved = guests_of(directory, ids)
        await self._tasks.restored(pod, saved)
        await self._machines.start_by(pod, lambda: self._saver.restore(pod, directory))

    async def update(
        self, sandbox_id: str, spec: PodSpec, resources: Resources, apply: Callable[[Resources], None]
    ) -> Sequence[str]:
        """Memory is the host's to give before the machine gets it, and the machine's to give back before that."""
        pod = self._machines.get(sandbox_id)
        pod.record.limits = spec.resources
        grows = memory_of(spec, self._options) > pod.record.memory_now
        if grows:
            apply(self.host_limits(spec, resources))
        notes = await self._tasks.fit(pod, [one.resources for one in spec.containers])
        if not grows:
            apply(host_limits(resources, pod.record.memory_now, self._options))
        return notes

    async def network_changed(self, sandbox_id: str) -> None:
        await self._interfaces.settle(self._machines.get(sandbox_id))

    async def dial(self, sandbox_id: str, port: int) -> socket.socket:
        return await self._dialler.dial(self._machines.get(sandbox_id).agent, port)

    async def measure(self, sandbox_id: str) -> MachineInfo | None:
        pod = self._machines.find(sandbox_id)
        if pod is None or pod.machine is None:
            return None
        return await describe(pod, self._options, self._machines.hypervisors.of(pod.record.hypervisor))

    async def stats(self, sandbox_id: str) -> Stats:
        """What the machine costs the host."""
        return self._cgroups.stats(self._machines.get(sandbox_id).record.cgroup)

    def logs(self, config: SandboxConfig) -> Mapping[str, Path]:
        """The console, and what virtiofsd said; what was rotated away comes before what followed it."""
        return dict(named_logs(config.dir / "vm"))

    # -- what happens to them ---------------------------------------------------------------------------------------

    def _watch(self, pod: VmPod) -> None:
        """Look at its programs, from the first one on."""
        self._unfollow(pod)
        self._watches[pod.record.id] = Watch(pod, self._lost)

    def _listen(self, pod: VmPod) -> None:
        """Expect it to answer."""
        if (watch := self._watches.get(pod.record.id)) is not None:  # a template's has none
            watch.listen()

    def _follow(self, pod: VmPod) -> None:
        """Hear its events, expect it to answer, and keep its interfaces those of its namespace."""
        self._listen(pod)
        self._following[pod.record.id] = [asyncio.ensure_future(self._hear(pod)), following(self._interfaces, pod)]

    def _unfollow(self, pod: VmPod) -> None:
        if (watch := self._watches.pop(pod.record.id, None)) is not None:
            watch.stop()
        for one in self._following.pop(pod.record.id, ()):
            one.cancel()

    async def _hear(self, pod: VmPod) -> None:
        async for event in pod.agent.events(0):  # those that an earlier daemon took are known by what they are about
            if event.HasField("exit"):
                self._tasks.ended(event.exit, pod)
            elif event.HasField("oom"):
                self._tasks.out_of_memory(event.oom, pod)

    def _exited(self, record: Exit) -> None:
        """The keeper tells the end of a program that runs a machine."""
        for suffix, words in _LOST.items():
            if record.task.endswith(suffix):
                pod = self._machines.find(record.task.removesuffix(suffix))
                if pod is not None and pod.pids.get(suffix) == record.pid:
                    how = f"by signal {record.signal}" if record.signal else f"with code {record.code}"
                    cause = f"{words} {how}" + ("" if record.signal else last_said(pod, suffix))
                    # virtiofsd ends when its VMM has: the end that says why comes with it, before or after; and who
                    # starts a machine knows better why it ended
                    waits = (suffix == SHARE and not record.signal) or not pod.record.started
                    wait_s = _FOLLOWS_WITHIN_S if waits else 0.0
                    asyncio.get_running_loop().call_later(wait_s, self._lost_with, pod, suffix, record.pid, cause)

    def _lost_with(self, pod: VmPod, suffix: str, pid: int | None, cause: str) -> None:
        """Unless it runs with another program by now, or its monitor has ended, which the keeper is about to tell."""
        if pod.pids.get(suffix) != pid:
            return
        if suffix == SHARE and not lives(pod.pids.get(VMM, 0)):
            asyncio.get_running_loop().call_later(
                _FOLLOWS_WITHIN_S, self._lost_with, pod, VMM, pod.pids.get(VMM), cause
            )
            return
        self._lost(pod, cause)

    def _lost(self, pod: VmPod, cause: str) -> None:
        """It has failed: all that ran in it is told to have ended, and what is left of it is killed."""
        if pod.trouble:
            return
        pod.loses(cause)
        if pod.ending or not pod.record.started or pod.machine is None:
            return  # who starts or ends it sees to that
        self._machines.lost(pod, cause)
        self._tasks.machine_ended(pod, cause)
        self.on_failed(pod.record.id, cause)
        self._ending = asyncio.ensure_future(self._end_lost(pod))

    async def _end_lost(self, pod: VmPod) -> None:
        self._unfollow(pod)
        with contextlib.suppress(DrupeError):
            await self._machines.end(pod)

    # -- recovery ---------------------------------------------------------------------------------------------------

    async def recover(self, configs: Mapping[str, SandboxConfig]) -> dict[str, TaskState]:
        self._configs.update(configs)
        entries = {entry.task: entry for entry in await self._keeper.list()}
        found = {key: TaskState(key, entry.pid, started=True, exit=None) for key, entry in entries.items()}
        for pod_id, config in configs.items():
            pod = self._machines.load(config.dir)
            if pod is None:
                continue
            keys = (pod_id + VMM, pod_id + SHARE)
            alive = {key: entries[key].pid for key in keys if key in entries and entries[key].running}
            for key in alive:
                await self._keeper.take_escrow(key)
            found |= await self._recover_pod(pod, {key.removeprefix(pod_id): pid for key, pid in alive.items()})
        return found

    async def _recover_pod(self, pod: VmPod, pids: dict[str, int]) -> dict[str, TaskState]:
        lives = VMM in pids and pod.record.started and not pod.record.failed
        if lives:
            try:
                await self._machines.attach(pod, pids)
            except DrupeError as error:
                lives = False
                self._machines.lost(pod, f"the machine cannot be reached after a restart: {error}")
        if not lives:
            await self._machines.end(pod)
        found: dict[str, TaskState] = {}
        for record in self._tasks.records(pod.record.id):
            with contextlib.suppress(DrupeError):
                found |= await self._tasks.recover_one(pod, record, lives=lives)
        if lives:
            self._follow(pod)
        return found


def last_said(pod: VmPod, suffix: str) -> str:
    """Of a program that has ended by itself. A monitor that does not come up without virtiofsd does not know why."""
    said = why("", pod.console).removeprefix(": ") if suffix == VMM else last_words(pod.share_log)
    if suffix == VMM and not pod.record.started and (words := last_words(pod.share_log)):
        said = f"{said}; virtiofsd: {words}" if said else f"virtiofsd: {words}"
    return f": {said}" if said else ""


def open_vm(means: Means) -> VmSandboxer:
    """The kind on this host. Raises NotFound when its hypervisor or virtiofsd is not installed."""
    options = cast(VmOptions, means.options)
    return VmSandboxer(
        keeper=means.keeper,
        cgroups=means.cgroups,
        hypervisor=find_hypervisor(options, means.root),
        root=means.root,
        images=means.images,
        on_exit=means.on_exit,
        options=options,
    )


def lacking(root: Path, options: Spec) -> str:
    """That a node has no guest image to boot; "" when it has."""
    try:
        guests.find(root, cast(VmOptions, options).guest)
    except DrupeError as error:
        return f"{error.message} ({error.hint})" if error.hint else error.message
    return ""


def find_hypervisor(options: VmOptions, root: Path | None = None) -> Hypervisor:
    """The one that the node's settings name. root: the node's directory. Raises NotFound when it or what it needs is
    not installed, InvalidArgument for one that the kind does not offer."""
    from drupe.sandboxers.vm.hypervisors import open_hypervisor
    from drupe.sandboxers.vm.virtiofsd import find_virtiofsd

    hypervisor = open_hypervisor(options.hypervisor, options.program, root)
    if not hypervisor.abilities_of(options.machine_type)["virtiofs"].startswith("no"):
        find_virtiofsd(options.virtiofsd)
    return hypervisor
