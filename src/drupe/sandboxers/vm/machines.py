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
from google.protobuf.empty_pb2 import Empty

from drupe.errors import DrupeError, NotFound, ResourceExhausted, Unavailable
from drupe.hypervisors.contract import Hypervisor
from drupe.hypervisors.contract import Share as SharedDirectory
from drupe.images.files import storage_errors
from drupe.images.store import ImageStore
from drupe.keeper.client import Keeper
from drupe.resources.cgroups import Cgroups
from drupe.rpc.guest import guest_pb2 as pb
from drupe.rpc.timeouts import timeout
from drupe.sandboxers.vm import network, share
from drupe.sandboxers.vm.agent import PUT_AWAY, Agent
from drupe.sandboxers.vm.console import last_words
from drupe.sandboxers.vm.hypervisors import Hypervisors
from drupe.sandboxers.vm.launch import Launcher
from drupe.sandboxers.vm.options import VmOptions
from drupe.sandboxers.vm.phases import Phases
from drupe.sandboxers.vm.pods import VmPod
from drupe.sandboxers.vm.records import SHARE, VMM, PodRecord
from drupe.sandboxers.vm.rehearsal import make_disk, rehearse, rehearse_shares
from drupe.sandboxers.vm.roots import RootDisk, Roots
from drupe.sandboxers.vm.starting import CONNECTS_WITHIN_S, Starter
from drupe.sandboxers.vm.templates import SAVED_MEMORY, SPARE_DISKS, Templates, note_code
from drupe.spec.resources import Resources
from drupe.spec.template import TemplateInfo

_DIGS_WITHIN_S = 120.0
_PUTS_AWAY_WITHIN_S = 120.0


def require_room(directory: Path, size_bytes: int) -> None:
    """ResourceExhausted when a file of that size does not get into a directory: it is written by mapping it, which
    has no error for a disk that is full."""
    free = shutil.disk_usage(directory).free
    if free < size_bytes:
        cause = f"it takes up to {size_bytes} bytes, {free} are free"
        raise ResourceExhausted(f"no space for the memory of a machine in {directory}", cause=cause)


