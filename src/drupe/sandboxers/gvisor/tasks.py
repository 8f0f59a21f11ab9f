"""Containers of gVisor sandboxes.

All of a container is made when it is started: runsc makes and runs it in one go, a program start less. `create` writes
down what is to be made. Whoever attaches in between is joined to the streams before the first byte is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from drupe.errors import (
    AlreadyExists,
    DeadlineExceeded,
    DrupeError,
    HelperFailed,
    InvalidArgument,
    InvalidState,
    NotFound,
    Unsupported,
)
from drupe.keeper.records import Created, Io
from drupe.resources.cgroups import Cgroups
from drupe.resources.limits import apply_verified
from drupe.sandboxers.contract import Attachment, ExecConfig, OnExit, TaskConfig, TaskExit, refuse_words
from drupe.sandboxers.gvisor.command import scored
from drupe.sandboxers.gvisor.config import POD_SPACE, adapted
from drupe.sandboxers.gvisor.ends import from_wait_status, killed, write_exit_file
from drupe.sandboxers.gvisor.execs import GuestExecs
from drupe.sandboxers.gvisor.failures import explain, gone
from drupe.sandboxers.gvisor.pods import GvisorPod, Pods
from drupe.sandboxers.gvisor.processes import family, process_infos
from drupe.sandboxers.gvisor.records import ROOT_ID, TaskRecord, forget_guest, gofer_of, record_path
from drupe.sandboxers.gvisor.roots import check_places, has_tmp
from drupe.sandboxers.gvisor.snapshots import MEMORY, rename, write_memory
from drupe.sandboxers.kept.pending import PendingAttachment
from drupe.sandboxers.kept.tasks import KeptTasks, log_file
from drupe.spec.resources import Resources
from drupe.spec.status import ExitStatus, ProcessInfo, Stats

_WINDOW_CHANGED, _KILL = 28, 9  # signals
_GOFER_ENDS_WITHIN_S = 0.5


class GvisorTasks(KeptTasks):
    """See the contract. A container's record is on disk; in memory are those that wait for something."""

    binds_until: ClassVar[str] = "start"  # a gofer takes them over
    joins_by_pid: ClassVar[bool] = True
    own_numbers: ClassVar[bool] = True

    def __init__(self, *, pods: Pods, cgroups: Cgroups, on_exit: OnExit) -> None:
        super().__init__(keeper=pods.keeper, cgroups=cgroups)
        self._pods = pods
        self._on_exit = on_exit
        self._records: dict[str, TaskRecord] = {}
        self._pending: dict[str, list[PendingAttachment]] = {}
        self._windows: dict[str, tuple[int, int]] = {}
        self._statuses: dict[str, asyncio.Task[int]] = {}  # wait statuses of containers, as their sentries tell them
        self._following: dict[str, asyncio.Task[None]] = {}
        self.execs = GuestExecs(on_exit)

    def know(self, task_id: str, *, cgroup: str, bundle: Path) -> None:
        super().know(task_id, cgroup=cgroup, bundle=bundle)
        record = TaskRecord.read(record_path(bundle))
        if record is not None:
            self._records[task_id] = record

    # -- made, started, unmade ----------------------------------------------------------------------------------

    async def create(self, task: TaskConfig) -> int:
        if task.id in self._records:
            raise AlreadyExists(f"container {task.id} exists already")
        pod = self._pods.get(task.sandbox)
        others = [one for one in self._records.values() if one.sandbox == task.sandbox]
        _check_room(pod, task, others)
        check_places(self._keeper.pid, task.oci)
        first = pod.record.sole
        pid_space = self._pid_space(task, others)
        own_tmp = has_tmp(self._keeper.pid, task.oci["root"]["path"])
        config = adapted(task.oci, pod.record, first=first, pid_space=pid_space, own_tmp=own_tmp)
        (task.bundle / "config.json").write_bytes(msgspec.json.encode(config))
        super().know(task.id, cgroup=task.cgroup, bundle=task.bundle)
        self._records[task.id] = record = _record_of(task, ROOT_ID if first else task.id)
        record.pid_space = pid_space
        record.save()
        self._cgroups.create(task.cgroup, task.resources)
        apply_verified(self._cgroups, task.cgroup, task.resources)
        return 0

    def _pid_space(self, task: TaskConfig, others: list[TaskRecord]) -> str:
        """What the container's process table is called: it is the pod's, its own, or that of a neighbour, which whoever
        asks for it calls by the pid that he was told."""
        path = next((space.get("path", "") for space in task.oci["linux"]["namespaces"] if space["type"] == "pid"), "")
        if path in ("", SHARE):
            return POD_SPACE if path else task.id
        for one in others:
            if one.gofer and path == f"/proc/{one.gofer}/ns/pid":
                return one.pid_space
        raise Unsupported(f"{path} is no process table of this sandbox", kind="gvisor", feature="host-pid")

    async def start(self, task_id: str) -> int:
        record = self._record(task_id)
        if record.started or record.exit is not None:
            raise InvalidState(f"container {task_id} was started before")
        pod = self._pods.get(record.sandbox)
        pending = self._pending.pop(task_id, [])
        try:
            created = await self._launch(pod, record, hold=bool(pending))
            await self._join(record, pending)
        finally:
            for attachment in pending:
                if attachment.waits:
                    attachment.drop()
        self.started(record, created.pid)
        if record.restore:
            await self._restored(pod, record)
        return record.gofer

    def started(self, record: TaskRecord, pid: int) -> None:
        """Its process runs: write that down, and watch over it."""
        pod = self._pods.get(record.sandbox)
        record.started = True
        record.gofer = (gofer_of(pod.state, record.guest) if pod.record.sole else pid) or pid
        record.save()
        self._statuses[record.id] = status = asyncio.ensure_future(pod.sentry.wait(record.guest))
        status.add_done_callback(lambda done: done.cancelled() or done.exception())
        if not pod.record.sole:
            self._following[record.id] = asyncio.ensure_future(self._follow(record, status))

    async def _follow(self, record: TaskRecord, status: asyncio.Future[int]) -> None:
        """A gofer ends with its container, unless the sentry has lost count of who uses the container's files, as it
        does at an exec whose program is missing (MountNamespace.IncRef in control.Proc.execAsync): then we end it."""
        with contextlib.suppress(DrupeError):
            await asyncio.shield(status)
            await asyncio.sleep(_GOFER_ENDS_WITHIN_S)
            await self._keeper.kill(record.id, 9)

    async def _launch(self, pod: GvisorPod, record: TaskRecord, *, hold: bool) -> Created:
        bundle = Path(record.bundle)
        rows, cols = self._windows.pop(record.id, (None, None))
        launch = self._pods.launch_first if pod.record.sole else self._pods.launch
        try:
            return await launch(
                pod,
                record.id,
                self._argv(pod, record),
                cgroup=pod.record.leaf(record.cgroup),
                pidfile=bundle / "pid",
                io=Io(mode="tty", rows=rows, cols=cols) if record.tty else Io(mode="pipes", stdin=record.stdin),
                log=log_file(record.log),
                exit_file=record.exit_file,
                log_file=bundle / "create.log",
                hold=hold,
            )
        except HelperFailed as error:
            await self._undo_start(pod, record)
            raise explain(error, _process_of(bundle)) from None

    def _argv(self, pod: GvisorPod, record: TaskRecord) -> list[str]:
        command, bundle = self._pods.command, Path(record.bundle)
        image = Path(record.restore) if record.restore else None
        if pod.record.sole:
            argv = command.first(pod.record, bundle, tty=record.tty, image=image)
            score = _process_of(bundle).get("oomScoreAdj", 0)
            return scored(score, argv) if score else argv
        return command.add(pod.record, record, image=image)

    def restore_from(self, image: Path, guests: Mapping[str, str]) -> None:
        """Have containers go on from a checkpoint, when they are started. guests: what each is called in it."""
        for task_id, guest in guests.items():
            record = self._record(task_id)
            record.guest, record.restore = guest, str(image)
            record.save()

    async def checkpoint(self, task_id: str, path: Path, *, words: Sequence[str] = ()) -> None:
        record = self._record(task_id)
        refuse_words("gvisor", words)
        pod = self._pods.get(record.sandbox)
        if not pod.record.sole:
            raise _shared(task_id)
        if not record.started or record.exit is not None:
            raise InvalidState(f"container {task_id} does not run")
        (path / MEMORY).unlink(missing_ok=True)  # written over, as CRIU does; runsc would refuse
        if not pod.frozen:
            await write_memory(self._pods, pod, path)
            return
        leaf = pod.record.leaf(record.cgroup)
        await self._thaw(pod, record)
        await write_memory(self._pods, pod, path, lambda: asyncio.to_thread(self._cgroups.freeze, leaf), goes_on=False)
        pod.frozen = True
        self._pods.note_paused(pod, paused=True)

    async def go_on_from(self, task_id: str, path: Path) -> None:
        record = self._record(task_id)
        if not self._pods.get(record.sandbox).record.sole:
            raise _shared(task_id)
        if not (path / MEMORY).is_file():
            raise InvalidArgument(f"{path} holds no checkpoint of gVisor's")
        copy = Path(record.bundle) / "checkpoint"
        await asyncio.to_thread(shutil.copytree, path, copy, dirs_exist_ok=True)
        record.restore = str(copy)
        record.save()

    async def _restored(self, pod: GvisorPod, record: TaskRecord) -> None:
        """The guest goes on once the last of its containers is back; only then it can be given a name."""
        record.restore = ""
        record.save()
        if not any(one.restore for one in self._records.values() if one.sandbox == record.sandbox):
            await rename(pod, record.guest, pod.record.hostname)

    async def _undo_start(self, pod: GvisorPod, record: TaskRecord) -> None:
        """Nothing of a half-made container may stay in the sandbox, nor of a half-made sandbox on the host."""
        if pod.record.sole:
            await self._pods.end(pod, record.id, record.cgroup)
        else:
            with contextlib.suppress(DrupeError):
                await pod.sentry.destroy(record.guest)
            self._end_stray(pod, record)
            forget_guest(pod.state, record.guest)

    def _end_stray(self, pod: GvisorPod, record: TaskRecord) -> None:
        """The gofer of a container whose program is missing: the sentry does not let go of it, and no task has it."""
        for pid in self._cgroups.pids(pod.record.leaf(record.cgroup)):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if words[0] == b"runsc-gofer" and f"--bundle={record.bundle}".encode() in words:
                    os.kill(pid, _KILL)

    async def _join(self, record: TaskRecord, pending: list[PendingAttachment]) -> None:
        for attachment in [one for one in pending if one.waits]:
            real = await super().attach(record.id, attachment.fds, keep_stdin=not attachment.close_stdin)
            attachment.join(real)
        if pending:
            await self._keeper.flow(record.id)

    async def delete(self, task_id: str) -> None:
        for attachment in self._pending.pop(task_id, []):
            attachment.drop()
        record = self._records.pop(task_id, None)
        cgroup = self._cgroup_of.pop(task_id, None)
        bundle = self._bundle_of.pop(task_id, None)
        self._windows.pop(task_id, None)
        if record is not None and (pod := self._pods.find(record.sandbox)) is not None:
            await self._unmake(pod, record)
        else:
            await self._pods.drop_task(task_id)
        for waiting in (self._statuses.pop(task_id, None), self._following.pop(task_id, None)):
            if waiting is not None:
                waiting.cancel()
        if cgroup is not None:
            await asyncio.to_thread(self._drop_cgroup, cgroup)
        for path in [] if bundle is None else [bundle / name for name in ("pid", "create.log", "gvisor.json")]:
            path.unlink(missing_ok=True)
        if bundle is not None:
            await asyncio.to_thread(shutil.rmtree, bundle / "checkpoint", ignore_errors=True)

    async def _unmake(self, pod: GvisorPod, record: TaskRecord) -> None:
        if pod.record.sole:
            await self._pods.end(pod, record.id, record.cgroup)
            return
        if pod.frozen:
            await self._thaw(pod, record)
        if record.started:
            with contextlib.suppress(NotFound, HelperFailed):
                await self._or_kill(pod, record, pod.sentry.destroy(record.guest))
        await self._pods.drop_task(record.id)
        forget_guest(pod.state, record.guest)

    # -- signals ------------------------------------------------------------------------------------------------

    async def kill(self, task_id: str, signal: int, *, exec_id: str = "", everything: bool = False) -> None:
        record = self._record(task_id)
        if record.exit is not None:
            raise NotFound(f"container {task_id} has ended")
        if not record.started:
            self._end_unstarted(record, signal)
            return
        pod = self._pods.get(record.sandbox)
        if exec_id:
            await self.execs.kill(pod.sentry, record, exec_id, signal)
        elif signal == 9 and pod.record.sole:
            await self._pods.kill(pod, record.cgroup)
        else:
            await self._signal(pod, record, signal, everything=everything)

    async def _signal(self, pod: GvisorPod, record: TaskRecord, signal: int, *, everything: bool) -> None:
        if pod.frozen and signal == 9:  # only where nothing else lives in it is that allowed by the runtime
            await self._pods.kill(pod, pod.record.leaf(record.cgroup))
            return
        sent = pod.sentry.signal(record.guest, signal, everything=everything)
        try:
            await (self._or_kill(pod, record, sent) if signal == 9 else sent)
        except HelperFailed as error:
            raise gone(error) from None

    async def _or_kill(self, pod: GvisorPod, record: TaskRecord, request: Any) -> None:
        """A sentry that does not answer is killed with all that it holds: nothing else ends one of its containers."""
        try:
            await request
        except DeadlineExceeded:
            await self._pods.kill(pod, pod.record.leaf(record.cgroup))

    async def kill_tree(self, task_id: str, signal: int, *, exec_id: str, pid: int) -> None:
        record = self._record(task_id)
        sentry = self._pods.get(record.sandbox).sentry
        for child in [pid, *family(await sentry.processes(record.guest), pid)]:
            with contextlib.suppress(NotFound, HelperFailed):
                await sentry.signal(record.guest, signal, pid=child)

    def _end_unstarted(self, record: TaskRecord, signal: int) -> None:
        """What was never started has nothing that could catch a signal."""
        if signal in _HARMLESS:
            return
        self.conclude(record, killed(signal, at=time.time()))
        for attachment in self._pending.pop(record.id, []):
            attachment.drop()
        self._on_exit(TaskExit(task=record.id, exec_id="", status=record.exit or killed(signal, at=time.time())))

    # -- ends ---------------------------------------------------------------------------------------------------

    async def conclude_from(self, task_id: str, status: ExitStatus) -> ExitStatus:
        """The end of a container, from that of the process which stood for it on the host: the sentry where it is the
        sandbox's only one, else its gofer."""
        record = self._records.get(task_id)
        if record is None:
            return status
        if record.exit is not None:
            return record.exit
        pod = self._pods.find(record.sandbox)
        told = None if pod is None else await self._told(pod, record)
        if told is not None:
            status = from_wait_status(told, at=status.at)
        elif pod is not None and not pod.record.sole:
            status = killed(at=status.at)
            status.message = "its sandbox ended"
        elif pod is not None and status.signal and not pod.killed:
            status.message = f"its sandbox was killed by signal {status.signal}"
        self.mark_oom(task_id, status)
        self.conclude(record, status)
        return status

    def conclude(self, record: TaskRecord, status: ExitStatus) -> None:
        """Write an end down."""
        record.exit = status
        with contextlib.suppress(OSError):
            record.save()
            write_exit_file(Path(record.exit_file), record.id, status)

    async def _told(self, pod: GvisorPod, record: TaskRecord) -> int | None:
        """The wait status as the sentry told or tells it; None when it cannot."""
        asked, following = self._statuses.pop(record.id, None), self._following.pop(record.id, None)
        if following is not None:
            following.cancel()
        with contextlib.suppress(DrupeError, TimeoutError, asyncio.CancelledError):
            if asked is not None:
                return await asyncio.wait_for(asked, timeout=1.0)
            return None if pod.record.sole else await pod.sentry.ended(record.guest)
        return None

    def mark_oom(self, task_id: str, status: ExitStatus) -> None:
        """The kernel kills the sentry or a process that lends it an address space: both end the sandbox."""
        record = self._records.get(task_id)
        pod = None if record is None else self._pods.find(record.sandbox)
        if record is None or pod is None:
            return
        status.oom_kills = self._cgroups.oom_kills(pod.record.leaf(record.cgroup))
        if status.oom_kills and status.code:
            status.code, status.signal, status.reason = 137, 9, "OOMKilled"

    # -- streams ------------------------------------------------------------------------------------------------

    async def attach(
        self, task_id: str, fds: Mapping[str, int], *, exec_id: str = "", keep_stdin: bool = False
    ) -> Attachment:
        record = self._record(task_id)
        if exec_id or record.started:
            return await super().attach(task_id, fds, exec_id=exec_id, keep_stdin=keep_stdin)
        attachment = PendingAttachment(fds, close_stdin="stdin" in fds and not keep_stdin)
        self._pending.setdefault(task_id, []).append(attachment)
        return attachment

    async def resize(self, task_id: str, rows: int, cols: int, *, exec_id: str = "") -> None:
        """The sentry learns of another size by the signal only."""
        record = self._record(task_id)
        if not exec_id and not record.started:
            self._windows[task_id] = (rows, cols)
            return
        await super().resize(task_id, rows, cols, exec_id=exec_id)
        pid = self.execs.pid(task_id, exec_id) if exec_id else 0
        with contextlib.suppress(HelperFailed):
            sentry = self._pods.get(record.sandbox).sentry
            await sentry.signal_foreground(record.guest, _WINDOW_CHANGED, pid=pid)

    async def exec(self, config: ExecConfig) -> int:
        record = self._record(config.task)
        if not record.started or record.exit is not None:
            raise InvalidState(f"container {config.task} does not run")
        pod = self._pods.get(record.sandbox)
        if not config.tty:
            return await self.execs.start(pod.sentry, record, config)
        return await self._exec_on_terminal(pod, record, config)

    async def _exec_on_terminal(self, pod: GvisorPod, record: TaskRecord, config: ExecConfig) -> int:
        """By runsc, so that the keeper has the terminal."""
        base = config.dir / f"exec-{config.id}"
        base.with_suffix(".json").write_bytes(msgspec.json.encode(config.process))
        key = self._exec_key(config)
        try:
            await self._pods.launch(
                pod,
                key,
                self._pods.command.exec(pod.record, record.guest, base),
                cgroup=pod.record.leaf(record.cgroup),
                pidfile=base.with_suffix(".pid"),
                io=Io(mode="tty", rows=config.rows, cols=config.cols),
                exit_file=base.with_suffix(".exit"),
                log_file=base.with_suffix(".log"),
                attach=config.fds or None,
            )
            pid = int(base.with_suffix(".inner").read_text())
        except DrupeError as error:
            self.forget_exec(key)
            raise explain(error, config.process) if isinstance(error, HelperFailed) else error from None
        finally:
            for suffix in (".json", ".pid", ".log", ".inner"):
                base.with_suffix(suffix).unlink(missing_ok=True)
        self.execs.note(record, config.id, pid)
        return pid

    # -- limits, counters ---------------------------------------------------------------------------------------

    async def pause(self, task_id: str) -> None:
        pod, leaf = self._whole(self._record(task_id), "pause", "its containers can only be paused together")
        await asyncio.to_thread(self._cgroups.freeze, leaf)
        pod.frozen = True

    async def resume(self, task_id: str) -> None:
        record = self._record(task_id)
        await self._thaw(self._pods.get(record.sandbox), record)

    async def _thaw(self, pod: GvisorPod, record: TaskRecord) -> None:
        await asyncio.to_thread(self._cgroups.thaw, pod.record.cgroup)
        await asyncio.to_thread(self._cgroups.thaw, pod.record.leaf(record.cgroup))
        pod.frozen = False
        if pod.record.paused:
            await pod.sentry.call("containerManager.Resume")
            self._pods.note_paused(pod, paused=False)

    async def update(self, task_id: str, resources: Resources) -> None:
        _, leaf = self._whole(self._record(task_id), "container-limits", "its containers share one kernel")
        apply_verified(self._cgroups, leaf, resources)

    async def stats(self, task_id: str) -> Stats:
        """Processes are the sandbox's; the rest is what it costs the host."""
        record = self._record(task_id)
        pod = self._pods.get(record.sandbox)
        if pod.record.sole or not self._others(record):
            stats = self._cgroups.stats(pod.record.leaf(record.cgroup))
        else:
            stats = _shared_stats(await pod.sentry.counters(record.guest), record.guest)
        if not pod.frozen:
            stats.pids = len(await pod.sentry.processes(record.guest))
        return stats

    def hidden(self, task_id: str) -> Collection[str]:
        record = self._records.get(task_id)
        config = {} if record is None else json.loads((Path(record.bundle) / "config.json").read_text())
        return [mount["destination"] for mount in config.get("mounts", ()) if mount.get("type") != "bind"]

    async def pids(self, task_id: str) -> list[int]:
        return [process.pid for process in await self.processes(task_id)]

    async def processes(self, task_id: str) -> list[ProcessInfo]:
        record = self._record(task_id)
        return process_infos(await self._pods.get(record.sandbox).sentry.processes(record.guest))

    # -- inner --------------------------------------------------------------------------------------------------

    def record_of(self, task_id: str) -> TaskRecord | None:
        """What is known of a container."""
        return self._records.get(task_id)

    def records(self) -> Iterator[TaskRecord]:
        """Of all containers."""
        return iter(list(self._records.values()))

    def _record(self, task_id: str) -> TaskRecord:
        try:
            return self._records[task_id]
        except KeyError:
            raise NotFound(f"container {task_id} has no processes here") from None

    def _others(self, record: TaskRecord) -> list[TaskRecord]:
        """Its neighbours that live."""
        return [
            one
            for one in self._records.values()
            if one.sandbox == record.sandbox and one.id != record.id and one.started and one.exit is None
        ]

    def _whole(self, record: TaskRecord, feature: str, why: str) -> tuple[GvisorPod, str]:
        """The sandbox of a container that is alone in it, and its cgroup. Unsupported when it is not."""
        pod = self._pods.get(record.sandbox)
        if self._others(record):
            raise Unsupported(
                f"container {record.id} shares its gVisor sandbox with others",
                kind="gvisor",
                feature=feature,
                cause=why,
                hint="do it to the pod",
            )
        return pod, pod.record.leaf(record.cgroup)


