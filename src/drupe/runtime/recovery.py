"""After a restart: journal against what is really there. What lives is taken over, what was half done is finished or
undone, what belongs to nobody is removed, and all of it is said (`Node.notes`, shown by `drupe system info`).

Order matters: rows are read first, then half-made objects are undone (their ids are known), then orphans (what no row
names) are removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

from drupe.errors import DrupeError
from drupe.resources.limits import end_and_remove
from drupe.runtime.container import Container
from drupe.runtime.core import Core
from drupe.runtime.execs import LIMIT
from drupe.runtime.node import Node
from drupe.runtime.pod import Pod
from drupe.runtime.settling import settle_pod
from drupe.sandboxers.contract import SandboxInfo, TaskState
from drupe.spec.base import decode
from drupe.spec.container import ContainerSpec
from drupe.spec.pod import PodSpec
from drupe.spec.status import Choice, ContainerStatus, PodStatus
from drupe.state.journal import Row
from drupe.state.machine import State


async def recover(core: Core) -> None:
    """Bring `core` (empty) to the truth. Errors of single objects are noted, never raised."""
    node = core.node
    pods = _load(node)
    tasks = await _take_over(node, pods)
    named = {key for pod in pods.values() for key in (pod.id, *pod.containers)}
    for pod in pods.values():
        try:
            await settle_pod(core, pod, tasks)
        except DrupeError as error:
            node.note(f"recovery: {pod.what}: {error}")
            pod.fail("recovery", str(error))
    await _remove_tasks(node, {_owner(key) for key in tasks} - named)
    await _remove_orphans(core)


# -- reading ----------------------------------------------------------------------------------------------------------


def _load(node: Node) -> dict[str, Pod]:
    pods = {}
    for row in node.journal.rows("pod"):
        pod = _pod_from(node, row)
        if pod is not None:
            pods[pod.id] = pod
    for row in node.journal.rows("container"):
        container = _container_from(node, row, pods)
        if container is not None:
            container.pod.containers[container.id] = container
    for pod in pods.values():
        ordered = sorted(pod.containers.values(), key=lambda c: c.status.created_at)
        pod.containers = {container.id: container for container in ordered}
    return pods


def _pod_from(node: Node, row: Row) -> Pod | None:
    data = row.data
    try:
        spec = decode(PodSpec, data["spec"], where="journal")
        status = decode(PodStatus, data["status"], where="journal")
        node.sandboxer(data["kind"])
    except (DrupeError, KeyError) as error:
        node.note(f"recovery: pod {row.id} cannot be read ({error}); removed")
        node.journal.remove("pod", row.id)
        return None
    choice = status.choice or Choice(kind=data["kind"], level=node.kinds[data["kind"]].level, asked="", by="built-in")
    pod = Pod(node, id_=row.id, name=status.name, spec=spec, choice=choice)
    pod.status = status
    pod.state = State(row.state)
    status.phase = row.phase
    pod.hostname = status.hostname
    pod.info = SandboxInfo(
        netns=data.get("netns", ""), namespaces=data.get("namespaces", {}), pid=data.get("init_pid", 0)
    )
    pod.auto_stop, pod.held = bool(data.get("auto_stop")), bool(data.get("held"))
    pod.in_one_go = bool(data.get("in_one_go"))
    pod.deadline_at = float(data.get("deadline_at", 0.0))
    return pod


def _container_from(node: Node, row: Row, pods: dict[str, Pod]) -> Container | None:
    try:
        spec = decode(ContainerSpec, row.data["spec"], where="journal")
        status = decode(ContainerStatus, row.data["status"], where="journal")
        pod = pods[status.pod]
    except (DrupeError, KeyError) as error:
        node.note(f"recovery: container {row.id} cannot be read ({error}); removed")
        node.journal.remove("container", row.id)
        return None
    container = Container(node, pod, id_=row.id, name=status.name, spec=spec)
    container.status = status
    container.state = State(row.state)
    status.phase = row.phase
    container.stopping = bool(row.data.get("stopping"))
    with contextlib.suppress(OSError, ValueError):
        container.oci = json.loads((container.bundle / "config.json").read_text())
    node.storage.know(container)
    return container


async def _take_over(node: Node, pods: dict[str, Pod]) -> dict[str, TaskState]:
    found: dict[str, TaskState] = {}
    for kind, sandboxer in node.sandboxers.items():
        mine = {pod.id: pod for pod in pods.values() if pod.kind == kind}
        for pod in mine.values():
            for container in pod.containers.values():
                sandboxer.tasks().know(container.id, cgroup=container.cgroup, bundle=container.bundle)
        states = await sandboxer.recover({pod.id: pod.config for pod in mine.values()})
        owners = {key for pod in mine.values() for key in (pod.id, *pod.containers)}
        # of a task that is not of its kind a sandboxer knows only that it is there
        found |= {key: state for key, state in states.items() if _owner(key) in owners or key not in found}
    return {key: state for key, state in found.items() if not any(kind.holds(key) for kind in node.sandboxers.values())}


# -- what no row names ------------------------------------------------------------------------------------------------


def _owner(task: str) -> str:
    """The container or pod a task belongs to: "ID", "ID.EXEC" or "POD.pause"."""
    return task.partition(".")[0]


async def _remove_tasks(node: Node, owners: set[str]) -> None:
    for owner in owners:
        node.note(f"recovery: task {owner} belongs to no pod; removed")
        for sandboxer in node.sandboxers.values():
            await _quietly(node, sandboxer.tasks().delete(owner))
            await _quietly(node, sandboxer.tasks().delete(f"{owner}.pause"))


async def _remove_orphans(core: Core) -> None:
    node = core.node
    known = {c.id for p in core.pods.values() for c in p.containers.values()}
    for name in _names(node.paths.pods) - set(core.pods):
        node.note(f"recovery: directory of unknown pod {name} removed")
        await _quietly(node, node.storage.remove_pod_directory(node.paths.pod(name)))
    for name in _names(node.paths.root / "containers") - known:
        await _quietly(node, node.storage.remove_tree(node.paths.layer(name)))
    for name in set(node.cgroups.children(node.paths.cgroup)) - set(core.pods):
        node.note(f"recovery: cgroup of unknown pod {name} removed")
        await _quietly(node, asyncio.to_thread(end_and_remove, node.cgroups, f"{node.paths.cgroup}/{name}"))
    execs = {e for pod in core.pods.values() for c in pod.containers.values() for e in c.execs.running()}
    for exec_id in set(node.journal.records(LIMIT)) - execs:
        node.journal.delete_record(LIMIT, exec_id)
    await _quietly(node, node.network.recover(set(core.pods)))
    await _quietly(node, node.storage.recover(known))
    await _quietly(node, core.snapshots.sweep())


async def _quietly(node: Node, work: Any) -> None:
    try:
        await work
    except (DrupeError, OSError) as error:
        node.note(f"recovery: {error}")


def _names(directory: Path) -> set[str]:
    try:
        return {entry.name for entry in directory.iterdir() if entry.is_dir()}
    except OSError:
        return set()
