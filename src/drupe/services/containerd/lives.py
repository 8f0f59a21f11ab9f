"""How tasks are made, started and unmade."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import Message

from drupe.errors import DrupeError, InvalidArgument, InvalidState, NotFound, PermissionDenied
from drupe.rpc.containerd import task_events_pb2 as events
from drupe.rpc.containerd.runc_options_pb2 import CheckpointOptions
from drupe.rpc.containerd.task_v2_pb2 import CheckpointTaskRequest, CreateTaskRequest, ResizePtyRequest
from drupe.rpc.ttrpc.service import parse
from drupe.runtime.container import Container
from drupe.runtime.pod import Pod
from drupe.services.containerd import opening, shares
from drupe.services.containerd.making import Asked, check_ids, check_program, check_target, pod_of, read_request
from drupe.services.containerd.peers import Door, Peer
from drupe.services.containerd.podspecs import fitted
from drupe.services.containerd.records import Grave, Streams, TaskRecord
from drupe.services.containerd.stdio import close_streams, come_and_go
from drupe.services.containerd.tasks import Task, Tasks, deletion
from drupe.services.oci.pods import cgroup_path
from drupe.spec.container import ContainerSpec
from drupe.spec.pod import PodSpec
from drupe.spec.resources import Resources, merged
from drupe.spec.status import ExitStatus
from drupe.state.machine import State

Made = tuple[Container, Resources]


async def create(tasks: Tasks, peer: Peer, door: Door, request: CreateTaskRequest) -> Task:
    """Make a task, in a pod of its own unless its bundle says which it joins."""
    asked = read_request(request)
    pod = tasks.pod(peer.owner, door.namespace, asked.sandbox) if asked.sandbox else None
    if asked.sandbox and pod is None:
        raise NotFound(f"pod {asked.sandbox} of task {request.id} is not here")
    streams = Streams.of(request)
    fds = await opening.of_task(tasks, (peer.key, door.namespace, request.id), streams)
    try:
        with failures_are_plain():
            make = _join(tasks, asked, pod, fds) if pod else _make(tasks, asked, _pod_of(asked, peer, door), fds)
            container, limits = await make
    except BaseException:
        close_streams(fds)
        tasks.forget_streams(peer.key, door.namespace, streams)
        raise
    record = TaskRecord(
        peer=peer.key,
        namespace=door.namespace,
        id=request.id,
        pod=container.pod.id,
        container=container.id,
        bundle=request.bundle,
        streams=streams,
        whole=pod is None,
        pid=container.status.pid or container.pod.info.pid,  # Docker makes the network of what it created, by a process
        limits=limits,
    )
    task = Task(record, container)
    task.fds = fds
    io = events.TaskIO(**streams.plain())
    tasks.note(task, "create", events.TaskCreate(
        container_id=request.id, bundle=request.bundle, rootfs=request.rootfs, io=io,
        checkpoint=request.checkpoint, pid=record.pid,
    ))  # fmt: skip
    tasks.add(task)
    return task


def _pod_of(asked: Asked, peer: Peer, door: Door) -> PodSpec:
    return pod_of(asked, owner=peer.owner, namespace=door.namespace, kind=door.kind)


async def _join(tasks: Tasks, asked: Asked, pod: Pod, fds: dict[str, int]) -> Made:
    await check_program(pod.sandboxer, asked.config)
    check_ids(pod.spec, asked.config)
    check_target(pod.spec, pod.sandboxer, asked.config)
    linux = asked.config.linux
    cgroup = cgroup_path((linux.cgroups_path if linux else "") or "")
    return await _add(tasks, pod, asked.container("" if pod.held else cgroup, pod.spec), fds)


async def _add(tasks: Tasks, pod: Pod, asked: ContainerSpec, fds: dict[str, int]) -> Made:
    """One more container in a pod, and the limits that the pod has for it."""
    spec, limits = shares.split(pod, asked)
    await shares.hold(tasks, pod, limits)
    container = await tasks.core.create_container(pod, spec, fds)
    if spec.bundle is not None and spec.bundle.checkpoint:
        try:
            await container.tasks.go_on_from(container.id, Path(spec.bundle.checkpoint))
        except BaseException:
            await tasks.core.delete_container(container, force=True)
            raise
    return container, limits


async def _make(tasks: Tasks, asked: Asked, spec: PodSpec, fds: dict[str, int]) -> Made:
    spec = await fitted(tasks.core, spec)
    await check_program(tasks.node.sandboxer((await tasks.core.choose(spec)).kind), asked.config)
    check_ids(spec, asked.config)
    made = await tasks.core.create_pod(spec, fds=fds)
    if not asked.makes_pod:
        container = next(iter(made.containers.values()))
        if asked.request.checkpoint:
            await _go_on(tasks, container, Path(asked.request.checkpoint))
        return container, Resources()
    try:  # a pod's first container does nothing; where modules are run it could not
        first, _ = shares.split(made, asked.container("", spec, idle=made.sandboxer.runs_modules))
        return await tasks.core.create_container(made, first, fds), Resources()
    except BaseException:
        await tasks.core.delete_pod(made, force=True)
        raise


async def _go_on(tasks: Tasks, container: Container, checkpoint: Path) -> None:
    try:
        await container.tasks.go_on_from(container.id, checkpoint)
    except BaseException:
        await tasks.core.delete_pod(container.pod, force=True)
        raise


async def start(tasks: Tasks, task: Task) -> int:
    """Run it; returns its host pid."""
    container, pod, record = task.container, task.pod, task.record
    if container.state is not State.READY:
        raise InvalidState(f"task {record.id} is {container.state}: it can be started once")
    fds, task.fds = task.fds, {}
    fds = fds or await opening.of_task(tasks, record.key, record.streams)
    try:
        async with pod.lock:
            if pod.state is State.READY:
                await pod.start(fds)
            else:
                await container.start(fds)
    finally:
        close_streams(fds)
    note_started(tasks, task)
    return record.pid


def note_started(tasks: Tasks, task: Task) -> None:
    """It runs, or has run: tell it, once."""
    record = task.record
    record.pid = task.container.status.pid or record.pid
    if not record.start_told:
        record.start_told = True
        tasks.note(task, "start", events.TaskStart(container_id=record.id, pid=record.pid))


async def delete(tasks: Tasks, task: Task) -> ExitStatus:
    """Remove it, and the pod that was made for it. InvalidState while it lives."""
    container, record = task.container, task.record
    if container.is_live:
        raise InvalidState(f"task {record.id} is {container.state}: it must be stopped to be deleted")
    exit_ = container.status.exit or ExitStatus(code=0)
    if container.status.exit is not None:
        tasks.tell_exit(task, exit_)
    tasks.graves.dig(Grave(key=record.key, exec_id="", pid=record.pid, exit=exit_))
    await remove(tasks, task, deletion(record, exit_))
    return exit_


async def remove(tasks: Tasks, task: Task, told: Message | None = None) -> None:
    """Whatever state it is in. told: the event for its owner."""
    pod = task.pod
    if task.record.whole:
        await tasks.core.delete_pod(pod, force=True)
        for other in tasks.in_pod(pod):
            if other is not task:
                tasks.remove(other)
    else:
        await tasks.core.delete_container(task.container, force=True)
    tasks.remove(task, told)


async def resize(task: Task, request: ResizePtyRequest) -> None:
    """Give a terminal its size; one that is still to come has it from the start."""
    rows, cols = request.height, request.width
    if not rows or not cols:
        return
    ours = ""
    if request.exec_id:
        exec_ = task.exec(request.exec_id)
        exec_.rows, exec_.cols, ours = rows, cols, exec_.ours
        if not ours:
            return
    else:
        task.container.window = (rows, cols)
    await task.container.tasks.resize(task.container.id, rows, cols, exec_id=ours)


async def update(tasks: Tasks, task: Task, resources: Resources) -> None:
    """New limits: of the container, or for it of its pod."""
    if not shares.are_shared(task.pod) or task.record.whole:
        async with task.pod.lock:
            await task.container.update(resources)
        return
    _, more = shares.split(task.pod, ContainerSpec(resources=resources))
    limits = merged(task.record.limits, more)
    await shares.hold(tasks, task.pod, limits, without=task)
    task.record.limits = limits
    task.record.save(tasks.node.journal)


async def close_stdin(tasks: Tasks, task: Task, exec_id: str) -> None:
    """No more input comes. What is there already is read: by who has yet to be started, too."""
    if not exec_id:
        streams = task.record.streams
        opening.end_input(tasks, task.record, streams)
        if streams.terminal:
            with contextlib.suppress(NotFound):  # it has ended
                await task.container.tasks.close_stdin(task.container.id)
        else:
            await asyncio.to_thread(come_and_go, streams.stdin)
        return
    exec_ = task.exec(exec_id)
    opening.end_input(tasks, task.record, exec_.streams)
    task.stdin_closed.add(exec_id)
    if (holder := task.stdin_holders.pop(exec_id, -1)) >= 0:
        close_streams({"stdin": holder})


async def checkpoint(task: Task, request: CheckpointTaskRequest) -> None:
    """Unsupported where the kind cannot. It goes on, unless the options have it end."""
    container = task.container
    container.check_allowed("a checkpoint of", {"checkpoint"})
    if not request.path.startswith("/"):
        raise InvalidArgument(f"checkpoint: {request.path!r} is no absolute path")
    asked = request.options.type_url.endswith(CheckpointOptions.DESCRIPTOR.full_name)
    options = parse(CheckpointOptions, request.options.value if asked else b"")
    async with task.pod.lock:
        await container.tasks.checkpoint(container.id, Path(request.path), words=_words(options))
    if options.exit:
        await container.kill("KILL")


def _words(options: CheckpointOptions) -> list[str]:
    """As containerd's own shim gives them to runc."""
    flags = {
        "--tcp-established": options.open_tcp,
        "--ext-unix-sk": options.external_unix_sockets,
        "--shell-job": options.terminal,
        "--file-locks": options.file_locks,
    }
    words = [flag for flag, asked in flags.items() if asked]
    words += [f"--empty-ns={name}" for name in options.empty_namespaces]
    named = {
        "--manage-cgroups-mode": options.cgroups_mode,
        "--parent-path": options.parent_path,
        "--work-path": options.work_path,
    }
    return words + [f"{flag}={value}" for flag, value in named.items() if value]


@contextlib.contextmanager
def failures_are_plain() -> Iterator[None]:
    """A program that is missing or may not be run is no missing task: callers read it in the text, as runc words it."""
    try:
        yield
    except (NotFound, PermissionDenied) as error:
        code = error.details.get("exit_code")
        words = {"127": "executable file not found in $PATH", "126": "permission denied"}.get(code or "", "")
        if not words:
            raise
        text = f"OCI runtime create failed: {error}" + (f": {error.cause}" if error.cause else "")
        raise DrupeError(text if words in text else f"{text}: {words}", exit_code=code or "") from None
