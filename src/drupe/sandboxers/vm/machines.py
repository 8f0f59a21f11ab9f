"""The machines that are there: how each is started, watched and ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from drupe.errors import DrupeError, NotFound
from drupe.hypervisors.contract import Disk, Hypervisor
from drupe.keeper.client import Keeper
from drupe.resources.cgroups import Cgroups
from drupe.rpc.guest import guest_pb2 as pb
from drupe.rpc.timeouts import timeout
from drupe.sandboxers.vm import network, share
from drupe.sandboxers.vm.agent import Agent
from drupe.sandboxers.vm.console import last_words
from drupe.sandboxers.vm.hypervisors import Hypervisors
from drupe.sandboxers.vm.launch import Launcher
from drupe.sandboxers.vm.options import VmOptions
from drupe.sandboxers.vm.phases import Phases
from drupe.sandboxers.vm.pods import VmPod
from drupe.sandboxers.vm.records import SHARE, VMM, PodRecord
from drupe.sandboxers.vm.starting import CONNECTS_WITHIN_S, Starter
from drupe.sandboxers.vm.templates import SAVED_MEMORY, Templates
from drupe.spec.resources import Resources
from drupe.spec.template import TemplateInfo


class Machines:
    """By the pods' ids."""

    def __init__(
        self, *, keeper: Keeper, cgroups: Cgroups, hypervisor: Hypervisor, root: Path, options: VmOptions
    ) -> None:
        self.keeper = keeper
        self.cgroups = cgroups
        self.hypervisors = Hypervisors(hypervisor, options.hypervisors)
        self._agent_timeout_s = options.agent_timeout_s
        self._from_templates = options.template
        self._launcher = Launcher(keeper, cgroups)
        self.starter = Starter(
            keeper=keeper, launcher=self._launcher, hypervisors=self.hypervisors,
            templates=Templates(root / "vm" / "templates"), agent_timeout_s=options.agent_timeout_s,
        )  # fmt: skip
        self._pods: dict[str, VmPod] = {}
        self.on_ready: Callable[[VmPod], None] = lambda _: None

    def __iter__(self) -> Iterator[VmPod]:
        return iter(list(self._pods.values()))

    def add(self, record: PodRecord) -> VmPod:
        """Know a machine that is to be, and write it down."""
        record.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        record.save()
        return self._know(record)

    def load(self, directory: Path) -> VmPod | None:
        """Know a machine of an earlier daemon."""
        record = PodRecord.read(directory / "vm" / "pod.json")
        return None if record is None else self._know(record)

    def _know(self, record: PodRecord) -> VmPod:
        self._pods[record.id] = pod = VmPod(record, self._agent_of(record), share.Share(self.keeper, record))
        return pod

    def _agent_of(self, record: PodRecord) -> Agent:
        return Agent(lambda: self.hypervisors.of(record.hypervisor).open_line(record.machine()))

    def get(self, pod_id: str) -> VmPod:
        try:
            return self._pods[pod_id]
        except KeyError:
            raise NotFound(f"sandbox {pod_id} is not here") from None

    def find(self, pod_id: str) -> VmPod | None:
        return self._pods.get(pod_id)

    # -- start ------------------------------------------------------------------------------------------------------

    async def start(self, pod: VmPod, disks: Sequence[Disk] = ()) -> None:
        """Boot it, with disks where it takes none later, and have its agent make the pod's part. On failure nothing is
        left running."""
        usual = self._from_templates and not disks
        await self.start_by(pod, lambda: self.starter.start(pod, from_template=usual, disks=disks))

    async def start_by(self, pod: VmPod, work: Callable[[], Awaitable[None]]) -> None:
        """Start it by `work`, once; on failure nothing is left running."""
        async with pod.starting:
            if pod.machine is not None:
                return
            try:
                self._make_place(pod)
                await work()
                self.on_ready(pod)
            except DrupeError as error:
                await self.end(pod)
                if not error.cause and (words := last_words(pod.console)):
                    error.cause = words
                raise
            except BaseException:
                await self.end(pod)
                raise

    async def make_template(self, like: PodRecord) -> TemplateInfo:
        """Boot a machine that is like a pod's up to its waiting agent, and save it."""
        templates = self.starter.templates
        program = self.starter.program(like)
        scratch = templates.directory / f".making-{templates.key_of(like, program)[:12]}"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(mode=0o700, parents=True)
        record = msgspec.structs.replace(
            like, id=f"template-{scratch.name[8:]}", dir=str(scratch), netns="", sysctls={},
            cgroup=f"{Path(like.cgroup).parent}/template-{scratch.name[8:]}",
        )  # fmt: skip
        pod = self.add(record)
        try:
            await self._boot_and_save(pod, scratch)
            shutil.rmtree(record.home)
            return templates.keep(scratch, like, program)
        finally:
            await self.end(pod)
            self.forget(pod)
            if self.cgroups.exists(record.cgroup):
                await asyncio.to_thread(self.cgroups.delete, record.cgroup)
            shutil.rmtree(scratch, ignore_errors=True)

    async def _boot_and_save(self, pod: VmPod, scratch: Path) -> None:
        memory = scratch / SAVED_MEMORY
        memory.touch(mode=0o600)
        os.truncate(memory, pod.record.memory_bytes)
        self._make_place(pod)
        pod.ending = True  # nobody is to be told of its end
        await self.starter.boot(pod, replace(pod.record.machine(), memory_file=memory), Phases())
        machine = pod.require()
        await pod.agent.close()
        await machine.pause()
        await machine.save(scratch)
        await self.end(pod)

    def _make_place(self, pod: VmPod) -> None:
        (pod.record.home / "empty").mkdir(mode=0o755, exist_ok=True)
        self.cgroups.create(pod.record.leaf, Resources())

    async def set_clock(self, pod: VmPod) -> None:
        """After it stood still."""
        with contextlib.suppress(DrupeError):
            await pod.agent.guest("SetClock", pb.SetClockRequest(unix_ns=time.time_ns()))

    # -- recovery ---------------------------------------------------------------------------------------------------

    async def attach(self, pod: VmPod, pids: dict[str, int]) -> None:
        """Take over a machine that runs. Raises what keeps it from being reached."""
        pod.pids = pids
        config = pod.record.machine()
        hypervisor = self.hypervisors.of(pod.record.hypervisor)
        pod.machine = await hypervisor.connect(config, timeout_s=CONNECTS_WITHIN_S)
        if not pod.record.paused:
            await pod.agent.connect(timeout_s=self._agent_timeout_s)

    # -- end --------------------------------------------------------------------------------------------------------

    async def shut_down(self, pod: VmPod, *, deadline_s: float) -> None:
        """Ask the guest to flush and power off, and wait for that. What does not is left to `end`."""
        machine, pod.ending = pod.machine, True
        if machine is None or pod.record.failed:
            return
        with contextlib.suppress(DrupeError, TimeoutError):
            if pod.record.paused:
                await machine.resume()
            request = pb.ShutdownRequest(timeout_ms=round(deadline_s * 1000))
            async with timeout(deadline_s):
                await pod.agent.guest("Shutdown", request, timeout_s=deadline_s)
                await machine.wait()

    async def end(self, pod: VmPod) -> None:
        """Kill what runs it, and let go. Idempotent."""
        pod.ending = True
        machine, pod.machine = pod.machine, None
        await pod.agent.close()
        pod.agent = self._agent_of(pod.record)
        if machine is not None:
            await machine.close()
        if self.cgroups.exists(pod.record.leaf):
            await asyncio.to_thread(self.cgroups.kill_all, pod.record.leaf)
        for suffix in (VMM, SHARE):
            await self._launcher.end(pod.record.id + suffix)
        if self.cgroups.exists(pod.record.leaf):
            await asyncio.to_thread(self.cgroups.delete, pod.record.leaf)
        await network.part(self.keeper, pod.record)
        for path in (*pod.record.home.glob("*.sock"), pod.record.home / "agent.in", pod.record.home / "agent.out"):
            path.unlink(missing_ok=True)
        if pod.record.started:
            pod.record.started = pod.record.paused = False
            pod.record.save()
        pod.ending = False

    def lost(self, pod: VmPod, cause: str) -> None:
        """Note that it has failed, and why."""
        pod.record.failed = cause
        pod.agent.gone()
        with contextlib.suppress(OSError):
            pod.record.save()

    def forget(self, pod: VmPod) -> None:
        """Remove all that was written about it. Idempotent."""
        self._pods.pop(pod.record.id, None)
        shutil.rmtree(pod.record.home, ignore_errors=True)

    async def close(self) -> None:
        """Let go of all; they go on."""
        for pod in self:
            await pod.agent.close()
            if pod.machine is not None:
                await pod.machine.close()
