"""The appkernel kind: one kernel of drupe's own for each pod, a task of the keeper's, reached by its control socket."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import msgspec

from drupe.errors import DrupeError
from drupe.keeper.records import Exit, TaskInfo
from drupe.resources.cgroups import Cgroups
from drupe.sandboxers.appkernel import snapshots
from drupe.sandboxers.appkernel.able import ABLE
from drupe.sandboxers.appkernel.bounds import memory_of, on_host, tasks_of
from drupe.sandboxers.appkernel.kernels import Kernels
from drupe.sandboxers.appkernel.options import AppkernelOptions, find_kernel
from drupe.sandboxers.appkernel.platforms import PlatformChoice
from drupe.sandboxers.appkernel.pods import KernelPod, Pods
from drupe.sandboxers.appkernel.records import KERNEL, PodRecord, TaskRecord
from drupe.sandboxers.appkernel.spares import Spares
from drupe.sandboxers.appkernel.sysctls import checked, of_the_network
from drupe.sandboxers.appkernel.tasks import KernelTasks, exec_status
from drupe.sandboxers.appkernel.watching import Watch
from drupe.sandboxers.contract import OnExit, SandboxConfig, SandboxInfo, TaskExit, TaskState
from drupe.sandboxers.kept.exits import exit_status, killed
from drupe.sandboxers.kept.namespaces import drop_namespaces, make_namespaces, network_types
from drupe.sandboxers.kept.sandboxer import KeptSandboxer
from drupe.sandboxers.kinds import Means
from drupe.spec.pod import PodSpec
from drupe.spec.resources import Resources
from drupe.spec.status import ExitStatus, Stats

_IMAGE_ABLE = {"files": 'no: with kinds.appkernel.root = "image" what is written stays in the memory of the pod'}


class AppkernelSandboxer(KeptSandboxer):
    """Sandboxes whose kernel is drupe's own."""

    kind = "appkernel"
    own_shm = True

    def __init__(self, *, pods: Pods, cgroups: Cgroups, on_exit: OnExit, options: AppkernelOptions) -> None:
        self.wants_image = options.root == "image"
        self._pods = pods
        self._tasks = KernelTasks(pods=pods, cgroups=cgroups, on_exit=on_exit)
        pods.on_exit, pods.on_ready, pods.on_end = self._tasks.ended, self._watch, self._unwatch
        self._watches: dict[str, Watch] = {}
        self._ending: set[asyncio.Task[None]] = set()
        super().__init__(keeper=pods.keeper, cgroups=cgroups, on_exit=on_exit, tasks=self._tasks)

    def capabilities(self) -> Mapping[str, str]:
        return {**ABLE, **_IMAGE_ABLE} if self.wants_image else ABLE

    def tasks(self) -> KernelTasks:
        return self._tasks

    def close(self) -> None:
        super().close()
        self._tasks.close()
        self._pods.spares.close()
        for pod in self._pods:
            self._unwatch(pod)
            self._pods.leave(pod)

    async def retire(self) -> None:
        await self._pods.spares.end()

    # -- sandboxes ----------------------------------------------------------------------------------------------------

    async def create(self, config: SandboxConfig) -> SandboxInfo:
        """The network namespace only: the kernel starts when its addresses are in there. An owner that puts them there
        finds it by a process."""
        sysctls, types = checked(config.spec.sysctls), network_types(config.spec)
        spec = msgspec.structs.replace(config.spec, sysctls=of_the_network(sysctls))
        plain = replace(config, spec=spec, held=config.held or bool(config.spec.owner and types))
        self._configs[config.id] = config
        info = await make_namespaces(self._keeper, plain, types)
        containers = config.spec.containers
        self._pods.spares.expect(config.id)
        known = self._pods.find(config.id) is not None
        spare = None if known else await self._pods.spares.take()
        pod = self._pods.add(
            PodRecord(
                id=config.id,
                dir=str(config.dir),
                place=str(spare.place) if spare else "",
                cgroup=config.cgroup,
                hostname=config.hostname,
                netns=info.netns,
                sole=len(containers) == 1,
                share_pid=config.spec.namespaces.pid == "pod",
                sysctls=sysctls,
                tasks=tasks_of(config.spec.resources),
                memory_bytes=memory_of(config.spec.resources),
                shm_bytes=max((c.shm_size_bytes for c in containers), default=64 << 20),
            )
        )
        pod.kernel = spare
        if spare is None:
            await pod.share.make()
        return SandboxInfo(netns=info.netns, pid=info.pid)

    async def start(self, sandbox_id: str) -> None:
        """The kernel of a pod with one container starts with that."""
        pod = self._pods.get(sandbox_id)
        if not pod.record.sole:
            self._pods.make_leaf(pod)
            await self._pods.start(pod)

    async def snapshot(self, sandbox_id: str, directory: Path, *, meanwhile: Callable[[], Awaitable[None]]) -> str:
        return await snapshots.save(self._pods.get(sandbox_id), directory, meanwhile)

    async def restore(self, sandbox_id: str, directory: Path, ids: Mapping[str, str]) -> None:
        pod = self._pods.get(sandbox_id)
        self._pods.make_leaf(pod)
        await self._tasks.restore(pod, directory, ids)

    def logs(self, config: SandboxConfig) -> Mapping[str, Path]:
        home = self._pods.get(config.id).record.kernel_home
        return {path.stem: path for path in sorted(home.glob("*.log"))}

    async def stop(self, sandbox_id: str, *, deadline_s: float) -> None:
        pod = self._pods.find(sandbox_id)
        if pod is not None:
            await self._pods.end(pod)

    async def delete(self, sandbox_id: str) -> None:
        config = self._configs.pop(sandbox_id, None)
        pod = self._pods.find(sandbox_id)
        if pod is None and config is not None:
            pod = self._pods.load(config.dir)
        if pod is not None:
            await self._pods.end(pod)
            await pod.share.remove()
            self._pods.forget(pod)
        if config is not None:
            await drop_namespaces(self._keeper, config)

    async def pause(self, sandbox_id: str) -> None:
        await self._pods.freeze(self._pods.get(sandbox_id), self._cgroup(sandbox_id))

    async def resume(self, sandbox_id: str) -> None:
        pod = self._pods.get(sandbox_id)
        await self._pods.thaw(pod, self._cgroup(sandbox_id))
        await self._pods.go_on(pod)

    async def stats(self, sandbox_id: str) -> Stats:
        """What the pod costs the host, but for the number of processes."""
        stats = await super().stats(sandbox_id)
        pod = self._pods.get(sandbox_id)
        stats.pids_limit = pod.record.tasks
        running = [record for record in self._tasks.records(sandbox_id) if record.started and record.exit is None]
        if pod.runs and not pod.frozen:
            with contextlib.suppress(DrupeError):
                seen = [await pod.line.processes(record.id) for record in running]
                stats.pids = sum(one["threads"] for processes in seen for one in processes)
        return stats

    def host_limits(self, spec: PodSpec, resources: Resources) -> Resources:
        return on_host(resources)

    async def update(
        self, sandbox_id: str, spec: PodSpec, resources: Resources, apply: Callable[[Resources], None]
    ) -> Sequence[str]:
        """The host holds it, and the kernel shows it; how many tasks there may be is the kernel's to hold."""
        pod = self._pods.get(sandbox_id)
        apply(on_host(resources))
        record = pod.record
        record.tasks = record.tasks if resources.pids is None else tasks_of(resources)
        record.memory_bytes = record.memory_bytes if resources.memory_bytes is None else memory_of(resources)
        record.save()
        if pod.runs and not pod.frozen:
            await self._pods.limit(pod)
        return ()

    # -- ends ---------------------------------------------------------------------------------------------------------

    def holds(self, key: str) -> bool:
        return key.endswith(KERNEL) and self._pods.of_kernel(key) is not None

    def _is_mine(self, key: str) -> bool:
        return self.holds(key) if key.endswith(KERNEL) else super()._is_mine(key)

    def _exited(self, record: Exit) -> None:
        if not self._is_mine(record.task):
            return
        if (pod := self._pods.of_kernel(record.task)) is not None:
            self._kernel_ended(pod, record)
            return
        status = exit_status(record)
        self._tasks.conclude(record.task, status)
        self._tasks.note_end(record.task)
        self._on_exit(TaskExit(task=record.task, exec_id="", status=status))

    def _kernel_ended(self, pod: KernelPod, record: Exit) -> None:
        """Unless that was our work, all that it ran is lost."""
        if pod.ending or not pod.record.started or pod.record.failed:
            return
        how = f"by signal {record.signal}" if record.signal else f"with code {record.code}"
        self._lose(pod, f"the kernel of the pod ended {how}")

    def _watch(self, pod: KernelPod) -> None:
        self._unwatch(pod)
        self._watches[pod.record.id] = Watch(pod, self._lose)

    def _unwatch(self, pod: KernelPod) -> None:
        if (watch := self._watches.pop(pod.record.id, None)) is not None:
            watch.stop()

    def _lose(self, pod: KernelPod, cause: str) -> None:
        """It has failed; but for want of memory it has not: that its containers tell."""
        pod.record.failed = cause
        with contextlib.suppress(OSError):
            pod.record.save()
        self._tasks.kernel_lost(pod)
        if not self._cgroups.oom_kills(pod.record.leaf):
            self.on_failed(pod.record.id, cause)
        self._ending.add(ending := asyncio.ensure_future(self._end_lost(pod)))
        ending.add_done_callback(self._ending.discard)

    async def _end_lost(self, pod: KernelPod) -> None:
        await self._tasks.told()
        with contextlib.suppress(DrupeError):
            await self._pods.end(pod)

    # -- recovery -----------------------------------------------------------------------------------------------------

    async def recover(self, configs: Mapping[str, SandboxConfig]) -> dict[str, TaskState]:
        for config in configs.values():
            self._pods.load(config.dir)
        await self._pods.spares.recover({pod.record.kernel_home for pod in self._pods})
        found = await super().recover(configs)
        for pod in self._pods:
            found |= await self._recover_pod(pod, found.pop(pod.record.key, None))
        return found

    async def _task_state(self, entry: TaskInfo) -> TaskState:
        record = self._tasks.record_of(entry.task)
        if record is None:
            exit_ = exit_status(entry.exit) if entry.exit else None
            return TaskState(entry.task, entry.pid, started=True, exit=exit_)
        if entry.exit is not None:
            status = exit_status(entry.exit)
            self._tasks.conclude(entry.task, status)
            return TaskState(entry.task, 0, started=True, exit=status)
        return TaskState(entry.task, entry.pid, started=record.started, exit=None)

    async def _recover_pod(self, pod: KernelPod, kernel: TaskState | None) -> dict[str, TaskState]:
        """What its kernel says of its tasks, or that it is gone."""
        if kernel is None or kernel.exit is not None or not pod.record.started:
            if pod.record.started and not pod.record.failed:
                pod.record.failed = "the kernel of the pod ended while there was no daemon"
            await self._pods.end(pod)
            return await self._gone(pod)
        paused = pod.record.paused
        try:
            if paused:  # it has to answer, for a moment
                await self._pods.thaw(pod, paused)
            await self._pods.take_over(pod, kernel.pid)
            listed = await pod.line.tasks()
        except DrupeError as error:
            pod.record.failed = f"the kernel cannot be reached after a restart: {error}"
            await self._pods.end(pod)
            return await self._gone(pod)
        found = await self._listed(pod, listed)
        if paused:
            await self._pods.freeze(pod, paused)
        return found

    async def _gone(self, pod: KernelPod) -> dict[str, TaskState]:
        """All that ran in it has ended."""
        self._tasks.kernel_lost(pod)
        await self._tasks.told()
        ran = [one for one in self._tasks.records(pod.record.id) if one.started and one.exit is None]
        return {one.id: self._ended(one, killed(at=time.time())) for one in ran}

    def _ended(self, record: TaskRecord, status: ExitStatus) -> TaskState:
        self._tasks.conclude(record.id, status)
        return TaskState(record.id, 0, started=True, exit=status)

    async def _listed(self, pod: KernelPod, listed: list[dict[str, object]]) -> dict[str, TaskState]:
        found: dict[str, TaskState] = {}
        for task in listed:
            record = self._tasks.record_of(str(task["container"]))
            exec_id = str(task["exec"])
            if record is None:
                await pod.line.call("delete", container=task["container"])
            elif exec_id and exec_id in record.execs:
                found |= self._exec_state(record, exec_id, task)
            elif not exec_id:
                found |= await self._first_state(pod, record, task)
        return found

    async def _first_state(self, pod: KernelPod, record: TaskRecord, task: dict[str, object]) -> dict[str, TaskState]:
        if not record.started:  # a start that was under way is taken back
            await pod.line.call("delete", container=record.id)
            return {}
        if record.exit is not None:
            return {}
        if task.get("waits"):  # a start whose hooks were under way
            await pod.line.call("delete", container=record.id)
            await self._keeper.end_task(record.id, code=137, signal=9)
            return {record.id: self._ended(record, killed(at=time.time()))}
        if (how := task.get("exit")) is not None:
            ended = exec_status(cast("dict[str, object]", how))
            await self._keeper.end_task(record.id, code=ended.code, signal=ended.signal)
            return {record.id: self._ended(record, ended)}
        return {record.id: TaskState(record.id, pod.pid, started=True, exit=None)}

    def _exec_state(self, record: TaskRecord, exec_id: str, task: dict[str, object]) -> dict[str, TaskState]:
        key = f"{record.id}.{exec_id}"
        how = task.get("exit")
        exit_ = None if how is None else exec_status(cast("dict[str, object]", how))
        return {key: TaskState(key, int(cast(int, task["pid"])), started=True, exit=exit_)}


def open_appkernel(means: Means) -> AppkernelSandboxer:
    """The kind on this host. Raises NotFound when its program was not built."""
    options = cast(AppkernelOptions, means.options)
    program = find_kernel(options)
    platform = PlatformChoice(program, options.platform)
    kernels = Kernels(keeper=means.keeper, cgroups=means.cgroups, program=program, platform=platform)
    spares = Spares(kernels=kernels, home=means.run / "appkernel", count=options.spares)
    pods = Pods(kernels=kernels, spares=spares, cgroups=means.cgroups)
    return AppkernelSandboxer(pods=pods, cgroups=means.cgroups, on_exit=means.on_exit, options=options)