class Machines:
    """By the pods' ids."""

    def __init__(
        self,
        *,
        keeper: Keeper,
        cgroups: Cgroups,
        hypervisor: Hypervisor,
        root: Path,
        images: ImageStore,
        options: VmOptions,
    ) -> None:
        self.keeper = keeper
        self.cgroups = cgroups
        self.hypervisors = Hypervisors(hypervisor, options.hypervisors, root)
        self._agent_timeout_s = options.agent_timeout_s
        self._from_templates = options.template
        self._launcher = Launcher(keeper, cgroups)
        self.roots = Roots(keeper, images)
        self.starter = Starter(
            keeper=keeper, launcher=self._launcher, hypervisors=self.hypervisors, roots=self.roots,
            templates=Templates(root / "vm" / "templates"), agent_timeout_s=options.agent_timeout_s,
            virtiofsd=options.virtiofsd,
        )  # fmt: skip
        self._pods: dict[str, VmPod] = {}
        self.on_begun: Callable[[VmPod], None] = lambda _: None
        self.on_ready: Callable[[VmPod], None] = lambda _: None
        self.on_nonsense: Callable[[VmPod, str], None] = lambda _pod, _said: None

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
        return Agent(
            lambda: self.hypervisors.of(record.hypervisor).open_line(record.machine()),
            lambda said: self.on_nonsense(self.get(record.id), said),
        )

    def get(self, pod_id: str) -> VmPod:
        try:
            return self._pods[pod_id]
        except KeyError:
            raise NotFound(f"sandbox {pod_id} is not here") from None

    def find(self, pod_id: str) -> VmPod | None:
        return self._pods.get(pod_id)

    # -- start ------------------------------------------------------------------------------------------------------

    async def start(self, pod: VmPod, cold: Sequence[RootDisk] = ()) -> None:
        """Boot it, with disks where it takes none later, and have its agent make the pod's part. On failure nothing is
        left running."""
        usual = self._from_templates and not cold
        await self.start_by(pod, lambda: self.starter.start(pod, from_template=usual, cold=cold))

    async def start_by(self, pod: VmPod, work: Callable[[], Awaitable[None]]) -> None:
        """Start it by `work`, once; on failure nothing is left running."""
        async with pod.starting:
            if pod.machine is not None:
                return
            try:
                with storage_errors("cannot start the machine"):
                    await self._make_place(pod)
                    pod.begins()
                    self.on_begun(pod)
                    await pod.unless_lost(work(), while_="it started")
                    self.on_ready(pod)
            except DrupeError as error:
                await self.end(pod)
                if not error.cause and (words := last_words(pod.console)):
                    error.cause = words
                if pod.record.saved and not error.hint and isinstance(error, Unavailable):
                    error.hint = f"if it fails again: drupe template rm {Path(pod.record.saved).name[:12]}"
                raise
            except BaseException:
                await self.end(pod)
                raise

    async def make_template(self, like: PodRecord) -> TemplateInfo:
        """Boot a machine that is like a pod's up to its waiting agent, and save it. ResourceExhausted when the disk has
        no room for its memory."""
        with storage_errors("cannot make a template"):
            return await self._make_template(like)

    async def _make_template(self, like: PodRecord) -> TemplateInfo:
        templates = self.starter.templates
        program = self.starter.program(like)
        scratch = templates.directory / f".making-{templates.key_of(like, program)[:12]}"
        shutil.rmtree(scratch, ignore_errors=True)
        templates.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        require_room(templates.directory, like.memory_bytes)
        scratch.mkdir(mode=0o700)
        record = msgspec.structs.replace(
            like, id=f"template-{scratch.name[8:]}", dir=str(scratch), netns="", sysctls={}, spare_disks=SPARE_DISKS,
            cgroup=f"{Path(like.cgroup).parent}/template-{scratch.name[8:]}",
        )  # fmt: skip
        pod = self.add(record)
        try:
            await self._boot_and_save(pod, scratch)
            await self._clear(pod)
            return templates.keep(scratch, like, program)
        finally:
            await self._clear(pod)
            self.forget(pod)
            if self.cgroups.exists(record.cgroup):
                await asyncio.to_thread(self.cgroups.delete, record.cgroup)
            shutil.rmtree(scratch, ignore_errors=True)

    async def _clear(self, pod: VmPod) -> None:
        """End the machine of a template and remove what it had. Idempotent."""
        await self.end(pod)
        if pod.record.shares:
            await pod.share.remove()
        shutil.rmtree(pod.record.home, ignore_errors=True)

    async def _boot_and_save(self, pod: VmPod, scratch: Path) -> None:
        memory = scratch / SAVED_MEMORY
        memory.touch(mode=0o600)
        os.truncate(memory, pod.record.memory_bytes)
        await self._make_place(pod)
        pod.ending = True  # nobody is to be told of its end
        disk = await asyncio.to_thread(make_disk, pod.record.home)
        config = replace(pod.record.machine(), memory_file=memory, disks=[disk.disk()])
        await self.starter.boot(pod, config, Phases())
        await rehearse(pod.agent, disk)
        await self._put_away(pod, scratch)
        machine = pod.require()
        await pod.agent.close()
        await machine.pause()
        await machine.save(scratch)
        await self.end(pod)
        await self.keeper.run(["fallocate", "--dig-holes", str(memory)], timeout_s=_DIGS_WITHIN_S, check=True)

    async def _put_away(self, pod: VmPod, scratch: Path) -> None:
        """Have it once seen a share, and be without it and with clear memory."""
        machine, can = pod.require(), PUT_AWAY in pod.agent.features
        shares: Sequence[SharedDirectory] = ()
        if can and machine.keeps_places and pod.record.shares:
            await pod.share.remove()  # what a daemon that was killed has left
            with contextlib.suppress(Unavailable):  # where no pod has one
                await pod.share.make()
                shares = await self.starter.share(pod)
        await rehearse_shares(pod.agent, machine, shares)
        if can:
            timeout_s = _PUTS_AWAY_WITHIN_S
            told = await pod.agent.guest("PutAway", Empty(), pb.PutAwayResponse, timeout_s=timeout_s)
            note_code(scratch, told.code_begin, told.code_end)
        for one in shares:
            await machine.withdraw(one.id)

    async def _make_place(self, pod: VmPod) -> None:
        """Without what an end that nobody saw has left."""
        await self._remove_leaves(pod)
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
        pod.begins()
        self.on_begun(pod)
        await pod.unless_lost(self._attach(pod), while_="nobody looked")

    async def _attach(self, pod: VmPod) -> None:
        config = pod.record.machine()
        hypervisor = self.hypervisors.of(pod.record.hypervisor)
        pod.machine = await hypervisor.connect(config, timeout_s=CONNECTS_WITHIN_S)
        if not pod.record.paused:
            await self._go_on(pod)

    async def _go_on(self, pod: VmPod) -> None:
        """Reach its agent. A daemon that was killed while it saved the machine left it, or what runs in it, standing
        still."""
        machine = pod.require()
        if (await machine.status()).state == "paused":
            await machine.resume()
        await pod.agent.connect(timeout_s=self._agent_timeout_s)
        with contextlib.suppress(DrupeError):  # of an agent that knows no such thing
            await pod.agent.guest("Freeze", pb.FreezeRequest(frozen=False))

    # -- end --------------------------------------------------------------------------------------------------------

    async def shut_down(self, pod: VmPod, *, deadline_s: float) -> None:
        """Ask the guest to flush and power off, and wait for that. What does not is left to `end`."""
        machine, pod.ending = pod.machine, True
        if machine is None or pod.record.failed:
            return
        with contextlib.suppress(DrupeError, TimeoutError):
            if pod.record.paused:
                await machine.resume()
            resets = self.hypervisors.of(pod.record.hypervisor).resets_to_end
            request = pb.ShutdownRequest(timeout_ms=round(deadline_s * 1000), reboot=resets)
            async with timeout(deadline_s):
                await pod.unless_lost(pod.agent.guest("Shutdown", request, timeout_s=deadline_s), while_="it ended")
                await pod.unless_lost(machine.wait(), while_="it ended")

    async def end(self, pod: VmPod) -> None:
        """Kill what runs it, and let go. Idempotent."""
        pod.ending = True
        machine, pod.machine = pod.machine, None
        await self._on_leaf(self.cgroups.kill_all, pod)  # before all talk: what hangs does not even take a good-bye
        await pod.agent.close()
        pod.agent = self._agent_of(pod.record)
        if machine is not None:
            await machine.close()
        for suffix in (VMM, SHARE):
            await self._launcher.end(pod.record.id + suffix)
        await self._on_leaf(self.cgroups.delete, pod)
        await network.part(self.keeper, pod.record)
        for path in (*pod.record.home.glob("*.sock"), pod.record.home / "agent.in", pod.record.home / "agent.out"):
            path.unlink(missing_ok=True)
        await self._remove_leaves(pod)
        if pod.record.started:
            pod.record.started = pod.record.paused = False
            with contextlib.suppress(OSError):  # a full disk: the next daemon finds it ended by itself
                pod.record.save()
        pod.pids, pod.ending = {}, False

    async def _on_leaf(self, work: Callable[[str], object], pod: VmPod) -> None:
        """Do it, if the cgroup is there. Whoever ends the machine beside us may be faster."""
        if self.cgroups.exists(pod.record.leaf):
            with contextlib.suppress(NotFound):
                await asyncio.to_thread(work, pod.record.leaf)

    async def _remove_leaves(self, pod: VmPod) -> None:
        """What its program has elsewhere."""
        with contextlib.suppress(DrupeError):  # of a program that is no longer installed
            for path in self.hypervisors.of(pod.record.hypervisor).leaves(pod.record.machine()):
                await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)

    def lost(self, pod: VmPod, cause: str) -> None:
        """Note that it has failed, and why."""
        pod.record.failed = cause
        pod.agent.gone(cause)
        with contextlib.suppress(OSError):
            pod.record.save()

    def forget(self, pod: VmPod) -> None:
        """Remove all that was written about it but its logs, which say why it ended. Idempotent."""
        self._pods.pop(pod.record.id, None)
        for path in pod.record.home.glob("*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif ".log" not in path.name:
                path.unlink(missing_ok=True)

    async def close(self) -> None:
        """Let go of all; they go on."""
        for pod in self:
            await pod.agent.close()
            if pod.machine is not None:
                await pod.machine.close()