SHARE = "drupe:pod"  # what `create` finds as the path of a PID namespace that the pod's containers share
_HARMLESS = (0, 17, 18, 23, 28)  # signals that do nothing by default: CHLD, CONT, URG, WINCH


def _check_room(pod: GvisorPod, task: TaskConfig, others: list[TaskRecord]) -> None:
    if pod.record.sole and others:
        raise Unsupported(
            "a gVisor pod that was made for one container takes no further one",
            kind="gvisor",
            feature="multi-container",
            cause="its sandbox ends with that container",
            hint="name all containers when the pod is made, or make it empty",
        )
    if not pod.record.sole and task.resources != Resources():
        raise Unsupported(
            "the containers of a gVisor pod cannot be limited one by one",
            kind="gvisor",
            feature="container-limits",
            cause="they share one kernel",
            hint="limit the pod",
        )


def _shared(task_id: str) -> Unsupported:
    return Unsupported(
        f"container {task_id} shares its gVisor sandbox with others",
        kind="gvisor",
        feature="checkpoint",
        cause="they share one kernel, whose memory is one",
        hint="snapshot the pod",
    )


def _record_of(task: TaskConfig, guest: str) -> TaskRecord:
    return TaskRecord(
        id=task.id,
        sandbox=task.sandbox,
        cgroup=task.cgroup,
        bundle=str(task.bundle),
        tty=task.tty,
        stdin=task.stdin,
        log=task.log,
        exit_file=str(task.exit_file),
        guest=guest,
    )


def _process_of(bundle: Path) -> dict[str, Any]:
    process: dict[str, Any] = json.loads((bundle / "config.json").read_text())["process"]
    return process


def _shared_stats(counters: dict[str, Any], guest: str) -> Stats:
    """What the sentry can tell of one container among several: processor time and, of all together, memory."""
    data = counters["event"]["data"]
    usage = int(counters.get("containerUsage", {}).get(guest, 0))
    memory = int(data["memory"]["usage"].get("usage", 0))
    return Stats(at=time.time(), cpu_usage_ns=usage, memory_usage_bytes=memory, memory_working_set_bytes=memory)
