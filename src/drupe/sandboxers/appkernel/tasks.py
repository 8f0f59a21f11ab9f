"""Containers of application kernels: run by the pod's kernel, their streams held by the keeper.

`create` has the keeper make the streams, and writes down what is to be run; `start` mounts root and
binds where the kernel sees them, hands it the other ends of the streams, and has it run. The kernel tells how a task
ended; the keeper waits for the rest of its output, writes the end down and tells it, as of any other task.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from drupe.errors import AlreadyExists, DrupeError, InvalidState, NotFound
from drupe.resources.cgroups import Cgroups
from drupe.resources.limits import apply_verified
from drupe.sandboxers.appkernel import checkpoints, inside, snapshots
from drupe.sandboxers.appkernel.bounds import (
    OWN_TASKS,
    bounded,
    memory_of,
    of_one_on_host,
    on_host,
    tasks_of,
    time_of,
)
from drupe.sandboxers.appkernel.config import Bind, container_config, process_config
from drupe.sandboxers.appkernel.counters import process_info
from drupe.sandboxers.appkernel.failures import explain
from drupe.sandboxers.appkernel.homes import with_home
from drupe.sandboxers.appkernel.line import Event
from drupe.sandboxers.appkernel.making import check_room, state_of
from drupe.sandboxers.appkernel.ones import OnesLimits
from drupe.sandboxers.appkernel.pods import KernelPod, Pods
from drupe.sandboxers.appkernel.records import TaskRecord, record_path
from drupe.sandboxers.contract import Attachment, ExecConfig, OnExit, TaskConfig, TaskExit
from drupe.sandboxers.kept.exits import killed
from drupe.sandboxers.kept.hooks import refuse_inside, run_hooks
from drupe.sandboxers.kept.tasks import KeptAttachment, KeptTasks, log_file
from drupe.spec.resources import Resources
from drupe.spec.status import ExitStatus, ProcessInfo, Stats

log = logging.getLogger(__name__)
_HARMLESS = (0, 17, 18, 23, 28)  # signals that do nothing by default: CHLD, CONT, URG, WINCH
_STREAMS = ("stdin", "stdout", "stderr")
_LOST_CODE = 255
_ROOT = "root"


class KernelTasks(KeptTasks):
    """See the contract. A container's record is on disk, and its streams are the keeper's."""

    binds_until: ClassVar[str] = "start"  # the kernel is given them opened
    own_numbers: ClassVar[bool] = True

    def __init__(self, *, pods: Pods, cgroups: Cgroups, on_exit: OnExit) -> None:
        super().__init__(keeper=pods.keeper, cgroups=cgroups)
        self._pods = pods
        self._on_exit = on_exit
        self._records: dict[str, TaskRecord] = {}
        self._ones = OnesLimits(cgroups)
        self._inside = inside.InsideHooks()
        self._attached: dict[str, tuple[Mapping[str, int], Attachment]] = {}  # at creation, to whom
        self._windows: dict[str, tuple[int, int]] = {}
        self._telling: set[asyncio.Task[None]] = set()

    def know(self, task_id: str, *, cgroup: str, bundle: Path) -> None:
        super().know(task_id, cgroup=cgroup, bundle=bundle)
        record = TaskRecord.read(record_path(bundle))
        if record is not None:
            self._records[task_id] = record

    # -- made, started, unmade --------------------------------------------------------------------------------------

    async def create(self, task: TaskConfig) -> int:
        if task.id in self._records:
            raise AlreadyExists(f"container {task.id} exists already")
        pod = self._pods.get(task.sandbox)
        check_room(pod, task)
        refuse_inside(task.oci, "appkernel", but=(inside.PHASE,))
        container_config(
            task.oci, task=task.id, shm_bytes=pod.record.shm_bytes
        )  # what it refuses is refused before anything is made
        if pod.record.sole:
            pod.record.only, pod.record.only_cgroup = task.id, task.cgroup
            pod.record.only_memory_bytes = memory_of(task.resources)
            pod.record.save()
        (task.bundle / "config.json").write_bytes(msgspec.json.encode(task.oci))
        super().know(task.id, cgroup=task.cgroup, bundle=task.bundle)
        self._ended.discard(task.id)
        self._records[task.id] = record = TaskRecord(
            id=task.id, sandbox=task.sandbox, cgroup=task.cgroup, bundle=str(task.bundle), tty=task.tty,
            stdin=task.stdin, log=task.log, exit_file=str(task.exit_file),
        )  # fmt: skip
        try:
            record.image, record.tasks = str(task.image or ""), tasks_of(task.resources)
            record.placed = not pod.record.sole and memory_of(task.resources) > 0
            record.time = [] if pod.record.sole else time_of(task.resources, [])
            record.save()
            holding = asyncio.ensure_future(self._hold(record, task.fds))
            try:
                await asyncio.sleep(0)  # the keeper works meanwhile
                self._limit(pod, task)
            finally:
                await asyncio.wait([holding])
            await holding
            if pod.record.sole and not task.restores:
                self._pods.begin(pod)
            if task.oci.get("hooks"):
                await self._pods.start(pod)  # they are told a pid, whose namespaces are the pod's
                await run_hooks(
                    self._keeper,
                    task.oci,
                    "prestart",
                    "createRuntime",
                    state=state_of(record, task.oci, "creating", pod.pid),
                )
        except BaseException:
            await self.delete(task.id)
            raise
        return 0

    def _limit(self, pod: KernelPod, task: TaskConfig) -> None:
        resources = bounded(self._cgroups, task.resources) if pod.record.sole else of_one_on_host(task.resources)
        self._cgroups.create(task.cgroup, resources)
        apply_verified(self._cgroups, task.cgroup, resources)

    async def _hold(self, record: TaskRecord, attach: Mapping[str, int]) -> None:
        created = await self._keeper.hold_streams(
            record.id,
            stdin=record.stdin or record.tty,
            exit_file=record.exit_file,
            log=log_file(record.log),
            attach=attach,
            close_stdin="stdin" in attach and not record.tty,
        )
        if created.attachment is not None:
            self._attached[record.id] = (attach, KeptAttachment(self._keeper, record.id, created.attachment))

    async def start(self, task_id: str) -> int:
        record = self._record(task_id)
        if record.started or record.exit is not None:
            raise InvalidState(f"container {task_id} was started before")
        pod = self._pods.get(record.sandbox)
        try:
            if record.restore:
                await self.restore(pod, Path(record.restore), {task_id: checkpoints.whose(Path(record.restore))})
                await checkpoints.drop(record)
            return await self._start(pod, record)
        finally:
            self._pods.spares.arrived(record.sandbox)

    async def _start(self, pod: KernelPod, record: TaskRecord) -> int:
        task_id = record.id
        oci = record.oci()
        config, binds = self._wanted(pod, record, oci)
        begun = () if record.restored else (self._pods.start(pod), pod.share.add(task_id, binds))
        for result in await asyncio.gather(*begun, return_exceptions=True):
            if result is not None:
                await pod.share.drop(task_id)
                raise result
        record.started = True  # before it is: its end may be told first
        record.save()
        try:
            if record.restored:
                await self._go_on(pod, record)
            else:
                await self._run(pod, record, config, oci)
        except DrupeError as error:
            record.started = False
            record.save()
            await pod.share.drop(task_id)
            raise explain(error, oci["process"]) from None
        await self._soft_hooks(record, oci, "poststart", "running", pod.pid)
        return pod.pid

    async def _soft_hooks(self, record: TaskRecord, oci: Mapping[str, Any], phase: str, status: str, pid: int) -> None:
        """Those that may fail without consequence but a warning."""
        try:
            await run_hooks(self._keeper, oci, phase, state=state_of(record, oci, status, pid))
        except DrupeError as error:
            log.warning("container %s: %s: %s", record.id, error, error.cause)

    def _wanted(self, pod: KernelPod, record: TaskRecord, oci: dict[str, Any]) -> tuple[dict[str, Any], list[Bind]]:
        """What its kernel is told of it, and what that is to see of the host."""
        config, binds = container_config(oci, task=record.id, shm_bytes=pod.record.shm_bytes)
        waits = bool(inside.hooks_of(oci)) and not record.restored
        config |= {"share_pid": pod.record.share_pid, "tasks": record.tasks, "waits": waits}
        if window := self._windows.pop(record.id, None):
            config["rows"], config["cols"] = window
        if not record.image:
            binds.append(Bind(_ROOT, oci["root"]["path"], read_only=config["read_only"]))
            config["root"] = f"{record.id}/{_ROOT}"
        return config, binds

    async def _run(self, pod: KernelPod, record: TaskRecord, config: dict[str, Any], oci: Mapping[str, Any]) -> None:
        with contextlib.ExitStack() as opened:
            fds = await self._given(pod, record, config, opened)
            if record.placed:
                fds["cgroup"] = opened.enter_context(self._ones.cgroup(record))
            await pod.require().call("start", container=record.id, config=config, fds=fds)
            await self._ones.tell(pod, record)
        if config["waits"]:
            await self._begin(pod, record, oci)

    async def _begin(self, pod: KernelPod, record: TaskRecord, oci: Mapping[str, Any]) -> None:
        """Its first process takes its first step when hooks inside have run; it does not when one fails."""
        line, state = pod.require(), state_of(record, oci, "created", 1)
        try:
            await self._inside.run(line, record.id, oci, state)
            await line.call("go_on", container=record.id)
        except BaseException:
            with contextlib.suppress(DrupeError):
                await line.call("delete", container=record.id)
            raise

    async def _given(
        self, pod: KernelPod, record: TaskRecord, config: dict[str, Any], opened: contextlib.ExitStack
    ) -> dict[str, int]:
        """The image and the streams."""
        fds = {}
        if record.image:
            fds["root"] = os.open(record.image, os.O_RDONLY | os.O_CLOEXEC)
            opened.callback(os.close, fds["root"])
        config["env"] = with_home(config["env"], config["uid"], pod.share.seen(record.id, _ROOT))
        streams = await self._keeper.take_streams(record.id)
        for fd in streams.values():
            opened.callback(os.close, fd)
        return streams | fds

    async def restore(self, pod: KernelPod, directory: Path, ids: Mapping[str, str]) -> None:
        """Have the pod's kernel go on from a snapshot, each container from its start on. ids: the containers to those
        of the snapshot."""
        await self._pods.start_again(pod)
        containers: list[dict[str, Any]] = []
        fds: dict[str, int] = {}
        with contextlib.ExitStack() as opened:
            for task_id, old in ids.items():
                record = self._record(task_id)
                oci = record.oci()
                config, binds = self._wanted(pod, record, oci)
                await pod.share.add(task_id, binds)
                own = await self._given(pod, record, config, opened)
                containers.append(config | {"id": task_id, "old": old})
                fds |= {f"{name}:{task_id}": fd for name, fd in own.items()}
            await snapshots.restore(pod.require(), directory, containers, fds)
        for task_id in ids:
            record = self._record(task_id)
            record.restored = True
            record.save()

    async def checkpoint(self, task_id: str, path: Path, *, words: Sequence[str] = ()) -> None:
        record = self._record(task_id)
        await checkpoints.write(self._pods, self._pods.get(record.sandbox), record, path, words)

    async def go_on_from(self, task_id: str, path: Path) -> None:
        record = self._record(task_id)
        await checkpoints.take(self._pods.get(record.sandbox), record, path)

    async def _go_on(self, pod: KernelPod, record: TaskRecord) -> None:
        if record.placed:
            await self._ones.place(pod, record)
        await self._ones.tell(pod, record)
        await pod.require().call("go_on", container=record.id)

    async def delete(self, task_id: str) -> None:
        record = self._records.pop(task_id, None)
        cgroup = self._cgroup_of.pop(task_id, None)
        bundle = self._bundle_of.pop(task_id, None)
        self._attached.pop(task_id, None)
        self._windows.pop(task_id, None)
        if record is not None and (pod := self._pods.find(record.sandbox)) is not None:
            await self._unmake(pod, record)
            await pod.share.drop(task_id)
        if record is None or record.exit is None:
            with contextlib.suppress(DrupeError):
                await self._keeper.end_task(task_id, code=137, signal=9)
        await self._forget(task_id, kill=False)
        if cgroup is not None:
            await asyncio.to_thread(self._drop_cgroup, cgroup)
        if record is not None and record.started:
            await self._end_hooks(record)
        if bundle is not None:
            record_path(bundle).unlink(missing_ok=True)

    async def _end_hooks(self, record: TaskRecord) -> None:
        with contextlib.suppress(OSError, msgspec.DecodeError):
            oci = record.oci()
            await self._soft_hooks(record, oci, "poststop", "stopped", 0)

    async def _unmake(self, pod: KernelPod, record: TaskRecord) -> None:
        """Nothing of a container may stay in the kernel; one that hangs, or is this container's alone, is ended."""
        if pod.record.sole:
            await self._pods.end(pod)
            return
        if pod.frozen:
            await self._thaw(pod)
        if record.started and pod.runs:
            try:
                await pod.line.call("delete", container=record.id)
            except DrupeError:
                await self._pods.kill(pod)

    # -- signals ----------------------------------------------------------------------------------------------------

    async def kill(self, task_id: str, signal: int, *, exec_id: str = "", everything: bool = False) -> None:
        record = self._record(task_id)
        if record.exit is not None or task_id in self._ended:
            raise NotFound(f"container {task_id} has ended")
        if not record.started:
            if signal not in _HARMLESS:
                await self._keeper.end_task(task_id, code=128 + signal, signal=signal)
            return
        if exec_id and exec_id not in record.execs:
            raise NotFound(f"container {task_id} has no exec {exec_id} now")
        await self._signal(record, signal, exec_id, "all" if everything else "one")

    async def _signal(self, record: TaskRecord, signal: int, exec_id: str, reach: str) -> None:
        pod = self._pods.get(record.sandbox)
        if signal == 9 and pod.frozen:  # only where nothing else lives in it is that allowed by the runtime
            await self._pods.kill(pod)
            return
        try:
            await pod.require().call("kill", container=record.id, exec=exec_id, signal=signal, reach=reach)
        except NotFound:
            raise NotFound("the process has ended") from None
        except DrupeError:
            if signal != 9 or exec_id:
                raise
            await self._pods.kill(pod)  # it hangs, and nothing else ends what it runs

    async def kill_tree(self, task_id: str, signal: int, *, exec_id: str, pid: int) -> None:
        """Pids are the kernel's, which knows who descends from whom."""
        record = self._record(task_id)
        with contextlib.suppress(NotFound):
            await self._signal(record, signal, exec_id, "family")

    # -- ends -------------------------------------------------------------------------------------------------------

    def ended(self, pod: KernelPod, event: Event) -> None:
        """The kernel tells an end."""
        record = self._records.get(event["container"])
        if record is None or record.sandbox != pod.record.id or self._inside.ended(event):
            return
        if not event["exec"]:
            self._soon(self._end_first(record, event["exit"]))
        elif event["exec"] in record.execs:
            self._end_exec(pod, record, event["exec"], exec_status(event["exit"]))

    async def _end_first(self, record: TaskRecord, how: Mapping[str, Any]) -> None:
        """Have the keeper tell it when the output is complete."""
        with contextlib.suppress(DrupeError):
            await self._keeper.end_task(record.id, code=how["code"], signal=how["signal"])

    def _end_exec(self, pod: KernelPod, record: TaskRecord, exec_id: str, status: ExitStatus) -> None:
        record.execs.pop(exec_id, None)
        if record.id in self._records:
            with contextlib.suppress(OSError):
                record.save()
        self._soon(self._forget_exec(pod, record.id, exec_id))
        self._on_exit(TaskExit(task=record.id, exec_id=exec_id, status=status))

    async def _forget_exec(self, pod: KernelPod, task_id: str, exec_id: str) -> None:
        with contextlib.suppress(DrupeError):
            await pod.line.forget(task_id, exec_id)

    def kernel_lost(self, pod: KernelPod) -> None:
        """All that ran in it has ended with it."""
        for record in self.records(pod.record.id):
            if record.exit is not None or not record.started:
                continue
            for exec_id in list(record.execs):
                self._end_exec(pod, record, exec_id, killed(at=time.time()))
            self._soon(self._end_first(record, {"code": 137, "signal": 9}))

    def conclude(self, task_id: str, status: ExitStatus) -> None:
        """Complete what the keeper told of a container's end."""
        record = self._records.get(task_id)
        if record is None:
            return
        pod = self._pods.find(record.sandbox)
        self.mark_oom(task_id, status)
        if pod is not None and pod.record.failed and record.started and status.reason != "OOMKilled":
            status.code, status.signal, status.reason = _LOST_CODE, 0, "Lost"
            status.message = pod.record.failed
        record.exit = status
        with contextlib.suppress(OSError):
            record.save()

    def mark_oom(self, task_id: str, status: ExitStatus) -> None:
        """The host kills whatever of a pod it likes for memory: the kernel, or a process that lends it a space."""
        record = self._records.get(task_id)
        pod = None if record is None else self._pods.find(record.sandbox)
        if record is None or pod is None:
            return
        status.oom_kills = self._cgroups.oom_kills(record.cgroup if record.placed else pod.record.leaf)
        if status.oom_kills and status.code == 137:
            status.reason = "OOMKilled"

    async def told(self) -> None:
        """Until every end that is known was handed on."""
        while self._telling:
            await asyncio.gather(*self._telling, return_exceptions=True)

    def _soon(self, work: Any) -> None:
        self._telling.add(telling := asyncio.ensure_future(work))
        telling.add_done_callback(self._telling.discard)

    def close(self) -> None:
        """Let go of what is held in this process."""
        for telling in self._telling:
            telling.cancel()

    # -- streams ----------------------------------------------------------------------------------------------------

    async def attach(
        self, task_id: str, fds: Mapping[str, int], *, exec_id: str = "", keep_stdin: bool = False
    ) -> Attachment:
        known, early = self._attached.get(task_id, (None, None))
        if early is not None and known is fds:
            del self._attached[task_id]
            return early
        return await super().attach(task_id, fds, exec_id=exec_id, keep_stdin=keep_stdin)

    async def resize(self, task_id: str, rows: int, cols: int, *, exec_id: str = "") -> None:
        record = self._record(task_id)
        if not exec_id and not record.started:
            self._windows[task_id] = (rows, cols)
            return
        line = self._pods.get(record.sandbox).require()
        await line.call("resize", container=task_id, exec=exec_id, rows=rows, cols=cols)

    async def close_stdin(self, task_id: str) -> None:
        """Of a terminal it is a character that is typed."""
        record = self._record(task_id)
        if not record.tty or not record.started:
            await super().close_stdin(task_id)
            return
        await self._pods.get(record.sandbox).require().call("end_input", container=task_id)

    # -- execs ------------------------------------------------------------------------------------------------------

    async def exec(self, config: ExecConfig) -> int:
        record = self._record(config.task)
        if not record.started or record.exit is not None or record.paused:
            raise InvalidState(f"container {config.task} {'is paused' if record.paused else 'does not run'}")
        pod = self._pods.get(record.sandbox)
        line = pod.require()
        record.execs[config.id] = 0
        record.save()
        wanted = process_config(config.process) | {"rows": config.rows or 0, "cols": config.cols or 0}
        wanted["env"] = with_home(wanted["env"], wanted["uid"], pod.share.seen(record.id, _ROOT))
        try:
            with _filled(config.fds) as fds:
                answer = await line.call("exec", container=record.id, exec=config.id, config=wanted, fds=fds)
        except DrupeError as error:
            record.execs.pop(config.id, None)
            record.save()
            raise explain(error, config.process) from None
        pid = int(answer["pid"])
        if config.id in record.execs:
            record.execs[config.id] = pid
            record.save()
        return pid

    # -- limits, counters -------------------------------------------------------------------------------------------

    async def pause(self, task_id: str) -> None:
        """The pod's only container with its kernel, by the host; one of several by the kernel."""
        record = self._record(task_id)
        pod = self._pods.get(record.sandbox)
        if pod.record.sole:
            await self._pods.freeze(pod, pod.record.leaf)
            return
        await pod.require().call("rest", container=task_id)
        record.paused = True
        record.save()

    async def resume(self, task_id: str) -> None:
        record = self._record(task_id)
        pod = self._pods.get(record.sandbox)
        if pod.frozen:
            await self._thaw(pod)
        if record.paused:
            await pod.require().call("go_on", container=task_id)
            record.paused = False
            record.save()

    async def _thaw(self, pod: KernelPod) -> None:
        await self._pods.thaw(pod, pod.record.cgroup, pod.record.leaf)
        await self._pods.go_on(pod)

    async def update(self, task_id: str, resources: Resources) -> None:
        record = self._record(task_id)
        pod = self._pods.get(record.sandbox)
        if pod.record.sole:
            apply_verified(self._cgroups, pod.record.leaf, on_host(resources))
        else:
            await self._ones.change(pod, record, resources)
        if resources.pids is not None:
            record.tasks = tasks_of(resources)
            record.save()
        if resources.memory_bytes is not None and pod.record.sole:
            pod.record.only_memory_bytes = memory_of(resources)
            pod.record.save()
        if record.started and pod.runs and not pod.frozen:
            await pod.line.call("limits", container=record.id, tasks=record.tasks)
            await self._pods.limit(pod)

    async def stats(self, task_id: str) -> Stats:
        """Processes and, of one container among several, time and memory as the kernel counts them; the rest is what
        it costs the host."""
        record = self._record(task_id)
        pod = self._pods.get(record.sandbox)
        alone = bool(pod.record.sole) or not self._others(record)
        stats = self._cgroups.stats(pod.record.leaf) if alone else Stats(at=time.time())
        stats.pids_limit = record.tasks
        if pod.frozen or not record.started:
            stats.pids = max(0, stats.pids - OWN_TASKS)
            return stats
        seen = await pod.require().processes(record.id)
        stats.pids = sum(one["threads"] for one in seen)
        if record.placed:
            own = self._cgroups.stats(record.cgroup)
            stats.memory_usage_bytes, stats.memory_limit_bytes = own.memory_usage_bytes, own.memory_limit_bytes
            stats.memory_working_set_bytes, stats.oom_kills = own.memory_working_set_bytes, own.oom_kills
            stats.cpu_usage_ns = sum(one["cpu_ns"] for one in seen)
        elif not alone:
            stats.cpu_usage_ns = sum(one["cpu_ns"] for one in seen)
            stats.memory_usage_bytes = stats.memory_working_set_bytes = sum(one["rss_bytes"] for one in seen)
        return stats

    def hidden(self, task_id: str) -> Collection[str]:
        record = self._records.get(task_id)
        config = {} if record is None else record.oci()
        return [mount["destination"] for mount in config.get("mounts", ()) if mount.get("type") != "bind"]

    async def pids(self, task_id: str) -> list[int]:
        return [process.pid for process in await self.processes(task_id)]

    async def processes(self, task_id: str) -> list[ProcessInfo]:
        record = self._record(task_id)
        return [process_info(one) for one in await self._pods.get(record.sandbox).require().processes(record.id)]

    # -- inner ------------------------------------------------------------------------------------------------------

    def record_of(self, task_id: str) -> TaskRecord | None:
        return self._records.get(task_id)

    def records(self, sandbox: str) -> Iterator[TaskRecord]:
        """Of the containers of one pod."""
        return iter([record for record in self._records.values() if record.sandbox == sandbox])

    def _record(self, task_id: str) -> TaskRecord:
        try:
            return self._records[task_id]
        except KeyError:
            raise NotFound(f"container {task_id} has no processes here") from None

    def _others(self, record: TaskRecord) -> list[TaskRecord]:
        """Its neighbours that live."""
        return [one for one in self.records(record.sandbox) if one.id != record.id and one.started and not one.exit]


@contextlib.contextmanager
def _filled(fds: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """All three streams; what was not given is /dev/null."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield {name: fds.get(name, null) for name in _STREAMS}
    finally:
        os.close(null)


def exec_status(how: Mapping[str, Any]) -> ExitStatus:
    """A kernel's exit record in our words."""
    return ExitStatus(code=how["code"], signal=how["signal"], at=how["at"], reason="Error" if how["code"] else "")
