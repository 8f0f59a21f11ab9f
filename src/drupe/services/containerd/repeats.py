"""Calls that a daemon before this one was asked, and did not answer: what it had done already is answered as done.

What only looks, waits or sets something is simply done again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from drupe.rpc.containerd import task_events_pb2 as events
from drupe.rpc.containerd import task_v2_pb2 as task
from drupe.services.containerd import execs, lives
from drupe.services.containerd.events import stamp
from drupe.services.containerd.tasks import Task
from drupe.spec.status import ExitStatus
from drupe.state.machine import State

if TYPE_CHECKING:
    from drupe.services.containerd.service import TaskService

_ALIVE = (State.READY, State.RUNNING, State.PAUSED)


def done(service: TaskService, method: str, request: Any) -> Message | None:
    """The answer to a call that was carried out; None: do it."""
    if method == "Delete":
        return _deleted(service, request)
    found = service.find(request.id)
    return _DONE[method](service, found, request) if found is not None and method in _DONE else None


def deleted(pid: int, exit_: ExitStatus | None) -> Message:
    """What Delete answers."""
    exit_ = exit_ or ExitStatus(code=0)
    return task.DeleteResponse(pid=pid, exit_status=exit_.code, exited_at=stamp(exit_.at))


def _created(_: TaskService, found: Task, request: task.CreateTaskRequest) -> Message | None:
    return task.CreateTaskResponse(pid=found.record.pid) if found.record.bundle == request.bundle else None


def _started(service: TaskService, found: Task, request: task.StartRequest) -> Message | None:
    if request.exec_id:
        exec_ = found.exec(request.exec_id)
        if not exec_.ours and (pid := found.container.execs.pid(exec_.planned)) is not None:
            execs.note_started(service.tasks, found, request.exec_id, exec_.planned, pid)
        return task.StartResponse(pid=exec_.pid) if exec_.ours else None
    if found.container.state is State.READY:
        return None
    lives.note_started(service.tasks, found)
    return task.StartResponse(pid=found.record.pid)


def _deleted(service: TaskService, request: task.DeleteRequest) -> Message | None:
    if (found := service.find(request.id)) is not None and (
        not request.exec_id or request.exec_id in found.record.execs
    ):
        return None
    grave = service.tasks.graves.find(*service.key(request.id), request.exec_id)
    return deleted(grave.pid, grave.exit) if grave is not None else None


def _added(_: TaskService, found: Task, request: task.ExecProcessRequest) -> Message | None:
    return Empty() if request.exec_id in found.record.execs else None


def _killed(_: TaskService, found: Task, request: task.KillRequest) -> Message | None:
    if request.exec_id:
        exec_ = found.exec(request.exec_id)
        return Empty() if exec_.ours and exec_.exit is not None else None
    return None if found.container.state in _ALIVE else Empty()


def _paused(service: TaskService, found: Task, _: task.PauseRequest) -> Message | None:
    """It may be told twice, but not never."""
    if found.container.state is not State.PAUSED:
        return None
    service.tasks.tell(found, "paused", events.TaskPaused(container_id=found.record.id))
    return Empty()


def _resumed(service: TaskService, found: Task, _: task.ResumeRequest) -> Message | None:
    if found.container.state is not State.RUNNING:
        return None
    service.tasks.tell(found, "resumed", events.TaskResumed(container_id=found.record.id))
    return Empty()


_DONE: dict[str, Callable[[TaskService, Task, Any], Message | None]] = {
    "Create": _created,
    "Start": _started,
    "Exec": _added,
    "Kill": _killed,
    "Pause": _paused,
    "Resume": _resumed,
}
