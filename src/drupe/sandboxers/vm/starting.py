"""How a machine starts: booted, or from a template, and then set up by its agent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import cast

from drupe.errors import Unavailable
from drupe.hypervisors.contract import KILLED, Hypervisor, MachineConfig, Nic, SavedCode
from drupe.hypervisors.contract import Share as SharedDirectory
from drupe.keeper.client import Keeper
from drupe.linux import no_holes_program
from drupe.resources.network.endpoints.contract import Joined
from drupe.rpc.guest import guest_pb2 as pb
from drupe.sandboxers.vm import filling, hardware, network, share, virtiofsd
from drupe.sandboxers.vm.console import last_words, why
from drupe.sandboxers.vm.hypervisors import Hypervisors, confinement
from drupe.sandboxers.vm.launch import Launcher
from drupe.sandboxers.vm.oci import GUEST_SHARE
from drupe.sandboxers.vm.phases import Phases
from drupe.sandboxers.vm.plugging import opened, plug_nic, told
from drupe.sandboxers.vm.pods import VmPod
from drupe.sandboxers.vm.records import SHARE, VMM, PodRecord
from drupe.sandboxers.vm.roots import RootDisk, Roots
from drupe.sandboxers.vm.templates import SAVED_MEMORY, SPARE_DISKS, Templates, code_of, filled
from drupe.sandboxers.vm.trimming import find_plugin

CONNECTS_WITHIN_S = 30.0
_VERDICT_S = 1.0  # until it is told that a program has ended, and how; that ends the start
_DISKS_AT_BOOT = 8  # places on the root bus are few; more are plugged in
_MEMORY_FD, _TOLD_FD, _SAVED_FD = 5, 6, 7  # of a VMM: after the listeners of `Launch`


class Starter:
    """Starts machines. agent_timeout_s: how long a guest may boot. virtiofsd: its path, "" for where it is usually."""

    def __init__(
        self,
        *,
        keeper: Keeper,
        launcher: Launcher,
        hypervisors: Hypervisors,
        roots: Roots,
        templates: Templates,
        agent_timeout_s: float,
        virtiofsd: str = "",
    ) -> None:
        self._keeper = keeper
        self._launcher = launcher
        self._hypervisors = hypervisors
        self.roots = roots
        self.templates = templates
        self._agent_timeout_s = agent_timeout_s
        self._virtiofsd = virtiofsd
        self.on_answered: Callable[[VmPod], None] = lambda _: None  # its agent is there

    async def start(self, pod: VmPod, *, from_template: bool, cold: Sequence[RootDisk] = ()) -> None:
        """All of it. Raises DrupeError; what was started then is the caller's to end."""
        sharing = asyncio.ensure_future(self.share(pod))  # nothing needs it before the machine is there
        try:
            await self._start(pod, sharing, from_template=from_template, cold=cold)
        finally:
            await asyncio.gather(sharing, return_exceptions=True)  # what is begun after the end nobody would end

    async def _start(
        self, pod: VmPod, sharing: Awaitable[object], *, from_template: bool, cold: Sequence[RootDisk]
    ) -> None:
        record, phases = pod.record, Phases()
        record.mounted = []
        with phases("network"):
            joined = await network.join(self._keeper, record)
        with phases("roots"):
            record.disks = await self.roots.of_images(record.images)
        hosts, nics = hardware.host_devices(record), network.nics_of(joined)
        usual, program = from_template and not hosts, self.program(record)
        saved = self.templates.find(record, program) if usual else None
        damaged = self.templates.damaged(record, program) if usual and saved is None else ""
        record.saved, record.spare_disks = str(saved or ""), SPARE_DISKS if saved else 0
        record.disks = _all(record.disks, cold) if cold else record.disks[: SPARE_DISKS if saved else _DISKS_AT_BOOT]
        disks, taps = [disk.disk() for disk in record.disks], [nic for nic in nics if nic.node is None]
        async with self._taps(record, taps) as taps:
            config = record.machine(disks=disks, nics=taps, host_devices=hosts, shares=self._shares(record))
            if saved is None:
                with phases("share"):
                    await sharing
                await self.boot(pod, config, phases)
            else:
                await self._restore(pod, config, saved, phases, sharing)
        for nic in (nic for nic in nics if nic.node is not None):
            await plug_nic(self._keeper, pod, nic)
        with phases("agent"):
            await self.or_end(pod, pod.agent.guest("Setup", _setup(pod, joined)))
        record.nics = [(nic.id, nic.mac) for nic in network.nics_of(joined)]
        record.told = told(joined)
        record.started, record.failed = True, ""
        record.phases_ms, record.notes = phases.told, network.left_out(joined)
        record.start_notes = [*self._confinement(record), *([damaged] if damaged else ())]
        record.save()

    @contextlib.asynccontextmanager
    async def _taps(self, record: PodRecord, taps: list[Nic]) -> AsyncIterator[list[Nic]]:
        """Open, for a program that may not open them."""
        if self._hypervisors.of(record.hypervisor).opens_taps:
            yield taps
            return
        async with opened(self._keeper, record.netns, taps) as found:
            yield found

    def program(self, record: PodRecord) -> str:
        """The VMM's path."""
        return self._hypervisors.of(record.hypervisor).prepare(record.machine()).argv[0]

    def _confinement(self, record: PodRecord) -> list[str]:
        return [said] if (said := confinement(self._hypervisors.of(record.hypervisor))) else []

    async def share(self, pod: VmPod) -> list[SharedDirectory]:
        """Start virtiofsd, where there is one; answers what it serves."""
        record = pod.record
        if not (shares := self._shares(record)):
            return []
        socket = cast(Path, shares[0].socket)
        socket.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        await pod.share.prepare()
        program = virtiofsd.find_virtiofsd(self._virtiofsd)
        legacy = await virtiofsd.is_legacy(self._keeper, program)
        argv = virtiofsd.serving(program, record.share, legacy=legacy)
        pod.pids[SHARE] = await self._launcher.start(
            record, record.id + SHARE, argv, [socket], log=pod.share_log, netns=False, users=pod.share.users
        )
        return shares

    def _shares(self, record: PodRecord) -> list[SharedDirectory]:
        """What virtiofsd serves it; files by hostfs the program opens itself."""
        if not record.shares or record.rootfs == "hostfs":
            return []
        socket = self._hypervisors.of(record.hypervisor).share_socket(record.machine())
        return [SharedDirectory(id="share", tag=share.TAG, path=record.share, socket=socket)]

    async def boot(self, pod: VmPod, config: MachineConfig, phases: Phases) -> None:
        """Up to the agent that answers."""
        with phases("vmm"):
            await self.launch(pod, config)
        with phases("kernel"):
            await pod.require().boot(timeout_s=CONNECTS_WITHIN_S)
            await self._reach_agent(pod)

    async def _reach_agent(self, pod: VmPod) -> None:
        await self.or_end(pod, pod.agent.connect(timeout_s=self._agent_timeout_s))
        self.on_answered(pod)

    async def _restore(
        self, pod: VmPod, config: MachineConfig, saved: Path, phases: Phases, sharing: Awaitable[object]
    ) -> None:
        """The same by a template. Its random numbers are made its own before anything else is asked of it."""
        memory = Path(f"/proc/self/fd/{_MEMORY_FD}") if config.shared_memory else None
        config = replace(config, saved=saved, memory_file=memory, share_memory=memory is None)
        with phases("vmm"):
            await self.launch(pod, config)
        with phases("share"):
            await sharing
        with phases("restore"):
            await self._go_on(pod)
        with phases("renew"):
            await self._reach_agent(pod)
            await self.or_end(pod, pod.agent.guest("AddEntropy", pb.AddEntropyRequest(data=os.urandom(64))))

    async def _go_on(self, pod: VmPod) -> None:
        """Its share is plugged in here: that nobody serves it says nothing of how virtiofsd ended."""
        try:
            await pod.require().boot(timeout_s=CONNECTS_WITHIN_S)
        except Unavailable:
            await asyncio.sleep(_VERDICT_S)
            raise

    async def launch(self, pod: VmPod, config: MachineConfig) -> None:
        """Start the VMM and reach its monitor."""
        record, hypervisor = pod.record, self._hypervisors.of(pod.record.hypervisor)
        if config.saved is not None and config.accelerator == "tcg":
            config = replace(config, trim=await find_plugin(self._keeper, self.program(record)))
            config = replace(config, code=_code(config))
        launch = hypervisor.prepare(config)
        for path in launch.dirs:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        await asyncio.to_thread(hypervisor.furnish, config)
        for path, content in launch.files.items():
            path.write_bytes(content)
            path.chmod(0o600)
        with ExitStack() as opened:
            copy = _Copy(opened, config.memory_bytes, config.saved) if config.saved and config.memory_file else None
            pod.pids[VMM] = await self._launcher.start(
                record, record.id + VMM, [*_before(config), *launch.argv],
                launch.listeners, fifos=launch.fifos, files=copy.files if copy else (), log=pod.console, netns=True,
                bare=bool(confinement(hypervisor)), locked_bytes=record.memory_max_bytes if record.bound else 0,
            )  # fmt: skip
            await self._connect(pod, hypervisor, config)
            if copy is not None:
                await copy.done()

    async def _connect(self, pod: VmPod, hypervisor: Hypervisor, config: MachineConfig) -> None:
        try:
            pod.machine = await hypervisor.connect(config, timeout_s=CONNECTS_WITHIN_S)
        except Unavailable as error:
            await asyncio.sleep(_VERDICT_S)
            said = last_words(pod.console) or error.cause
            raise Unavailable("the virtual machine monitor did not start", stage="vmm", cause=said) from None

    async def or_end(self, pod: VmPod, work: Awaitable[object]) -> None:
        """Wait for the guest, but not longer than there is a machine."""
        asked = asyncio.ensure_future(work)
        end = asyncio.ensure_future(pod.require().wait())
        try:
            await asyncio.wait({asked, end}, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                cause = why(end.result(), pod.console)
                if end.result() == KILLED:
                    await asyncio.sleep(_VERDICT_S)
                raise Unavailable("the machine ended while it booted", stage="kernel", cause=cause)
            asked.result()
        finally:
            asked.cancel()
            end.cancel()


def _all(disks: Sequence[RootDisk], more: Sequence[RootDisk]) -> list[RootDisk]:
    """Each once."""
    return list({disk.id: disk for disk in (*disks, *more)}.values())


def _before(config: MachineConfig) -> list[str]:
    """The words before a monitor's command line. A file that others map too is not its guest's to punch holes in."""
    if config.saved is None:
        return []
    if config.memory_file is not None:
        code = config.code
        return filled(config.saved, _MEMORY_FD, _TOLD_FD, range(code.begin, code.end) if code else range(0))
    return [sys.executable, "-I", "-S", no_holes_program.__file__]


def _code(config: MachineConfig) -> SavedCode | None:
    """What a copy of a template's memory can do without."""
    if config.saved is None or config.memory_file is None or config.trim is None:
        return None
    found = code_of(config.saved)
    return SavedCode(found.start, found.stop, _SAVED_FD) if found else None


class _Copy:
    """A template's memory on its way into a new file. files: for the monitor, from `_MEMORY_FD` on."""

    def __init__(self, opened: ExitStack, size_bytes: int, saved: Path) -> None:
        self._told, self._tells = os.pipe2(os.O_CLOEXEC)
        opened.callback(os.close, self._told)
        self._ours = opened.enter_context(ExitStack())
        memory = os.memfd_create("machine", os.MFD_CLOEXEC)
        self._ours.callback(os.close, self._tells)
        self._ours.callback(os.close, memory)
        source = os.open(saved / SAVED_MEMORY, os.O_RDONLY | os.O_CLOEXEC)
        self._ours.callback(os.close, source)
        os.truncate(memory, size_bytes)
        self.files = (memory, self._tells, source)

    async def done(self) -> None:
        """Wait for it. Unavailable when it failed."""
        self._ours.close()
        if await asyncio.to_thread(os.read, self._told, 1) != filling.DONE:
            raise Unavailable("the template's memory could not be copied", stage="vmm")


def _setup(pod: VmPod, joined: Sequence[Joined]) -> pb.SetupRequest:
    record = pod.record
    # device nodes there are the host's, by number: none is to be opened in the guest
    mount = pb.GuestMount(type=record.rootfs, source=share.TAG, target=GUEST_SHARE, options=["nodev"])
    if record.rootfs == "hostfs":
        mount.options.append(str(record.share))
    return pb.SetupRequest(
        hostname=record.hostname,
        machine_id=secrets.token_hex(16),
        resolv_conf=pod.content("resolv.conf"),
        hosts=pod.content("hosts"),
        sysctls=record.sysctls,
        mounts=[mount] if record.shares else [],
        interfaces=network.interfaces_of(joined),
        routes=network.routes_of(joined),
        clock_unix_ns=time.time_ns(),
        entropy=os.urandom(64),
        shm_size_bytes=record.shm_bytes,
        share_pid=record.share_pid,
    )
