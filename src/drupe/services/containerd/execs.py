"""Further processes of tasks: added, started, and given their streams."""

from __future__ import annotations

import contextlib
import json
import secrets

from google.protobuf.any_pb2 import Any as AnyMessage

from drupe.errors import AlreadyExists, InvalidState, NotFound
from drupe.oci.runtime_spec import Process, parse
from drupe.oci.validate import check_process
from drupe.rpc.containerd import task_events_pb2 as events
from drupe.rpc.containerd.task_v2_pb2 import ExecProcessRequest
from drupe.services.containerd import opening
from drupe.services.containerd.records import ExecRecord, Streams
from drupe.services.containerd.stdio import close_streams, hold, stream_id, with_all, writer_seen
from drupe.services.containerd.tasks import Task, Tasks
from drupe.spec.base import check_name
from drupe.spec.container import ExecSpec
from drupe.state.machine import State, require


def add(tasks: Tasks, task: Task, request: ExecProcessRequest) -> None:
    """Remember an exec; nothing runs yet."""
    check_name(request.exec_id, "exec")
    if request.exec_id in task.record.execs:
        raise AlreadyExists(f"task {task.record.id} has an exec {request.exec_id!r}")
    require(task.container.what, task.container.state, State.RUNNING, to="exec")
    process = _process(request.spec)
    process["terminal"] = request.terminal
    planned = secrets.token_hex(8)
    task.record.execs[request.exec_id] = ExecRecord(streams=Streams.of(request), process=process, planned=planned)
    tasks.note(task, "exec-added", events.TaskExecAdded(container_id=task.record.id, exec_id=request.exec_id))


def _process(spec: AnyMessage) -> dict[str, object]:
    """The process of the runtime specification, which containerd sends as JSON."""
    check_process(parse(Process, spec.value, where="exec's spec"), where="exec's spec")
    process: dict[str, object] = json.loads(spec.value)
    return {"user": {"uid": 0, "gid": 0}, "cwd": "/"} | process


async def start(tasks: Tasks, task: Task, exec_id: str) -> int:
    """Run it; returns its host pid."""
    exec_ = task.exec(exec_id)
    if exec_.ours or exec_id in task.starting:
        raise InvalidState(f"exec {exec_id!r} has been started")
    task.starting.add(exec_id)
    try:
        return await _start(tasks, task, exec_id, exec_)
    finally:
        task.starting.discard(exec_id)


async def _start(tasks: Tasks, task: Task, exec_id: str, exec_: ExecRecord) -> int:
    fds = await _open(tasks, task, exec_id, exec_)
    try:
        args = exec_.process["args"]
        spec = ExecSpec(argv=tuple(args), tty=exec_.streams.terminal, rows=exec_.rows, cols=exec_.cols)
        ours, pid = await task.container.execs.start(spec, fds, process=exec_.process, exec_id=exec_.planned)
    finally:
        close_streams(fds)
    note_started(tasks, task, exec_id, ours, pid)
    await _resize_late(task, exec_, ours, spec)
    return pid


def note_started(tasks: Tasks, task: Task, exec_id: str, ours: str, pid: int) -> None:
    """It runs: tell it, and watch it to its end."""
    exec_ = task.exec(exec_id)
    exec_.ours, exec_.pid = ours, pid
    started = events.TaskExecStarted(container_id=task.record.id, exec_id=exec_id, pid=pid)
    tasks.note(task, "exec-started", started)
    tasks.watch_exec(task, exec_id)
    task.note_begun(exec_id)


async def _resize_late(task: Task, exec_: ExecRecord, ours: str, spec: ExecSpec) -> None:
    """Give its terminal the size that came while it was started."""
    if (exec_.rows, exec_.cols) != (spec.rows, spec.cols):
        with contextlib.suppress(NotFound):  # it has ended
            await task.container.tasks.resize(task.container.id, exec_.rows, exec_.cols, exec_id=ours)


async def _open(tasks: Tasks, task: Task, exec_id: str, exec_: ExecRecord) -> dict[str, int]:
    """A process without a terminal has the streams themselves: its input must not wait in vain, nor end too early.

    Who reads a FIFO that nobody writes to reads its end at once. So input for which there is no writer yet is held
    open, until CloseIO or the process's end.
    """
    fds = opening.of_process(tasks, task.record.key, exec_.streams)
    if exec_.streams.terminal:
        return fds
    by_fifo = "stdin" in fds and not stream_id(exec_.streams.stdin)
    try:
        if by_fifo and not await writer_seen(fds["stdin"]) and exec_id not in task.stdin_closed:
            task.stdin_holders[exec_id] = hold(fds["stdin"])
    except BaseException:
        close_streams(fds)
        raise
    return with_all(fds)
