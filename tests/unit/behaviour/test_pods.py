"""Pods: create, start, run, stop, pause, resume, delete, status, list, and the moves between their states."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from drupe.errors import (
    AlreadyExists,
    HelperFailed,
    InvalidArgument,
    InvalidState,
    InvalidTransition,
    NotFound,
)
from drupe.runtime.pod import Pod
from drupe.spec import ContainerSpec, PodSpec
from drupe.spec.control import ListFilter
from drupe.state.machine import State
from framework.bench import Bench

CREATING, READY, RUNNING, PAUSED, STOPPED, FAILED, DELETED = State


async def test_create_makes_everything_and_runs_nothing(bench: Bench) -> None:
    pod = await bench.create("sleep 60")
    (container,) = pod.containers.values()
    assert (pod.state, container.state) == (READY, READY)
    assert set(bench.world.sandboxes) == {pod.id} and set(bench.world.tasks) == {container.id}
    assert not bench.world.tasks[container.id].started
    assert bench.storage.mounted == {container.id} and bench.storage.shm == {pod.id}
    assert pod.status.endpoints[0].ipv4 == "10.0.0.2/24"
    assert [e.action for e in bench.events()] == ["create", "create"]


async def test_a_pod_may_be_empty(bench: Bench) -> None:
    pod = await bench.start()
    assert (pod.state, pod.containers) == (RUNNING, {})
    await bench.core.create_container(pod, ContainerSpec(image="busybox", argv=("true",)))
    assert len(pod.containers) == 1


async def test_run_is_create_and_start(bench: Bench) -> None:
    pod = await bench.run("sleep 60", "sleep 60")
    assert pod.state is RUNNING
    assert [c.state for c in pod.containers.values()] == [RUNNING, RUNNING]


async def test_start_stop_start_again(bench: Bench) -> None:
    pod = await bench.start("patient")
    (container,) = pod.containers.values()
    async with pod.lock:
        await pod.stop()
        assert (pod.state, container.state, container.status.exit.code) == (STOPPED, STOPPED, 0)
        assert not bench.world.sandboxes and not bench.network.attached
        await pod.start()
    assert (pod.state, container.state, container.status.exit) == (RUNNING, RUNNING, None)


@pytest.mark.parametrize("force", [False, True])
async def test_stop_twice_is_fine(bench: Bench, force: bool) -> None:
    pod = await bench.start("patient")
    async with pod.lock:
        await pod.stop(force=force)
        await pod.stop(force=force)
    assert pod.state is STOPPED
    assert len(bench.events("pod", "stop")) == 1


async def test_stop_kills_what_ignores_the_signal(bench: Bench) -> None:
    pod = await bench.start("stubborn")
    async with pod.lock:
        await pod.stop(timeout_s=0.01)
    (container,) = pod.containers.values()
    assert (container.status.exit.code, container.status.exit.signal) == (137, 9)


async def test_stop_of_a_ready_pod(bench: Bench) -> None:
    pod = await bench.create("sleep 60")
    async with pod.lock:
        await pod.stop()
    assert pod.state is STOPPED
    assert not bench.world.tasks


async def test_stop_of_a_paused_pod(bench: Bench) -> None:
    pod = await bench.start("patient")
    async with pod.lock:
        await pod.pause()
        await pod.stop()
    (container,) = pod.containers.values()
    assert (pod.state, container.state) == (STOPPED, STOPPED)


async def test_pause_and_resume_hold_the_whole_pod(bench: Bench) -> None:
    pod = await bench.start("sleep 60", "sleep 60")
    async with pod.lock:
        await pod.pause()
        assert [pod.state, *(c.state for c in pod.containers.values())] == [PAUSED] * 3
        await pod.resume()
    assert [pod.state, *(c.state for c in pod.containers.values())] == [RUNNING] * 3


async def to_ready(bench: Bench) -> Pod:
    return await bench.create("patient")


async def to_running(bench: Bench) -> Pod:
    return await bench.start("patient")


async def to_paused(bench: Bench) -> Pod:
    pod = await bench.start("patient")
    await pod.pause()
    return pod


async def to_stopped(bench: Bench) -> Pod:
    pod = await bench.start("patient")
    await pod.stop()
    return pod


async def to_failed(bench: Bench) -> Pod:
    pod = await bench.create("patient", "no-such-program")
    with pytest.raises(NotFound):
        await pod.start()
    return pod


MAKE = {READY: to_ready, RUNNING: to_running, PAUSED: to_paused, STOPPED: to_stopped, FAILED: to_failed}

# from, call, to (None: refused)
CALLS: list[tuple[State, str, State | None]] = [
    (READY, "start", RUNNING),
    (RUNNING, "start", None),
    (PAUSED, "start", None),
    (STOPPED, "start", RUNNING),
    (FAILED, "start", None),
    (READY, "pause", None),
    (RUNNING, "pause", PAUSED),
    (PAUSED, "pause", None),
    (STOPPED, "pause", None),
    (FAILED, "pause", None),
    (READY, "resume", None),
    (RUNNING, "resume", None),
    (PAUSED, "resume", RUNNING),
    (STOPPED, "resume", None),
    (FAILED, "resume", None),
    (READY, "stop", STOPPED),
    (RUNNING, "stop", STOPPED),
    (PAUSED, "stop", STOPPED),
    (STOPPED, "stop", STOPPED),
    (FAILED, "stop", FAILED),
]


@pytest.mark.parametrize(("old", "call", "new"), CALLS, ids=lambda value: str(value))
async def test_moves(bench: Bench, old: State, call: str, new: State | None) -> None:
    pod = await MAKE[old](bench)
    act: Callable[[], Awaitable[None]] = getattr(pod, call)
    if new is None:
        with pytest.raises(InvalidState):
            await act()
        assert pod.state is old
    else:
        await act()
        assert pod.state is new


@pytest.mark.parametrize("old", MAKE)
async def test_delete_from_all_but_running(bench: Bench, old: State) -> None:
    pod = await MAKE[old](bench)
    if old is RUNNING:
        with pytest.raises(InvalidState, match="cannot move from running to deleted"):
            await bench.core.delete_pod(pod)
        return
    await bench.core.delete_pod(pod)
    assert (pod.state, bench.core.pods, bench.left()) == (DELETED, {}, {})
    assert pod.gone.is_set()


@pytest.mark.parametrize("old", MAKE)
async def test_forced_delete_from_any_state(bench: Bench, old: State) -> None:
    pod = await MAKE[old](bench)
    await bench.core.delete_pod(pod, force=True)
    await bench.core.delete_pod(pod, force=True)
    assert (pod.state, bench.left()) == (DELETED, {})
    assert len(bench.events("pod", "destroy")) == 1


async def test_ready_to_paused_is_refused_by_name(bench: Bench) -> None:
    pod = await bench.create("sleep 60")
    with pytest.raises(InvalidTransition) as caught:
        await pod.pause()
    assert caught.value.details == {"from": "ready", "to": "paused"}
    assert "task.pause" not in bench.faults.calls and "pause" not in bench.faults.calls


async def test_a_failed_start_keeps_cause_and_phase(bench: Bench) -> None:
    pod = await to_failed(bench)
    first, second = pod.containers.values()
    assert (first.state, second.state) == (STOPPED, FAILED)
    assert pod.status.phase == "starting" and "no-such-program" in pod.status.cause
    assert second.status.exit.code == 127 and second.status.exit.reason == "StartError"
    assert bench.events("pod", "fail")[0].attributes["cause"] == pod.status.cause
    assert not bench.world.sandboxes and not bench.network.attached


async def test_a_failed_run_leaves_nothing(bench: Bench) -> None:
    with pytest.raises(NotFound) as caught:
        await bench.run("sleep 60", "no-such-program")
    assert caught.value.details["exit_code"] == "127"
    assert (bench.core.pods, bench.left()) == ({}, {})


async def test_not_executable_is_126(bench: Bench) -> None:
    from drupe.errors import PermissionDenied

    with pytest.raises(PermissionDenied) as caught:
        await bench.run("plain-file")
    assert caught.value.details["exit_code"] == "126"


async def test_a_sandbox_that_does_not_stop_is_noted_and_the_pod_still_deletable(bench: Bench) -> None:
    pod = await bench.start("patient")
    bench.faults.fail("stop")
    with pytest.raises(HelperFailed):
        await pod.stop()
    await bench.core.delete_pod(pod, force=True)
    assert bench.left() == {}


async def test_delete_that_fails_keeps_a_failed_pod_that_can_be_deleted_again(bench: Bench) -> None:
    pod = await bench.create("sleep 60")
    bench.faults.fail("network.detach", times=2)  # delete stops first
    with pytest.raises(HelperFailed, match="is not fully removed") as caught:
        await bench.core.delete_pod(pod)
    assert caught.value.stage == "delete" and "network:" in caught.value.cause
    assert (pod.state, pod.status.phase) == (FAILED, "deleting")
    assert bench.core.pods == {pod.id: pod}
    await bench.core.delete_pod(pod)
    assert bench.left() == {}


async def test_status_tells_spec_state_and_containers(bench: Bench) -> None:
    pod = await bench.create("sleep 60", name="web", labels={"a": "b"}, annotations={"k": "v"}, hostname="h")
    status = pod.record()
    assert (status.id, status.name, status.namespace, status.sandbox) == (pod.id, "web", "default", "fake")
    assert (status.state, status.hostname, status.labels, status.annotations) == ("ready", "h", {"a": "b"}, {"k": "v"})
    (container,) = status.containers
    assert (container.name, container.state, container.image) == ("web", "ready", "busybox")
    assert container.argv == ["sleep", "60"]
    await pod.start()
    assert pod.record().state == "running" and pod.record().containers[0].started_at > 0


async def test_reading_has_no_side_effects(bench: Bench) -> None:
    pod = await bench.run("sleep 60")
    before = len(bench.faults.calls), len(bench.events())
    bench.core.list_pods(ListFilter())
    bench.core.list_containers(ListFilter())
    pod.record()
    assert (len(bench.faults.calls), len(bench.events())) == before


async def test_list(bench: Bench) -> None:
    assert bench.core.list_pods(ListFilter()) == []
    a = await bench.create("sleep 60", name="a", labels={"app": "x"})
    b = await bench.run("sleep 60", name="b", labels={"app": "y", "new": ""}, namespace="other")

    def names(**wanted: object) -> list[str]:
        return [p.name for p in bench.core.list_pods(ListFilter(**wanted))]

    assert names() == ["a", "b"]
    assert names(states=("running",)) == ["b"] and names(states=("ready", "running")) == ["a", "b"]
    assert names(labels=("app",)) == ["a", "b"] and names(labels=("app=x",)) == ["a"] and names(labels=("no",)) == []
    assert names(labels=("app=y", "new")) == ["b"] and names(namespace="other") == ["b"]
    (container,) = bench.core.list_containers(ListFilter(pod="other/b"))
    assert container.pod == b.id
    assert [c.pod for c in bench.core.list_containers(ListFilter(states=("ready",)))] == [a.id]


async def test_two_creates_of_one_name_one_wins(bench: Bench) -> None:
    results = await asyncio.gather(*(bench.create("sleep 60", name="web") for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(r, Pod) for r in results) == 1
    assert sum(isinstance(r, AlreadyExists) for r in results) == 4


async def test_a_pod_id_is_unique(bench: Bench) -> None:
    await bench.create("sleep 60", id="p1")
    with pytest.raises(AlreadyExists, match="id p1 exists"):
        await bench.create("sleep 60", id="p1")


async def test_many_at_once_do_not_disturb_each_other(bench: Bench) -> None:
    pods = await asyncio.gather(*(bench.run("exit 3" if n % 2 else "sleep 60") for n in range(50)))
    for number, pod in enumerate(pods):
        (container,) = pod.containers.values()
        if number % 2:
            assert (await bench.end_of(container)).code == 3
        else:
            assert container.is_live


async def test_concurrent_stop_and_delete(bench: Bench) -> None:
    pod = await bench.start("stubborn")

    async def stop() -> None:
        async with pod.lock:
            await pod.stop(timeout_s=0.01)

    await asyncio.gather(stop(), stop(), bench.core.delete_pod(pod, force=True), stop())
    assert (pod.state, bench.left()) == (DELETED, {})


@pytest.mark.usefixtures("planned")
async def test_an_unknown_kind_and_an_absent_one(bench: Bench) -> None:
    from drupe.errors import InvalidArgument, Unsupported

    with pytest.raises(InvalidArgument, match="unknown sandbox kind 'jail'"):
        await bench.core.create_pod(PodSpec(sandbox="jail"))
    with pytest.raises(Unsupported, match="'someday' is not built in this version"):
        await bench.core.create_pod(PodSpec(sandbox="someday"))
    assert (await bench.core.create_pod(PodSpec(sandbox="auto"))).kind == "fake"


async def test_ids_name_one_thing_only(bench: Bench) -> None:
    """Layers, cgroups and tasks are kept by id: two things of one id would take each other's away."""
    first = await bench.core.create_pod(PodSpec(id="p1", containers=(ContainerSpec(id="c1", image="busybox"),)))
    for pod_id, container_id in (("p1", "c2"), ("p2", "c1"), ("p2", "p1"), ("c1", "c2"), ("p2", "p2")):
        with pytest.raises(AlreadyExists, match="id"):
            await bench.core.create_pod(
                PodSpec(id=pod_id, containers=(ContainerSpec(id=container_id, image="busybox"),))
            )
    with pytest.raises(AlreadyExists, match="id"):
        await bench.core.create_container(first, ContainerSpec(id="p1", image="busybox"))
    assert list(bench.core.pods) == ["p1"]


@pytest.mark.parametrize("id_", ["a.b", "x\n", "..", "a/b", "", "ns", "pause", "hosts", "x" * 129])
async def test_ids_that_would_name_something_else_are_refused(bench: Bench, id_: str) -> None:
    with pytest.raises(InvalidArgument, match="id"):
        await bench.core.create_pod(PodSpec(containers=(ContainerSpec(id=id_ or " ", image="busybox"),)))


@pytest.mark.parametrize("name", ["x\n", "a/b", " ", "x\0"])
async def test_names_and_namespaces_are_plain(bench: Bench, name: str) -> None:
    with pytest.raises(InvalidArgument, match="pod name"):
        await bench.core.create_pod(PodSpec(name=name))
    with pytest.raises(InvalidArgument, match="namespace name"):
        await bench.core.create_pod(PodSpec(namespace=name))
