"""Containers of machines: made and run by the guest's agent, their output pulled from it.

`create` shows the machine what the container needs of the host and writes down what is to be made; `start` makes it,
when the machine runs for sure.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
from google.protobuf.any_pb2 import Any as AnyMessage

from drupe.errors import AlreadyExists, DrupeError, HelperFailed, InvalidState, NotFound
from drupe.hypervisors.contract import Hypervisor
from drupe.keeper.client import Keeper
from drupe.resources.cgroups import Cgroups
from drupe.rpc.containerd import task_v3_pb2 as tasks_pb
from drupe.rpc.guest import guest_pb2 as pb
from drupe.sandboxers.contract import Attachment, ExecConfig, OnExit, TaskConfig, TaskExit, TaskService, TaskState
from drupe.sandboxers.vm import counters, devices, memory, roots
from drupe.sandboxers.vm.attachments import VmAttachment
from drupe.sandboxers.vm.ends import killed, lost, of_event, of_state, with_machine, write_exit_file
from drupe.sandboxers.vm.failures import explain, gone
from drupe.sandboxers.vm.machines import Machines
from drupe.sandboxers.vm.oci import adapted, brings
from drupe.sandboxers.vm.options import VmOptions
from drupe.sandboxers.vm.phases import Phases
from drupe.sandboxers.vm.pods import VmPod
from drupe.sandboxers.vm.records import VMM, TaskRecord, record_path
from drupe.sandboxers.vm.resizing import fit
from drupe.sandboxers.vm.roots import RootDisk
from drupe.sandboxers.vm.snapshots import SavedTask, moved, thaw
from drupe.sandboxers.vm.streams import Streams
from drupe.spec.resources import Resources, merged
from drupe.spec.status import ExitStatus, ProcessInfo, Stats

_STREAM = "agent"
_SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/{}"
_UNPLUGS_WITHIN_S = 5.0
_HARMLESS = (0, 17, 18, 23, 28)  # signals that do nothing by default: CHLD, CONT, URG, WINCH


class VmTasks(TaskService):
    """See the contract. A container's record is on disk; in memory are its streams."""

    own_numbers: ClassVar[bool] = True

    def __init__(
        self, *, keeper: Keeper, machines: Machines, cgroups: Cgroups, on_exit: OnExit, options: VmOptions
    ) -> None:
        self._options = options
        self._keeper = keeper
        self._machines = machines
        self._cgroups = cgroups
        self._on_exit = on_exit
        self._records: dict[str, TaskRecord] = {}
        self._cgroup_of: dict[str, str] = {}
        self._streams: dict[tuple[str, str], Streams] = {}
        self._windows: dict[str, tuple[int, int]] = {}
        self._oom_kills: dict[str, int] = {}
        self._frozen: dict[str, set[str]] = {}  # containers of restored machines that were not started yet
        self._ending: dict[tuple[str, str], asyncio.Task[None]] = {}

    def know(self, task_id: str, *, cgroup: str, bundle: Path) -> None:
        self._cgroup_of[task_id] = cgroup
        record = TaskRecord.read(record_path(bundle))
        if record is not None:
            self._records[task_id] = record

    def knows(self, task_id: str) -> bool:
        return task_id in self._records

    # -- made, started, unmade --------------------------------------------------------------------------------------

    async def create(self, task: TaskConfig) -> int:
        if task.id in self._records:
            raise AlreadyExists(f"container {task.id} exists already")
        pod = self._machines.get(task.sandbox)
        devices.wanted(task.oci, task.id)  # refused before anything is made
        record = TaskRecord(
            id=task.id, sandbox=task.sandbox, cgroup=task.cgroup, bundle=str(task.bundle), tty=task.tty,
            stdin=task.stdin, log=task.log, exit_file=str(task.exit_file), guest=task.id, resources=task.resources,
            root=roots.RootOf.task(task),
        )  # fmt: skip
        known, shares = memory.take(pod.record, record, task.memory), pod.record.shares
        given = await pod.share.add(task.id, task.oci, known) if shares else ("/", roots.binds_of(task.oci, known))
        config = adapted(task.oci, guest=record.guest, root=given[0], binds=given[1])
        (task.bundle / "config.json").write_bytes(msgspec.json.encode(task.oci))
        (task.bundle / "guest.json").write_bytes(msgspec.json.encode(config))
        self._records[task.id], self._cgroup_of[task.id] = record, task.cgroup
        record.save()
        self._streams[task.id, ""] = self._streams_of(pod, record)
        return 0

    def _streams_of(self, pod: VmPod, record: TaskRecord, exec_id: str = "", *, tty: bool | None = None) -> Streams:
        is_tty = record.tty if tty is None else tty
        log = None if exec_id else record.log
        place = Path(record.bundle) / f"streams{exec_id and '-' + exec_id}.json"
        return Streams(pod.agent, record.guest, exec_id, tty=is_tty, log=log, place=place)

    async def start(self, task_id: str) -> int:
        record = self._record(task_id)
        pod = self._machines.get(record.sandbox)
        if task_id in self._frozen.get(record.sandbox, ()):
            return await self._go_on(pod, task_id)
        if record.started or record.exit is not None:
            raise InvalidState(f"container {task_id} was started before")
        pod.require()
        process = _process_of(record)
        phases, began = Phases(pod.record.phases_ms), time.monotonic()
        try:
            await self.fit(pod, grow_only=True)
            await self._make(pod, record)
            if (window := self._windows.pop(task_id, None)) is not None and record.tty:
                await self._resize(pod, record, "", *window)
            record.started = True  # before it is: its end may be told first
            record.save()
            await pod.agent.task("Start", tasks_pb.StartRequest(id=record.guest))
        except DrupeError as error:
            record.started = False
            await self._unmake(pod, record)
            await devices.unplug(pod, _oci_of(record), record.guest)
            raise explain(error, process) from None
        phases.since("container", began)
        streams, ready = self._streams[task_id, ""], time.monotonic()
        streams.on_first = lambda: phases.since("output", ready)
        streams.begin()
        return pod.pids.get(VMM, 0)

    async def restored(self, pod: VmPod, saved: Mapping[str, SavedTask]) -> None:
        """Have containers be those of a saved machine: they stand still until the last of them is started."""
        for task_id, one in saved.items():
            record = self._record(task_id)
            roots.remove_own(record.disks)
            record.guest, record.pid, record.made, record.started = one.guest, one.pid, True, True
            record.disks = [moved(disk, pod.record.home) for disk in one.disks]
            record.save()
            self._streams[task_id, ""].forget()
            streams = self._streams[task_id, ""] = self._streams_of(pod, record)
            streams.skip(one.offsets)
        self._frozen[pod.record.id] = set(saved)

    async def _go_on(self, pod: VmPod, task_id: str) -> int:
        """The start of a container that was restored."""
        frozen = self._frozen[pod.record.id]
        self._streams[task_id, ""].begin()
        frozen.discard(task_id)
        if not frozen:
            del self._frozen[pod.record.id]
            await thaw(pod)
        return pod.pids.get(VMM, 0)

    def require_saveable(self, pod: VmPod) -> None:
        """Unsupported for a machine with a container that has disks of the host: two machines would write to them."""
        for record in self.records(pod.record.id):
            devices.require_none(_oci_of(record), record.guest)

    def cold_disks(self, pod: VmPod) -> list[RootDisk]:
        """The roots that a machine must have from its start, as its program adds none later."""
        able = self._hypervisor(pod).abilities_of(pod.record.machine_type)["hotplug-disk"]
        return roots.cold(pod.record, able, list(self.records(pod.record.id)))

    def _hypervisor(self, pod: VmPod) -> Hypervisor:
        return self._machines.hypervisors.of(pod.record.hypervisor)

    def offsets(self, task_id: str) -> dict[str, int]:
        """How many bytes of each output of a container were taken."""
        return self._streams[task_id, ""].offsets()

    async def _make(self, pod: VmPod, record: TaskRecord) -> None:
        """In the guest: bundle, then task."""
        if record.made:
            return
        await memory.mount(pod, record.memory)
        config = await self._with_devices(pod, record)
        bundle = pb.PutBundleRequest(id=record.guest, config_json=config)
        if not pod.record.shares:
            record.disks = await self._machines.roots.make(record.id, record.root, pod.record.home)
            for disk in record.disks:
                await pod.plug(disk)
            only = json.loads(config)["root"].get("readonly", False)
            hypervisor, machine = self._hypervisor(pod), pod.record.machine()
            roots.plan(bundle, record.disks, read_only=only, serial=lambda disk: hypervisor.serial(disk, machine))
        put = await pod.agent.guest("PutBundle", bundle, pb.PutBundleResponse)
        record.made = True
        record.save()
        request = tasks_pb.CreateTaskRequest(
            id=record.guest, bundle=put.bundle, terminal=record.tty,
            stdin=_STREAM if record.stdin or record.tty else "", stdout=_STREAM, stderr="" if record.tty else _STREAM,
        )  # fmt: skip
        record.pid = (await pod.agent.task("Create", request, tasks_pb.CreateTaskResponse)).pid

    async def _with_devices(self, pod: VmPod, record: TaskRecord) -> bytes:
        """Its config for the guest, with the names that its disks have there; they are plugged in."""
        config = json.loads((Path(record.bundle) / "guest.json").read_bytes())
        await devices.plug(pod, _oci_of(record), config, record.guest)
        return msgspec.json.encode(devices.settled(config))

    async def _unmake(self, pod: VmPod, record: TaskRecord) -> None:
        """Nothing of a container may stay in the guest."""
        if not record.made:
            return
        with contextlib.suppress(DrupeError):
            await pod.agent.task("Kill", tasks_pb.KillRequest(id=record.guest, signal=9, all=True))
        with contextlib.suppress(DrupeError):
            await self._delete_in_guest(pod, record)
        record.made = False
        record.note()

    async def _delete_in_guest(self, pod: VmPod, record: TaskRecord) -> None:
        """Its death may take the guest a moment."""
        deadline = time.monotonic() + 5.0
        while True:
            try:
                await pod.agent.task("Delete", tasks_pb.DeleteRequest(id=record.guest), tasks_pb.DeleteResponse)
                return
            except InvalidState:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.02)

    async def delete(self, task_id: str) -> None:
        record = self._records.pop(task_id, None)
        self._cgroup_of.pop(task_id, None)
        self._windows.pop(task_id, None)
        self._oom_kills.pop(task_id, None)
        for frozen in self._frozen.values():
            frozen.discard(task_id)
        for key in [key for key in self._streams if key[0] == task_id]:
            self._streams.pop(key).forget()
            if (ending := self._ending.pop(key, None)) is not None:
                ending.cancel()
        if record is None:
            return
        pod = self._machines.find(record.sandbox)
        if pod is not None:
            if pod.machine is not None and not pod.record.failed and not pod.record.paused:
                with contextlib.suppress(DrupeError):
                    await pod.agent.task("Resume", tasks_pb.ResumeRequest(id=record.guest))
                await self._unmake(pod, record)
            await self._drop_root(pod, record)
        for path in Path(record.bundle).glob("streams*.json"):
            path.unlink(missing_ok=True)
        for name in ("vm.json", "guest.json"):
            (Path(record.bundle) / name).unlink(missing_ok=True)

    async def _drop_root(self, pod: VmPod, record: TaskRecord) -> None:
        if pod.machine is not None and not pod.record.paused and record.started:
            await devices.unplug(pod, _oci_of(record), record.guest)
        if pod.record.shares:
            await pod.share.drop(record.id)
            return
        for disk in (disk for disk in record.disks if not disk.image):  # an image's serves others
            with contextlib.suppress(DrupeError):  # its file goes anyhow
                await pod.unplug(disk, timeout_s=_UNPLUGS_WITHIN_S)
        roots.remove_own(record.disks)

    # -- execs ------------------------------------------------------------------------------------------------------

    async def exec(self, config: ExecConfig) -> int:
        record = self._record(config.task)
        if not record.started or record.exit is not None:
            raise InvalidState(f"container {config.task} does not run")
        pod = self._machines.get(record.sandbox)
        pod.require()
        streams = self._streams[record.id, config.id] = self._streams_of(pod, record, config.id, tty=config.tty)
        streams.attach(config.fds, close_stdin=not config.tty)
        spec = AnyMessage(type_url=_SPEC_TYPE.format("Process"), value=msgspec.json.encode(config.process))
        request = tasks_pb.ExecProcessRequest(
            id=record.guest, exec_id=config.id, terminal=config.tty, spec=spec,
            stdin=_STREAM, stdout=_STREAM, stderr="" if config.tty else _STREAM,
        )  # fmt: skip
        try:
            await pod.agent.task("Exec", request)
            record.execs[config.id] = 0
            record.note()
            start = tasks_pb.StartRequest(id=record.guest, exec_id=config.id)
            pid = (await pod.agent.task("Start", start, tasks_pb.StartResponse)).pid
            if config.tty and config.rows and config.cols:
                with contextlib.suppress(DrupeError):
                    await self._resize(pod, record, config.id, config.rows, config.cols)
        except DrupeError as error:
            await self._forget_exec(pod, record, config.id)
            raise explain(error, config.process) from None
        record.execs[config.id] = pid
        record.note()
        streams.begin()
        return int(pid)

    async def _forget_exec(self, pod: VmPod, record: TaskRecord, exec_id: str) -> None:
        record.execs.pop(exec_id, None)
        if record.id in self._records:
            record.note()
        if (streams := self._streams.pop((record.id, exec_id), None)) is not None:
            streams.forget()
        with contextlib.suppress(DrupeError):
            request = tasks_pb.DeleteRequest(id=record.guest, exec_id=exec_id)
            await pod.agent.task("Delete", request, tasks_pb.DeleteResponse)

    # -- signals ----------------------------------------------------------------------------------------------------

    async def kill(self, task_id: str, signal: int, *, exec_id: str = "", everything: bool = False) -> None:
        record = self._record(task_id)
        if record.exit is not None:
            raise NotFound(f"container {task_id} has ended")
        if not record.started:
            self._end_unstarted(record, signal)
            return
        if exec_id and exec_id not in record.execs:
            raise NotFound(f"container {task_id} has no exec {exec_id} now")
        pod = self._machines.get(record.sandbox)
        request = tasks_pb.KillRequest(id=record.guest, exec_id=exec_id, signal=signal, all=everything)
        try:
            await pod.agent.task("Kill", request)
        except (InvalidState, HelperFailed, NotFound) as error:
            raise gone(error) from None

    def _end_unstarted(self, record: TaskRecord, signal: int) -> None:
        """What was never started has nothing that could catch a signal."""
        if signal in _HARMLESS:
            return
        self._conclude(record, killed(signal, at=time.time()))

    async def kill_tree(self, task_id: str, signal: int, *, exec_id: str, pid: int) -> None:
        """Pids are the guest's, where the agent knows who descends from whom."""
        with contextlib.suppress(NotFound):
            await self.kill(task_id, signal, exec_id=exec_id, everything=True)

    # -- ends -------------------------------------------------------------------------------------------------------

    def ended(self, event: pb.Exit, pod: VmPod) -> None:
        """The agent tells an end, or tells it again: take the rest of the output, then tell it on."""
        record = self._by_guest(pod, event.id)
        if record is None or (not event.exec_id and not record.ends_with(event.pid)):
            return
        if event.exec_id and event.exec_id not in record.execs:
            return
        self._tell_later(record, event.exec_id, of_event(event))

    def out_of_memory(self, event: pb.Oom, pod: VmPod) -> None:
        """The guest's kernel has killed for memory."""
        record = self._by_guest(pod, event.id)
        if record is not None:
            self._oom_kills[record.id] = self._oom_kills.get(record.id, 0) + 1

    def _tell_later(self, record: TaskRecord, exec_id: str, status: ExitStatus) -> None:
        key = (record.id, exec_id)
        if key not in self._ending:
            self._ending[key] = asyncio.ensure_future(self._tell(record, exec_id, status))

    async def _tell(self, record: TaskRecord, exec_id: str, status: ExitStatus) -> None:
        streams = self._streams.get((record.id, exec_id))
        try:
            if not exec_id:
                await self._tell_execs(record)
            if streams is not None:
                await streams.finish()
        finally:
            self._ending.pop((record.id, exec_id), None)
        if exec_id:
            pod = self._machines.find(record.sandbox)
            self._on_exit(TaskExit(task=record.id, exec_id=exec_id, status=status))
            if pod is not None:
                await self._forget_exec(pod, record, exec_id)
            return
        status.oom_kills = max(status.oom_kills, self._oom_kills.get(record.id, 0))
        self._conclude(record, status)

    async def _tell_execs(self, record: TaskRecord) -> None:
        """The kernel ends them with their container; their ends are told before its own."""
        waiting = [task for key, task in self._ending.items() if key[0] == record.id and key[1]]
        if waiting:
            await asyncio.wait(waiting, timeout=1.0)

    def _conclude(self, record: TaskRecord, status: ExitStatus) -> None:
        """Write an end down, and tell it."""
        record.exit = status
        with contextlib.suppress(OSError):
            record.save()
            write_exit_file(Path(record.exit_file), record.id, status)
        self._on_exit(TaskExit(task=record.id, exec_id="", status=status))

    def machine_ended(self, pod: VmPod, cause: str = "") -> None:
        """All that ran in a machine ends with it. cause: why it is lost; "" when it was ended: its agent may lie."""
        for record in self.records(pod.record.id):
            for exec_id in list(record.execs):
                self._tell_later(record, exec_id, with_machine(cause))
            if record.started and record.exit is None:
                self._tell_later(record, "", with_machine(cause))

    # -- recovery ---------------------------------------------------------------------------------------------------

    async def recover_one(self, pod: VmPod, record: TaskRecord, *, lives: bool) -> dict[str, TaskState]:
        """What is there of a container and its execs. A container that a lost machine ran is told to have ended."""
        if record.exit is not None:
            return {record.id: TaskState(record.id, 0, started=True, exit=record.exit)}
        if not record.started:
            self._streams[record.id, ""] = self._streams_of(pod, record)
            return {record.id: TaskState(record.id, 0, started=False, exit=None)}
        if not lives:
            status = lost(pod.record.failed or "the machine ended while nobody looked")
            return {record.id: TaskState(record.id, 0, started=True, exit=status)}
        end = await self.recovered(pod, record)
        found = {record.id: TaskState(record.id, pod.pids[VMM], started=True, exit=end)}
        for exec_id, pid in list(record.execs.items()) if end is None else ():
            if (state := await self.recovered_exec(pod, record, exec_id, pid)) is not None:
                found[state.id] = state
        return found

    async def recovered(self, pod: VmPod, record: TaskRecord) -> ExitStatus | None:
        """Go on with a container that an earlier daemon started; its end, if that has come."""
        state = tasks_pb.StateRequest(id=record.guest)
        found = await pod.agent.task("State", state, tasks_pb.StateResponse)
        streams = self._streams[record.id, ""] = self._streams_of(pod, record)
        streams.begin()
        if found.status != counters.STOPPED:
            return None
        await streams.finish()
        record.exit = of_state(found)
        record.save()
        write_exit_file(Path(record.exit_file), record.id, record.exit)
        return record.exit

    async def recovered_exec(self, pod: VmPod, record: TaskRecord, exec_id: str, pid: int) -> TaskState | None:
        """The same of an exec; None when the guest does not know it."""
        state = tasks_pb.StateRequest(id=record.guest, exec_id=exec_id)
        key = f"{record.id}.{exec_id}"
        try:
            found = await pod.agent.task("State", state, tasks_pb.StateResponse)
        except NotFound:
            record.execs.pop(exec_id, None)
            return None
        if found.status == counters.STOPPED:
            await self._forget_exec(pod, record, exec_id)
            return TaskState(key, pid, started=True, exit=of_state(found))
        streams = self._streams[record.id, exec_id] = self._streams_of(pod, record, exec_id, tty=found.terminal)
        streams.begin()
        return TaskState(key, pid, started=True, exit=None)

    # -- streams ----------------------------------------------------------------------------------------------------

    async def attach(
        self, task_id: str, fds: Mapping[str, int], *, exec_id: str = "", keep_stdin: bool = False
    ) -> Attachment:
        self._record(task_id)
        streams = self._streams.get((task_id, exec_id))
        if streams is None:
            raise NotFound(f"container {task_id} has no process {exec_id or 'now'}")
        attachment: VmAttachment = streams.attach(fds, close_stdin="stdin" in fds and not keep_stdin)
        return attachment

    async def resize(self, task_id: str, rows: int, cols: int, *, exec_id: str = "") -> None:
        record = self._record(task_id)
        if not exec_id and not record.started:
            self._windows[task_id] = (rows, cols)
            return
        await self._resize(self._machines.get(record.sandbox), record, exec_id, rows, cols)

    async def _resize(self, pod: VmPod, record: TaskRecord, exec_id: str, rows: int, cols: int) -> None:
        request = tasks_pb.ResizePtyRequest(id=record.guest, exec_id=exec_id, width=cols, height=rows)
        await pod.agent.task("ResizePty", request)

    async def close_stdin(self, task_id: str) -> None:
        await self._streams_for(task_id).feed(b"", close=True)

    def _streams_for(self, task_id: str) -> Streams:
        self._record(task_id)
        try:
            return self._streams[task_id, ""]
        except KeyError:
            raise NotFound(f"container {task_id} has no streams now") from None

    # -- limits, counters -------------------------------------------------------------------------------------------

    async def pause(self, task_id: str) -> None:
        pod, record = self._live(task_id)
        await pod.agent.task("Pause", tasks_pb.PauseRequest(id=record.guest))

    async def resume(self, task_id: str) -> None:
        """One that stood still with its whole pod goes on by that: the guest knows of no pause."""
        pod, record = self._live(task_id)
        with contextlib.suppress(InvalidState):
            await pod.agent.task("Resume", tasks_pb.ResumeRequest(id=record.guest))

    async def update(self, task_id: str, resources: Resources) -> Sequence[str]:
        """In the guest; one that is not started yet has them from its start. The machine grows before its container
        does, and gives back what no container may use any more."""
        record, pod = self._record(task_id), self._machines.get(self._record(task_id).sandbox)
        limits = self._cgroups.resources_to_oci(resources)
        before, record.resources = record.resources, merged(record.resources, resources)
        try:
            await self.fit(pod, grow_only=True)
            if record.made:
                value = AnyMessage(type_url=_SPEC_TYPE.format("LinuxResources"), value=msgspec.json.encode(limits))
                await pod.agent.task("Update", tasks_pb.UpdateTaskRequest(id=record.guest, resources=value))
            else:
                self._update_unmade(record, limits)
        except BaseException:
            record.resources = before
            raise
        record.save()
        return await self.fit(pod)

    async def fit(
        self, pod: VmPod, containers: Sequence[Resources] | None = None, *, grow_only: bool = False
    ) -> Sequence[str]:
        """Have a machine be as its pod and containers are limited now; answers, in words, what could not be had."""
        limits = [one.resources for one in self.records(pod.record.id)] if containers is None else containers
        return await fit(pod, self._hypervisor(pod), limits, self._options, grow_only=grow_only)

    def _update_unmade(self, record: TaskRecord, limits: Mapping[str, Any]) -> None:
        path = Path(record.bundle) / "guest.json"
        config = json.loads(path.read_bytes())
        given = config["linux"].get("resources", {})
        for name, values in limits.items():
            given[name] = {**given.get(name, {}), **values} if isinstance(values, dict) else values
        config["linux"]["resources"] = given
        path.write_bytes(msgspec.json.encode(config))

    async def stats(self, task_id: str) -> Stats:
        pod, record = self._live(task_id)
        answer = await pod.agent.task("Stats", tasks_pb.StatsRequest(id=record.guest), tasks_pb.StatsResponse)
        return counters.stats_of(answer.stats)

    async def pids(self, task_id: str) -> list[int]:
        return [process.pid for process in await self.processes(task_id)]

    async def processes(self, task_id: str) -> list[ProcessInfo]:
        pod, record = self._live(task_id)
        request = pb.ProcessesRequest(id=record.guest)
        answer = await pod.agent.guest("Processes", request, pb.ProcessesResponse)
        return [counters.process_info(one) for one in answer.processes]

    def apart(self) -> Collection[str]:
        living = [record for record in self.all_records() if record.started and record.exit is None]
        return {record.id for record in living} | {
            f"{record.id}.{exec_id}" for record in living for exec_id in record.execs
        }

    def hidden(self, task_id: str) -> Collection[str]:
        record = self._records.get(task_id)
        if record is None:
            return ()
        pod = self._machines.find(record.sandbox)
        if pod is not None and not pod.record.shares:
            return ("/",)
        config = json.loads((Path(record.bundle) / "config.json").read_text())
        return [mount["destination"] for mount in config.get("mounts", ()) if not brings(mount)]

    # -- inner ------------------------------------------------------------------------------------------------------

    def records(self, sandbox: str) -> Iterator[TaskRecord]:
        """Those of one machine."""
        return iter([record for record in self._records.values() if record.sandbox == sandbox])

    def all_records(self) -> Iterator[TaskRecord]:
        return iter(list(self._records.values()))

    def close(self) -> None:
        """Let go of all; they go on."""
        for ending in self._ending.values():
            ending.cancel()
        for streams in self._streams.values():
            streams.drop()

    def _by_guest(self, pod: VmPod, guest: str) -> TaskRecord | None:
        return next((record for record in self.records(pod.record.id) if record.guest == guest), None)

    def _record(self, task_id: str) -> TaskRecord:
        try:
            return self._records[task_id]
        except KeyError:
            raise NotFound(f"container {task_id} has no processes here") from None

    def _live(self, task_id: str) -> tuple[VmPod, TaskRecord]:
        """A container that the guest knows. InvalidState for another."""
        record = self._record(task_id)
        pod = self._machines.get(record.sandbox)
        pod.require()
        if not record.made:
            raise InvalidState(f"container {task_id} is not started yet")
        return pod, record


def _oci_of(record: TaskRecord) -> dict[str, Any]:
    """Its config.json as the host has it."""
    oci: dict[str, Any] = json.loads((Path(record.bundle) / "config.json").read_text())
    return oci


def _process_of(record: TaskRecord) -> dict[str, Any]:
    process: dict[str, Any] = _oci_of(record)["process"]
    return process
