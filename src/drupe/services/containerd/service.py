"""`containerd.task.v2.Task` and `.v3.Task`: each call, for the tasks of one namespace of a containerd.

Messages of the two versions are the same on the wire; they are read as v2's.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from drupe.errors import AlreadyExists, InvalidState, NotFound
from drupe.oci.limits import resources_of
from drupe.oci.runtime_spec import LinuxResources, parse
from drupe.rpc.containerd import runc_options_pb2 as runc
from drupe.rpc.containerd import task_events_pb2 as events
from drupe.rpc.containerd import task_pb2 as words
from drupe.rpc.containerd import task_v2_pb2 as task
from drupe.rpc.ttrpc import Call, Method, Services, unary
from drupe.services.containerd import execs, lives, repeats
from drupe.services.containerd.events import packed, stamp
from drupe.services.containerd.metrics import metrics
from drupe.services.containerd.peers import Door, Peer
from drupe.services.containerd.records import Grave
from drupe.services.containerd.tasks import Task, Tasks
from drupe.state.machine import State

NAMES = ("containerd.task.v2.Task", "containerd.task.v3.Task")
_STATUS = {
    State.CREATING: words.CREATED,
    State.READY: words.CREATED,
    State.RUNNING: words.RUNNING,
    State.PAUSED: words.PAUSED,
    State.STOPPED: words.STOPPED,
    State.FAILED: words.STOPPED,
    State.DELETED: words.STOPPED,
}
Serve = Callable[["TaskService", Any], Awaitable[Message]]


class TaskService:
    """The tasks of one containerd's namespace."""

    def __init__(self, tasks: Tasks, peer: Peer, door: Door) -> None:
        self.tasks = tasks
        self.peer = peer
        self.door = door

    def services(self) -> Services:
        """For a ttrpc server."""
        methods = {name: _method(self, name, request, serve) for name, (request, serve) in _METHODS.items()}
        return dict.fromkeys(NAMES, methods)

    def key(self, id_: str) -> tuple[str, str, str]:
        """Of a task of that name."""
        return (self.peer.key, self.door.namespace, id_)

    def find(self, id_: str) -> Task | None:
        return self.tasks.find(*self.key(id_))

    def task(self, id_: str) -> Task:
        """NotFound."""
        if (found := self.find(id_)) is None:
            raise NotFound(f"task {id_} not found")
        return found


def _method(service: TaskService, name: str, request: type[Message], serve: Serve) -> Method:
    """What changes something goes on to its end, though its caller has gone or waits no longer."""

    async def handler(call: Call, message: Any) -> Message:
        if serve in _LOOKING:
            return await serve(service, message)
        if call.again and (answer := repeats.done(service, name, message)) is not None:
            return answer
        work = asyncio.ensure_future(serve(service, message))
        service.tasks.working(work)
        return await asyncio.shield(work)

    return unary(request, handler)


# -- its life ---------------------------------------------------------------------------------------------------------


async def create(service: TaskService, request: task.CreateTaskRequest) -> Message:
    if service.find(request.id) is not None:
        raise AlreadyExists(f"task {request.id} already exists")
    made = await lives.create(service.tasks, service.peer, service.door, request)
    return task.CreateTaskResponse(pid=made.record.pid)


async def start(service: TaskService, request: task.StartRequest) -> Message:
    found = service.task(request.id)
    with lives.failures_are_plain():
        if request.exec_id:
            return task.StartResponse(pid=await execs.start(service.tasks, found, request.exec_id))
        return task.StartResponse(pid=await lives.start(service.tasks, found))


async def delete(service: TaskService, request: task.DeleteRequest) -> Message:
    """InvalidState for what lives, as runc's shim has it."""
    found = service.task(request.id)
    if request.exec_id:
        exec_ = found.exec(request.exec_id)
        if request.exec_id in found.starting or (exec_.ours and exec_.exit is None):
            raise InvalidState(f"exec {request.exec_id!r} runs")
        grave = Grave(key=found.record.key, exec_id=request.exec_id, pid=exec_.pid, exit=exec_.exit)
        service.tasks.graves.dig(grave)
        del found.record.execs[request.exec_id]
        found.stdin_closed.discard(request.exec_id)
        found.note_begun(request.exec_id)
        service.tasks.forget_streams(service.peer.key, service.door.namespace, exec_.streams)
        found.record.save(service.tasks.node.journal)
        return repeats.deleted(exec_.pid, exec_.exit)
    exit_ = await lives.delete(service.tasks, found)
    return repeats.deleted(found.record.pid, exit_)


async def wait(service: TaskService, request: task.WaitRequest) -> Message:
    """Held until the end; of an exec that is not started, too."""
    found = service.task(request.id)
    if request.exec_id:
        exec_ = found.exec(request.exec_id)
        if not exec_.ours:
            await found.exec_begun(request.exec_id)
        exit_ = exec_.exit or await found.container.execs.wait(exec_.ours)
    else:
        exit_ = await found.container.wait()
    return task.WaitResponse(exit_status=exit_.code, exited_at=stamp(exit_.at))


async def shutdown(service: TaskService, request: task.ShutdownRequest) -> Message:
    """This daemon serves others too."""
    return Empty()


# -- looking ----------------------------------------------------------------------------------------------------------


