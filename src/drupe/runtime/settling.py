"""After a restart, pod by pod: what the daemon was in the midst of is finished or taken back.

The journal's phase says which step had begun; whether it was done is asked of the sandboxer (`TaskState`). Afterwards
no object has a phase but one that failed, and everything that watches over running containers watches again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable

from drupe.errors import DrupeError, HelperFailed
from drupe.runtime.container import Container
from drupe.runtime.core import Core
from drupe.runtime.pod import Pod
from drupe.runtime.supervision import should_restart
from drupe.sandboxers.contract import TaskState
from drupe.sandboxers.kept.exits import read_exit_file
from drupe.spec.status import ExitStatus
from drupe.state.machine import State

Tasks = dict[str, TaskState]
_PAUSING = ("pausing", "resuming")
_REMAKING = ("sandbox", "network", "starting")  # steps of a stopped pod's start


async def settle_pod(core: Core, pod: Pod, tasks: Tasks) -> None:
    """Take the pod into `core` in a definite state, or remove it. Its lock keeps what its ends set off waiting."""
    core.adopt(pod)
    async with pod.lock:
        phase = pod.status.phase
        if pod.state is State.CREATING or phase == "deleting":
            await _remove(pod, "half deleted" if phase == "deleting" else "half made")
            return
        lost = not pod.node.storage.holds_namespaces(pod)
        if lost and pod.state is State.PAUSED:  # what is frozen cannot die
            await pod.thaw()
            pod.set_state(State.RUNNING)
        for container in list(pod.containers.values()):
            await _settle_container(container, tasks)
        if _is_half_run(pod):
            await _remove(pod, "half made")
            return
        if lost and pod.state in (State.READY, State.RUNNING):
            await _restart_lost(pod)
        await _settle_phase(pod, phase)
        if pod.spec.remove and pod.state is State.STOPPED:
            await _remove(pod, "to be removed")
            return
        _watch(pod)


async def _remove(pod: Pod, why: str) -> None:
    """Finish a deletion, or take back a creation: both are the same."""
    try:
        await pod.delete()
        pod.node.note(f"recovery: {pod.what} was {why}; removed")
    except HelperFailed as error:
        pod.node.note(f"recovery: {error}")


async def _restart_lost(pod: Pod) -> None:
    """Its namespaces and mounts ended with their keeper: it is stopped, so that a start makes them anew, and started
    if a policy of its containers wants that."""
    pod.node.note(f"recovery: {pod.what} lost its namespaces with the keeper; stopped")
    again = any(should_restart(c) for c in pod.containers.values() if c.state is State.STOPPED)
    await pod.stop(force=True)
    if again and not pod.spec.remove:
        pod.node.spawn(_start(pod), f"start of {pod.what}")


async def _start(pod: Pod) -> None:
    async with pod.lock:
        if pod.state is State.STOPPED:
            await pod.start()


def _is_half_run(pod: Pod) -> bool:
    """`run` promises all or nothing: its pod is removed unless every container was started, and with its last one."""
    fresh = pod.state is State.READY or (pod.state is State.RUNNING and pod.status.phase == "containers")
    half = fresh and not all(c.status.started_at for c in pod.containers.values())
    return (pod.in_one_go and half) or (pod.auto_stop and not pod.containers)


async def _settle_phase(pod: Pod, phase: str) -> None:
    if phase in _PAUSING:  # a pause that was not confirmed is taken back
        await pod.thaw()
        pod.set_state(State.RUNNING)
    elif phase == "stopping" or (phase in _REMAKING and pod.state is State.STOPPED):
        if pod.state is State.STOPPED:
            pod.state = State.RUNNING  # so that stop does its whole work again
        await pod.stop(force=True)
    elif phase == "containers" and pod.state is State.RUNNING:
        try:
            await pod.start_containers()
        except DrupeError as error:
            pod.node.note(f"recovery: {error}")
    elif phase and pod.state is not State.FAILED:
        pod.save()


def _watch(pod: Pod) -> None:
    """Health, time limit, and what was due after an end: a restart, or the end of the pod."""
    if pod.state not in (State.RUNNING, State.PAUSED):
        return
    pod.watch_deadline()
    for container in pod.containers.values():
        if container.is_live:
            pod.container_started(container)
        elif container.state in (State.STOPPED, State.FAILED):
            pod.container_ended(container)


async def end_lost(core: Core, tasks: Callable[[], Awaitable[set[str]]]) -> None:
    """After a change of keeper: end what lived and is not among its `tasks`, as nobody would ever tell its end."""
    containers = [c for pod in core.pods.values() for c in pod.containers.values() if c.is_live]
    execs = [(c, exec_id) for c in containers for exec_id in c.execs.running()]
    known = await tasks()  # asked for last: what starts meanwhile is the new keeper's
    for container, exec_id in execs:
        if f"{container.id}.{exec_id}" not in known:
            container.execs.ended(exec_id, _lost())
    for container in containers:
        if container.id not in known and container.is_live:
            core.node.note(f"{container.what} was lost with its keeper; ended")
            await _end(container)


async def finish_deletions(core: Core) -> None:
    """Delete what could not be removed while there was no keeper."""
    for pod in list(core.pods.values()):
        async with pod.lock:
            if pod.state is State.FAILED and pod.status.phase == "deleting":
                await _remove(pod, "half deleted")
                continue
            for container in list(pod.containers.values()):
                if container.state is State.FAILED and container.status.phase == "deleting":
                    await _remove_container(container)


async def _end(container: Container) -> None:
    with contextlib.suppress(DrupeError):
        await container.tasks.kill(container.id, 9, everything=True)
        if container.pod.state is State.PAUSED:  # what is frozen cannot die
            await container.pod.thaw()
            container.pod.set_state(State.RUNNING)
    container.ended(_recorded_exit(container) or _lost())


# -- containers -------------------------------------------------------------------------------------------------------


async def _settle_container(container: Container, tasks: Tasks) -> None:
    task = tasks.get(container.id)
    if container.state is State.CREATING or container.status.phase == "deleting":
        await _remove_container(container)
    elif container.state is State.READY:
        await _settle_ready(container, task, tasks)
    elif container.state is State.STOPPED:
        await _settle_stopped(container, task, tasks)
    elif container.is_live:
        await _settle_live(container, task, tasks)


async def _remove_container(container: Container) -> None:
    notes = await container.delete()
    if not notes:
        del container.pod.containers[container.id]
    said = "; ".join(notes) or "removed"
    container.node.note(f"recovery: {container.what} was half made or half deleted; {said}")


async def _settle_ready(container: Container, task: TaskState | None, tasks: Tasks) -> None:
    """It may have been started, stopped or killed without our hearing of it."""
    phase = container.status.phase
    if phase == "stopping":
        await container.unmake_task()
        container.set_state(State.STOPPED)
    elif task is None:
        container.status.exit = _recorded_exit(container) or _lost()
        container.set_state(State.STOPPED)
    elif task.started:
        await _settle_started(container, task, tasks)
    elif task.exit is not None:
        container.ended(task.exit)
    elif phase:
        container.save()


async def _settle_stopped(container: Container, task: TaskState | None, tasks: Tasks) -> None:
    """It may have been in the midst of being started again."""
    phase = container.status.phase
    if phase == "starting" and task is not None and task.started:
        await _settle_started(container, task, tasks)
        return
    if task is not None and not task.started:
        await container.unmake_task()
    if phase:
        container.save()


async def _settle_started(container: Container, task: TaskState, tasks: Tasks) -> None:
    container.stopping = False  # that was of the run before
    container.status.started_at = time.time()
    container.status.exit = None
    container.set_state(State.RUNNING)
    await _settle_live(container, task, tasks)


async def _settle_live(container: Container, task: TaskState | None, tasks: Tasks) -> None:
    phase = container.status.phase
    container.stopping = container.stopping or phase == "stopping"
    if task is not None and task.exit is not None:
        _restore_execs(container, tasks)
        container.ended(task.exit)
        return
    if task is None:
        exit_ = _recorded_exit(container) or _lost()
        await container.unmake_task()  # nobody holds its output any more: if it lives, it cannot go on
        container.ended(exit_)
        return
    if phase in _PAUSING:
        await container.tasks.resume(container.id)
        container.state = State.RUNNING
    container.status.pid = task.pid
    container.set_state(container.state)
    container.watch_memory()
    _restore_execs(container, tasks)
    if container.stopping:
        container.node.spawn(_finish_stop(container), f"stop of {container.what}")


async def _finish_stop(container: Container) -> None:
    async with container.pod.lock:
        if container.is_live:
            await container.stop()


def _restore_execs(container: Container, tasks: Tasks) -> None:
    prefix = container.id + "."
    for key, state in tasks.items():
        if key.startswith(prefix):
            container.execs.restore(key.removeprefix(prefix), state.pid, state.exit)


def _recorded_exit(container: Container) -> ExitStatus | None:
    """The keeper writes each end to a file too: it outlives the keeper."""
    return read_exit_file(container.bundle / "exit.json")


def _lost() -> ExitStatus:
    return ExitStatus(code=255, at=time.time(), reason="Lost", message="its end was not seen")
