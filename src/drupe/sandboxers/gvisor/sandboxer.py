"""The gVisor kind: one runsc sandbox per pod, a sentry and a gofer per container, no process beside them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import msgspec

from drupe.errors import DataLoss, DrupeError, HelperFailed
from drupe.keeper.records import Exit, Io, TaskInfo
from drupe.resources.cgroups import Cgroups
from drupe.sandboxers.contract import OnExit, SandboxConfig, SandboxInfo, TaskExit, TaskState
from drupe.sandboxers.gvisor import snapshots
from drupe.sandboxers.gvisor.able import ABLE
from drupe.sandboxers.gvisor.command import RunscCommand, find_runsc
from drupe.sandboxers.gvisor.config import holder
from drupe.sandboxers.gvisor.failures import explain
from drupe.sandboxers.gvisor.options import GvisorOptions, platform_for, wants_debug
from drupe.sandboxers.gvisor.pods import GvisorPod, Pods
from drupe.sandboxers.gvisor.records import PodRecord, TaskRecord
from drupe.sandboxers.gvisor.tasks import SHARE, GvisorTasks
from drupe.sandboxers.kept.exits import exit_status
from drupe.sandboxers.kept.namespaces import drop_namespaces, make_namespaces, network_types
from drupe.sandboxers.kept.sandboxer import KeptSandboxer
from drupe.sandboxers.kinds import Means
from drupe.sandboxers.runc.infra import find_init
from drupe.spec.pod import PodSpec
from drupe.spec.resources import Resources
from drupe.spec.status import Stats

_SUFFIX = ".sandbox"


class GvisorSandboxer(KeptSandboxer):
    """Sandboxes whose kernel is runsc's sentry."""

    kind = "gvisor"
    dials = True

    def __init__(self, *, pods: Pods, cgroups: Cgroups, on_exit: OnExit, options: GvisorOptions) -> None:
        self._pods = pods
        self._options = options
        self._tasks = GvisorTasks(pods=pods, cgroups=cgroups, on_exit=on_exit)
        self._telling: set[asyncio.Task[None]] = set()
        super().__init__(keeper=pods.keeper, cgroups=cgroups, on_exit=on_exit, tasks=self._tasks)

    def capabilities(self) -> Mapping[str, str]:
        return ABLE

    def tasks(self) -> GvisorTasks:
        return self._tasks

    def close(self) -> None:
        super().close()
        self._tasks.execs.close()
        for telling in self._telling:
            telling.cancel()

    # -- sandboxes ----------------------------------------------------------------------------------------------

    async def create(self, config: SandboxConfig) -> SandboxInfo:
        """The network namespace only: the sandbox itself is made when its addresses are in there. Who puts them there
        for an owner (Docker) finds it by a process."""
        platform = await platform_for(self._options, config.spec, self._keeper)
        self._configs[config.id] = config
        types = network_types(config.spec)
        filled = bool(config.spec.owner and types)
        info = await make_namespaces(self._keeper, replace(config, held=config.held or filled), types)
        record = PodRecord(
            id=config.id,
            dir=str(config.dir),
            cgroup=config.cgroup,
            state=str(self._pods.state_of(config.id)),
            sole=len(config.spec.containers) == 1,
            hostname=config.hostname,
            shm_bytes=max((c.shm_size_bytes for c in config.spec.containers), default=64 << 20),
            network="sandbox" if filled else _network(config.spec),
            platform=platform,
            netns=info.netns if filled or config.spec.network.mode != "none" else "",
            joins=config.spec.network.mode == "path" and not config.held,
            debug=wants_debug(self._options, config.spec),
            # what containerd's containers come with is not known yet
            seccomp=config.held
            or any(c.security.seccomp not in ("default", "unconfined") for c in config.spec.containers),
        )
        self._pods.add(record)
        if config.spec.namespaces.pid == "pod":
            info.namespaces["pid"] = SHARE
        return info

    async def start(self, sandbox_id: str) -> None:
        """A sandbox of several containers gets a first one that does nothing, so that it ends with none of them."""
        pod = self._pods.get(sandbox_id)
        if not pod.record.sole:
            await self._start_holder(pod, None)

    async def _start_holder(self, pod: GvisorPod, image: Path | None) -> None:
        """image: the checkpoint that it is to go on from."""
        bundle = self._bundle(pod)
        (bundle / "rootfs").mkdir(parents=True, exist_ok=True)
        for name in ("proc", "dev", "sys", "tmp"):
            (bundle / "rootfs" / name).mkdir(exist_ok=True)
        (bundle / "rootfs" / "catatonit").touch()
        oci = holder(self._configs[pod.record.id], pod.record, bundle / "rootfs", find_init())
        (bundle / "config.json").write_bytes(msgspec.json.encode(oci))
        leaf = pod.record.leaf("")
        self._cgroups.create(leaf, Resources())
        try:
            await self._pods.launch_first(
                pod,
                pod.record.key,
                self._pods.command.first(pod.record, bundle, image=image),
                cgroup=leaf,
                pidfile=bundle / "pid",
                io=Io(mode="null"),
                exit_file=bundle / "exit.json",
                log_file=bundle / "create.log",
            )
        except HelperFailed as error:
            await self._end(pod)
            raise explain(error, {}) from None

    async def dial(self, sandbox_id: str, port: int) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                await self._pods.get(sandbox_id).sentry.forward(port, theirs.fileno())
            except BaseException:
                ours.close()
                raise
        ours.setblocking(False)
        return ours

    def logs(self, config: SandboxConfig) -> Mapping[str, Path]:
        record = self._pods.get(config.id).record
        return {path.stem: path for path in sorted(record.logs.glob("*.log"))}

    async def snapshot(self, sandbox_id: str, directory: Path, *, meanwhile: Callable[[], Awaitable[None]]) -> str:
        pod = self._pods.get(sandbox_id)
        tasks = [record for record in self._tasks.records() if record.sandbox == sandbox_id]
        return await snapshots.write(self._pods, pod, tasks, directory, meanwhile)

    async def restore(self, sandbox_id: str, directory: Path, ids: Mapping[str, str]) -> None:
        pod, image = self._pods.get(sandbox_id), directory / "image"
        guests = snapshots.Guests.read(snapshots.Guests.path(directory))
        if guests is None:
            raise DataLoss("the snapshot does not say which containers are in it", stage="restore")
        self._tasks.restore_from(image, {task: guests.names[old] for task, old in ids.items()})
        if not pod.record.sole:
            await self._start_holder(pod, image)

    async def stop(self, sandbox_id: str, *, deadline_s: float) -> None:
        pod = self._pods.find(sandbox_id)
        if pod is not None and not pod.record.sole:
            await self._end(pod)

    async def delete(self, sandbox_id: str) -> None:
        config = self._configs.pop(sandbox_id, None)
        pod = self._pods.find(sandbox_id) or self._pods.load(sandbox_id)
        if pod is not None:
            if not pod.record.sole:
                await self._end(pod)
            await self._pods.return_addresses(pod)
        if config is not None:
            await drop_namespaces(self._keeper, config)
        self._pods.forget(sandbox_id)

    async def pause(self, sandbox_id: str) -> None:
        await super().pause(sandbox_id)
        self._pods.get(sandbox_id).frozen = True

    async def resume(self, sandbox_id: str) -> None:
        await super().resume(sandbox_id)
        self._pods.get(sandbox_id).frozen = False

    async def stats(self, sandbox_id: str) -> Stats:
        """What the sandbox costs the host, but for the number of processes."""
        stats = await super().stats(sandbox_id)
        pod = self._pods.get(sandbox_id)
        running = [r for r in self._tasks.records() if r.sandbox == sandbox_id and r.started and r.exit is None]
        if not pod.frozen:
            with contextlib.suppress(DrupeError):
                stats.pids = sum([len(await pod.sentry.processes(r.guest)) for r in running])
        return stats

    async def _end(self, pod: GvisorPod) -> None:
        leaf = pod.record.leaf("")
        await self._pods.end(pod, pod.record.key, leaf)
        await asyncio.to_thread(self._cgroups.delete, leaf)

    def _bundle(self, pod: GvisorPod) -> Path:
        return Path(pod.record.dir) / "sandbox"

    # -- ends ---------------------------------------------------------------------------------------------------

    def _is_mine(self, key: str) -> bool:
        if key.endswith(_SUFFIX):
            return self._pods.find(key.removesuffix(_SUFFIX)) is not None
        return super()._is_mine(key)

    def _exited(self, record: Exit) -> None:
        """The keeper tells the end of a process on the host; how the container ended its sentry knows."""
        if not self._is_mine(record.task) or record.task.endswith(_SUFFIX):
            return
        telling = asyncio.ensure_future(self._tell(record))
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    async def _tell(self, record: Exit) -> None:
        task, _, exec_id = record.task.partition(".")
        status = exit_status(record)
        if not exec_id:
            status = await self._tasks.conclude_from(task, status)
            self._tasks.note_end(task)
        elif (known := self._tasks.record_of(task)) is not None:
            self._tasks.execs.forget(known, exec_id)
        self._on_exit(TaskExit(task=task, exec_id=exec_id, status=status))
        if exec_id:
            self._kept.forget_exec(record.task)
            self._forget_later(record.task)

    # -- recovery -----------------------------------------------------------------------------------------------

    async def recover(self, configs: Mapping[str, SandboxConfig]) -> dict[str, TaskState]:
        for pod_id in configs:
            self._pods.load(pod_id)
        found = await super().recover(configs)
        for record in self._tasks.records():
            if record.id not in found:
                found |= await self._not_held(record)
            elif found[record.id].exit is None:
                found |= self._execs_of(record)
        for stranger in self._pods.strangers(set(configs)):
            self._pods.forget(stranger)
        return found

    async def _task_state(self, entry: TaskInfo) -> TaskState:
        task, _, exec_id = entry.task.partition(".")
        record = self._tasks.record_of(task)
        if exec_id or record is None:
            exit_ = exit_status(entry.exit) if entry.exit else None
            return TaskState(entry.task, entry.pid, started=True, exit=exit_)
        if entry.exit is not None:
            status = await self._tasks.conclude_from(task, exit_status(entry.exit))
            return TaskState(task, 0, started=True, exit=status)
        self._tasks.started(record, entry.pid)
        with contextlib.suppress(DrupeError):
            await self._keeper.flow(task)
        return TaskState(task, record.gofer, started=True, exit=None)

    async def _not_held(self, record: TaskRecord) -> dict[str, TaskState]:
        """It waits to be started, was killed before, or was lost. A start that was under way is taken back."""
        pod = self._pods.find(record.sandbox)
        if record.exit is not None:
            return {record.id: TaskState(record.id, 0, started=True, exit=record.exit)}
        if record.started or pod is None:
            return {}
        if pod.record.sole:
            await self._pods.end(pod, record.id, record.cgroup)
        return {record.id: TaskState(record.id, 0, started=False, exit=None)}

    def _execs_of(self, record: TaskRecord) -> dict[str, TaskState]:
        sentry = self._pods.get(record.sandbox).sentry
        found = {}
        for exec_id, known in self._tasks.execs.recorded(record):
            if known.tty:
                self._tasks.execs.note(record, exec_id, known.pid)
                continue
            self._tasks.execs.watch(sentry, record, exec_id, known.pid)
            key = f"{record.id}.{exec_id}"
            found[key] = TaskState(key, known.pid, started=True, exit=None)
        return found


def _network(spec: PodSpec) -> str:
    """What runsc calls it: "none" has the loopback, and needs nothing of the pod's network namespace."""
    return {"none": "none", "host": "host"}.get(spec.network.mode, "sandbox")


def open_gvisor(means: Means) -> GvisorSandboxer:
    """The kind on this host. Raises NotFound when runsc is not installed."""
    options = cast(GvisorOptions, means.options)
    command = RunscCommand(find_runsc(options.program))
    pods = Pods(keeper=means.keeper, command=command, cgroups=means.cgroups, state=means.run / "gvisor")
    return GvisorSandboxer(pods=pods, cgroups=means.cgroups, on_exit=means.on_exit, options=options)