async def state(service: TaskService, request: task.StateRequest) -> Message:
    """Of a task or an exec: cheap, as containerd asks often."""
    found = service.task(request.id)
    record = found.record
    if request.exec_id:
        exec_ = found.exec(request.exec_id)
        status = words.CREATED if not exec_.ours else words.RUNNING if exec_.exit is None else words.STOPPED
        pid, streams, exit_ = exec_.pid, exec_.streams, exec_.exit
    else:
        status, pid, streams = _STATUS[found.container.state], record.pid, record.streams
        exit_ = found.container.status.exit if status == words.STOPPED else None
    ended: dict[str, Any] = {} if exit_ is None else {"exit_status": exit_.code, "exited_at": stamp(exit_.at)}
    return task.StateResponse(
        id=record.id, bundle=record.bundle, pid=pid, status=status, exec_id=request.exec_id, **streams.plain(), **ended
    )


async def pids(service: TaskService, request: task.PidsRequest) -> Message:
    """The host's, as `docker top` looks them up there: of a kernel of its own the process that runs it. Never empty
    while it lives: containerd takes a task without processes for one that leaked."""
    found = service.task(request.id)
    tasks = found.container.tasks
    numbers = await tasks.pids(found.container.id) if found.live and not tasks.own_numbers else []
    if not numbers and found.container.state in (State.READY, State.RUNNING, State.PAUSED):
        numbers = [found.record.pid]
    owners = {exec_.pid: exec_id for exec_id, exec_ in found.record.execs.items() if exec_.ours and exec_.exit is None}
    infos = []
    for pid in numbers:
        details = runc.ProcessDetails(exec_id=owners[pid]) if pid in owners else None
        infos.append(words.ProcessInfo(pid=pid, info=packed(details) if details else None))
    return task.PidsResponse(processes=infos)


async def stats(service: TaskService, request: task.StatsRequest) -> Message:
    found = service.task(request.id)
    counted = await found.container.stats()
    return task.StatsResponse(stats=metrics(counted, version=service.tasks.node.cgroups.version))


async def connect(service: TaskService, request: task.ConnectRequest) -> Message:
    found = service.find(request.id)
    return task.ConnectResponse(shim_pid=os.getpid(), task_pid=found.record.pid if found else 0, version="v3")


# -- acting -----------------------------------------------------------------------------------------------------------


async def kill(service: TaskService, request: task.KillRequest) -> Message:
    """NotFound for what has ended, as runc's shim has it."""
    found = service.task(request.id)
    container = found.container
    if request.exec_id:
        exec_ = found.exec(request.exec_id)
        if not exec_.ours or exec_.exit is not None:
            raise NotFound(f"exec {request.exec_id!r}: process already finished")
        await container.execs.kill(exec_.ours, request.signal)
        return Empty()
    if container.state not in (State.READY, State.RUNNING, State.PAUSED):
        raise NotFound(f"task {request.id}: process already finished")
    try:
        await container.kill(str(request.signal), everything=request.all)
    except InvalidState as error:
        if container.is_live:
            raise
        raise NotFound(f"task {request.id}: process already finished") from error
    return Empty()


async def pause(service: TaskService, request: task.PauseRequest) -> Message:
    found = service.task(request.id)
    async with found.pod.lock:
        await found.container.pause()
    service.tasks.tell(found, "paused", events.TaskPaused(container_id=request.id))
    return Empty()


async def resume(service: TaskService, request: task.ResumeRequest) -> Message:
    found = service.task(request.id)
    async with found.pod.lock:
        await found.container.resume()
    service.tasks.tell(found, "resumed", events.TaskResumed(container_id=request.id))
    return Empty()


async def checkpoint(service: TaskService, request: task.CheckpointTaskRequest) -> Message:
    found = service.task(request.id)
    await lives.checkpoint(found, request)
    event = events.TaskCheckpointed(container_id=request.id, checkpoint=request.path)
    service.tasks.tell(found, "checkpointed", event)
    return Empty()


async def exec_(service: TaskService, request: task.ExecProcessRequest) -> Message:
    execs.add(service.tasks, service.task(request.id), request)
    return Empty()


async def resize(service: TaskService, request: task.ResizePtyRequest) -> Message:
    await lives.resize(service.task(request.id), request)
    return Empty()


async def close_io(service: TaskService, request: task.CloseIORequest) -> Message:
    if request.stdin:
        await lives.close_stdin(service.tasks, service.task(request.id), request.exec_id)
    return Empty()


async def update(service: TaskService, request: task.UpdateTaskRequest) -> Message:
    found = service.task(request.id)
    limits = parse(LinuxResources, request.resources.value, where="update")
    await lives.update(service.tasks, found, resources_of(limits))
    return Empty()


_METHODS: dict[str, tuple[type[Message], Serve]] = {
    "State": (task.StateRequest, state),
    "Create": (task.CreateTaskRequest, create),
    "Start": (task.StartRequest, start),
    "Delete": (task.DeleteRequest, delete),
    "Pids": (task.PidsRequest, pids),
    "Pause": (task.PauseRequest, pause),
    "Resume": (task.ResumeRequest, resume),
    "Checkpoint": (task.CheckpointTaskRequest, checkpoint),
    "Kill": (task.KillRequest, kill),
    "Exec": (task.ExecProcessRequest, exec_),
    "ResizePty": (task.ResizePtyRequest, resize),
    "CloseIO": (task.CloseIORequest, close_io),
    "Update": (task.UpdateTaskRequest, update),
    "Wait": (task.WaitRequest, wait),
    "Stats": (task.StatsRequest, stats),
    "Connect": (task.ConnectRequest, connect),
    "Shutdown": (task.ShutdownRequest, shutdown),
}
_LOOKING = (state, pids, stats, connect, wait)
