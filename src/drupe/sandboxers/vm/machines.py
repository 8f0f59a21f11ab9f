"""The machines that are there: how each is started, watched and ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from drupe.errors import DrupeError, NotFound, Unavailable
from drupe.hypervisors.contract import Hypervisor, Machine, MachineConfig
from drupe.hypervisors.contract import Share as SharedDirectory
from drupe.keeper.client import Keeper
from drupe.resources.cgroups import Cgroups
from drupe.resources.network.endpoints.contract import Joined
from drupe.rpc.guest import guest_pb2 as pb
from drupe.rpc.timeouts import timeout
from drupe.sandboxers.vm import network, share
from drupe.sandboxers.vm.agent import Agent
from drupe.sandboxers.vm.launch import Launcher
from drupe.sandboxers.vm.oci import GUEST_SHARE
from drupe.sandboxers.vm.phases import Phases
from drupe.sandboxers.vm.records import SHARE, VMM, PodRecord
from drupe.spec.resources import Resources

_CONNECTS_WITHIN_S = 30.0
_LAST_WORDS_BYTES = 2048


@dataclass(slots=True)
class VmPod:
    """One machine. ending: its end is our own work."""

    record: PodRecord
    agent: Agent
    share: share.Share
    machine: Machine | None = None
    ending: bool = False
    pids: dict[str, int] = field(default_factory=dict)
    starting: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def console(self) -> Path:
        return self.record.home / "console.log"

    def require(self) -> Machine:
        """The machine that runs. Unavailable says why there is none."""
        if self.record.failed:
            raise Unavailable(f"the machine of the pod is lost: {self.record.failed}", stage="vmm")
        if self.machine is None:
            raise Unavailable("the machine of the pod does not run", stage="vmm")
        return self.machine


class Machines:
    """By the pods' ids."""

    def __init__(self, *, keeper: Keeper, cgroups: Cgroups, hypervisor: Hypervisor, agent_timeout_s: float) -> None:
        self.keeper = keeper
        self.cgroups = cgroups
        self.hypervisor = hypervisor
        self._agent_timeout_s = agent_timeout_s
        self._launcher = Launcher(keeper, cgroups)
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
        agent = Agent(record.home / "agent.sock")
        self._pods[record.id] = pod = VmPod(record, agent, share.Share(self.keeper, record))
        return pod

    def get(self, pod_id: str) -> VmPod:
        try:
            return self._pods[pod_id]
        except KeyError:
            raise NotFound(f"sandbox {pod_id} is not here") from None

    def find(self, pod_id: str) -> VmPod | None:
        return self._pods.get(pod_id)

    # -- start ------------------------------------------------------------------------------------------------------

    async def start(self, pod: VmPod) -> None:
        """Boot it, and have its agent make the pod's part. On failure nothing is left running."""
        async with pod.starting:
            if pod.machine is not None:
                return
            try:
                await self._start(pod)
            except DrupeError as error:
                await self.end(pod)
                if not error.cause and (words := last_words(pod)):
                    error.cause = words
                raise
            except BaseException:
                await self.end(pod)
                raise

    async def _start(self, pod: VmPod) -> None:
        record, phases = pod.record, Phases()
        (record.home / "empty").mkdir(mode=0o755, exist_ok=True)
        self.cgroups.create(record.leaf, Resources())
        with phases("network"):
            joined = await network.join(self.keeper, record.netns)
        with phases("share"):
            config = record.machine(nics=network.nics_of(joined), **await self._shares(pod))
        with phases("vmm"):
            await self._launch(pod, config)
        with phases("kernel"):
            await pod.require().boot(timeout_s=_CONNECTS_WITHIN_S)
            await self._or_end(pod, pod.agent.connect(timeout_s=self._agent_timeout_s))
        with phases("agent"):
            await self._or_end(pod, pod.agent.guest("Setup", _setup(record, joined)))
        record.started, record.failed, record.event = True, "", 0
        record.phases_ms, record.notes = phases.told, network.left_out(joined)
        record.save()
        self.on_ready(pod)

    async def _shares(self, pod: VmPod) -> dict[str, object]:
        record = pod.record
        socket = record.home / "virtiofs.sock"
        argv = share.serving(share.find_virtiofsd(), record)
        log = record.home / "virtiofsd.log"
        pod.pids[SHARE] = await self._launcher.start(record, record.id + SHARE, argv, [socket], log=log, netns=False)
        one = SharedDirectory(id="share", tag=share.TAG, path=record.share, socket=socket)
        return {"shares": [one], "shared_memory": True}

    async def _launch(self, pod: VmPod, config: MachineConfig) -> None:
        record = pod.record
        launch = self.hypervisor.prepare(config)
        for path, content in launch.files.items():
            path.write_bytes(content)
            path.chmod(0o600)
        pod.pids[VMM] = await self._launcher.start(
            record, record.id + VMM, launch.argv, launch.listeners, log=pod.console, netns=True
        )
        pod.machine = await self.hypervisor.connect(config, timeout_s=_CONNECTS_WITHIN_S)

    async def _or_end(self, pod: VmPod, work: Awaitable[object]) -> None:
        """Wait for the guest, but not longer than there is a machine."""
        asked = asyncio.ensure_future(work)
        end = asyncio.ensure_future(pod.require().wait())
        try:
            await asyncio.wait({asked, end}, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                raise Unavailable("the machine ended while it booted", stage="kernel", cause=_why(end.result(), pod))
            asked.result()
        finally:
            asked.cancel()
            end.cancel()

    async def set_clock(self, pod: VmPod) -> None:
        """After it stood still."""
        with contextlib.suppress(DrupeError):
            await pod.agent.guest("SetClock", pb.SetClockRequest(unix_ns=time.time_ns()))

    # -- recovery ---------------------------------------------------------------------------------------------------

    async def attach(self, pod: VmPod, pids: dict[str, int]) -> None:
        """Take over a machine that runs. Raises what keeps it from being reached."""
        pod.pids = pids
        config = pod.record.machine()
        pod.machine = await self.hypervisor.connect(config, timeout_s=_CONNECTS_WITHIN_S)
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
        pod.agent = Agent(pod.record.home / "agent.sock")
        if machine is not None:
            await machine.close()
        if self.cgroups.exists(pod.record.leaf):
            await asyncio.to_thread(self.cgroups.kill_all, pod.record.leaf)
        for suffix in (VMM, SHARE):
            await self._launcher.end(pod.record.id + suffix)
        if self.cgroups.exists(pod.record.leaf):
            await asyncio.to_thread(self.cgroups.delete, pod.record.leaf)
        await network.part(self.keeper, pod.record.netns)
        for name in ("qmp.sock", "agent.sock", "virtiofs.sock"):
            (pod.record.home / name).unlink(missing_ok=True)
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

    async def forget(self, pod: VmPod) -> None:
        """Remove all that was written about it. Idempotent."""
        self._pods.pop(pod.record.id, None)
        await pod.share.remove()
        shutil.rmtree(pod.record.home, ignore_errors=True)

    async def close(self) -> None:
        """Let go of all; they go on."""
        for pod in self:
            await pod.agent.close()
            if pod.machine is not None:
                await pod.machine.close()


def _setup(record: PodRecord, joined: Sequence[Joined]) -> pb.SetupRequest:
    directory = Path(record.dir)
    mount = pb.GuestMount(type="virtiofs", source=share.TAG, target=GUEST_SHARE)
    return pb.SetupRequest(
        hostname=record.hostname,
        machine_id=secrets.token_hex(16),
        resolv_conf=_content(directory / "resolv.conf"),
        hosts=_content(directory / "hosts"),
        sysctls=record.sysctls,
        mounts=[mount] if record.rootfs == "virtiofs" else [],
        interfaces=network.interfaces_of(joined),
        routes=network.routes_of(joined),
        clock_unix_ns=time.time_ns(),
        entropy=os.urandom(64),
        shm_size_bytes=record.shm_bytes,
        share_pid=record.share_pid,
    )


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def last_words(pod: VmPod) -> str:
    """The last line of the console that says something."""
    return next((line for line in reversed(_tail(pod.console)) if line), "")


def _why(end: str, pod: VmPod) -> str:
    """Why a machine ended: the kernel's panic, or its last words."""
    lines = _tail(pod.console)
    panic = next((line for line in lines if "Kernel panic" in line), "")
    return panic or f"{end}: {last_words(pod)}"


def _tail(path: Path) -> list[str]:
    """The last lines of a console, without stamps; a guest wrote them."""
    try:
        data = path.read_bytes()[-_LAST_WORDS_BYTES:]
    except OSError:
        return []
    lines = [line.split(b" ", 3)[-1] for line in data.splitlines()[1:] or data.splitlines()]
    return ["".join(char for char in line.decode(errors="replace") if char.isprintable()).strip() for line in lines]


why = _why
