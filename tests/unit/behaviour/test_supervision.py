"""What follows an end: restart policies, health, the pod's deadline, automatic stop and removal. Nobody sleeps here."""

from __future__ import annotations

import time

import pytest

from drupe.errors import HelperFailed
from drupe.runtime import health, supervision
from drupe.runtime.container import Container
from drupe.runtime.pod import Pod
from drupe.spec import Choice, ContainerSpec, ExitStatus, HealthCheck, RestartPolicy
from drupe.state.machine import State
from framework.bench import Bench, Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time in supervision and health stands still until `tick`."""
    clock = Clock()
    monkeypatch.setattr(supervision, "asyncio", clock)
    monkeypatch.setattr(health, "asyncio", clock)
    return clock


def only(pod: Pod) -> Container:
    (container,) = pod.containers.values()
    return container


async def restarted(bench: Bench, clock: Clock, container: Container, times: int) -> None:
    """Let it end and be started again."""
    for _ in range(times):
        await bench.until(lambda: container.restart_at)
        before = container.status.restarts
        clock.tick()
        await bench.until(lambda: container.status.restarts == before + 1)  # noqa: B023 used at once


# -- restart policies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "program", "again"),
    [
        ("no", "exit 1", False),
        ("no", "true", False),
        ("on-failure", "true", False),
        ("on-failure", "exit 1", True),
        ("always", "true", True),
        ("always", "exit 1", True),
        ("unless-stopped", "true", True),
    ],
)
async def test_policies(bench: Bench, clock: Clock, policy: str, program: str, again: bool) -> None:
    pod = await bench.start(program, container={"restart": RestartPolicy(name=policy)})
    await bench.until(lambda: only(pod).status.exit)
    await bench.settle()
    assert bool(only(pod).restart_at) is again
    if again:
        await restarted(bench, clock, only(pod), 2)


async def test_delays_double_up_to_a_minute(bench: Bench, clock: Clock) -> None:
    pod = await bench.start("true", container={"restart": RestartPolicy(name="always", delay_s=0.5)})
    await restarted(bench, clock, only(pod), 10)
    assert clock.delays[:9] == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]


async def test_a_long_run_starts_the_delay_afresh(bench: Bench, clock: Clock) -> None:
    pod = await bench.start("patient", container={"restart": RestartPolicy(name="always")})
    only(pod).status.restarts = 6
    only(pod).status.started_at -= 11
    await only(pod).kill("TERM")
    await bench.until(lambda: clock.delays)
    assert clock.delays == [0.1]


async def test_on_failure_gives_up_after_its_retries(bench: Bench, clock: Clock) -> None:
    policy = RestartPolicy(name="on-failure", max_retries=2)
    pod = await bench.run("exit 3", container={"restart": policy})
    await restarted(bench, clock, only(pod), 2)
    await bench.until(lambda: pod.state is State.STOPPED)
    assert (only(pod).status.restarts, only(pod).status.exit.code) == (2, 3)


@pytest.mark.parametrize("policy", ["always", "unless-stopped", "on-failure"])
@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_no_restart_after_the_user_ended_it(bench: Bench, clock: Clock, policy: str, how: str) -> None:
    pod = await bench.start("stubborn", container={"restart": RestartPolicy(name=policy), "stop_grace_s": 0})
    await (only(pod).stop() if how == "stop" else only(pod).kill("KILL"))
    await bench.end_of(only(pod))
    await bench.settle()
    assert (only(pod).state, clock.delays) == (State.STOPPED, [])


async def test_a_stop_while_it_waits_cancels_the_restart(bench: Bench, clock: Clock) -> None:
    pod = await bench.start("true", container={"restart": RestartPolicy(name="always")})
    await bench.until(lambda: only(pod).restart_at)
    await only(pod).stop()
    clock.tick()
    await bench.settle()
    assert (only(pod).state, only(pod).status.restarts) == (State.STOPPED, 0)


async def test_a_delete_while_it_waits_cancels_the_restart(bench: Bench, clock: Clock) -> None:
    pod = await bench.start("true", container={"restart": RestartPolicy(name="always")})
    await bench.until(lambda: only(pod).restart_at)
    await bench.core.delete_pod(pod, force=True)
    clock.tick()
    await bench.settle()
    assert bench.left() == {}


async def test_the_pod_of_run_does_not_end_while_a_restart_is_due(bench: Bench, clock: Clock) -> None:
    pod = await bench.run("true", container={"restart": RestartPolicy(name="always")})
    await restarted(bench, clock, only(pod), 3)
    assert pod.state is State.RUNNING


async def test_a_restart_that_fails_is_noted_and_ends_the_pod(bench: Bench, clock: Clock) -> None:
    pod = await bench.run("true", container={"restart": RestartPolicy(name="always")})
    await bench.until(lambda: only(pod).restart_at)
    bench.faults.fail("task.create")
    clock.tick()
    await bench.until(lambda: pod.state is State.STOPPED)
    assert any("restart of container" in note for note in bench.node.notes)
    assert only(pod).state is State.FAILED


# -- automatic stop and removal -----------------------------------------------------------------------------------


async def test_remove_deletes_the_pod_with_its_last_container(bench: Bench) -> None:
    pod = await bench.run("true", "sleep 0.01", remove=True)
    await bench.until(lambda: pod.state is State.DELETED)
    assert (bench.core.pods, bench.left()) == ({}, {})


async def test_a_name_freed_by_removal_can_be_taken_at_once(bench: Bench) -> None:
    for _ in range(5):
        pod = await bench.run("true", remove=True, name="job")
        await bench.end_of(only(pod))


async def test_stop_of_a_pod_to_be_removed_removes_it(bench: Bench) -> None:
    pod = await bench.run("patient", remove=True)
    await only(pod).stop()
    await bench.until(lambda: pod.state is State.DELETED)


# -- deadline -----------------------------------------------------------------------------------------------------


async def test_the_deadline_kills_and_says_so(bench: Bench, clock: Clock) -> None:
    pod = await bench.run("patient", "true", timeout_s=5)
    slow, quick = pod.containers.values()
    await bench.until(lambda: quick.status.exit)
    assert 4.9 < clock.delays[0] <= 5 and pod.deadline_at == pytest.approx(time.time() + 5, abs=1)
    clock.tick()
    await bench.until(lambda: pod.state is State.STOPPED)
    assert (slow.status.exit.code, slow.status.exit.reason) == (137, "Timeout")
    assert slow.status.exit.message == "the pod's time limit of 5 s passed"
    assert quick.status.exit.reason == ""


async def test_a_stop_before_the_deadline_drops_it(bench: Bench, clock: Clock) -> None:
    pod = await bench.start("patient", timeout_s=5)
    await pod.stop()
    await bench.settle()
    assert not [task for task in bench.node._background if "deadline" in task.get_name()]


async def test_a_deadline_reaches_a_paused_pod(bench: Bench, clock: Clock) -> None:
    pod = await bench.start("patient", timeout_s=5)
    await pod.pause()
    clock.tick()
    await bench.until(lambda: pod.state is State.STOPPED)
    assert only(pod).status.exit.reason == "Timeout"


async def test_a_deadline_with_remove(bench: Bench, clock: Clock) -> None:
    pod = await bench.run("patient", timeout_s=5, remove=True)
    clock.tick()
    await bench.until(lambda: pod.state is State.DELETED)


# -- health -------------------------------------------------------------------------------------------------------


def checked(*argv: str, **fields: float) -> dict[str, HealthCheck]:
    return {"health": HealthCheck(argv=argv, interval_s=1, **fields)}


async def test_healthy(bench: Bench, clock: Clock) -> None:
    pod = await bench.start("sleep 60", container=checked("true"))
    await bench.until(lambda: clock.delays)
    assert only(pod).status.health == "starting"
    clock.tick()
    await bench.until(lambda: only(pod).status.health == "healthy")
    told = [e.action for e in bench.events("container") if e.action.startswith("health")]
    assert told == ["health_status: starting", "health_status: healthy"]


async def test_unhealthy_after_its_retries_and_healthy_again(bench: Bench, clock: Clock) -> None:
    pod = await bench.start("sleep 60", container=checked("false", retries=3))
    for checks in (1, 2):
        clock.tick()
        await bench.until(lambda: len(clock.delays) > checks)  # noqa: B023 used at once
        assert only(pod).status.health == "starting"
    clock.tick()
    await bench.until(lambda: only(pod).status.health == "unhealthy")


async def test_failures_in_the_start_period_do_not_count(bench: Bench, clock: Clock) -> None:
    pod = await bench.start("sleep 60", container=checked("false", retries=1, start_period_s=100))
    for checks in range(1, 4):
        clock.tick()
        await bench.until(lambda: len(clock.delays) > checks)  # noqa: B023 used at once
    assert only(pod).status.health == "starting"


async def test_a_check_that_takes_too_long_failed(bench: Bench, clock: Clock) -> None:
    pod = await bench.start("sleep 60", container=checked("sleep", "60", retries=1, timeout_s=0.01))
    clock.tick()
    await bench.until(lambda: only(pod).status.health == "unhealthy")
    assert not bench.world.tasks[only(pod).id].execs


async def test_a_check_that_cannot_run_failed(bench: Bench, clock: Clock) -> None:
    pod = await bench.start("sleep 60", container=checked("nothing", retries=1))
    clock.tick()
    await bench.until(lambda: only(pod).status.health == "unhealthy")


async def test_no_checks_while_paused_or_after_the_end(bench: Bench, clock: Clock) -> None:
    pod = await bench.start("sleep 60", container=checked("false", retries=1))
    await bench.until(lambda: clock.delays)
    await only(pod).pause()
    clock.tick()
    await bench.until(lambda: len(clock.delays) == 2)
    assert "task.exec" not in bench.faults.calls
    await only(pod).resume()
    await only(pod).stop(force=True)
    clock.tick()
    await bench.settle()
    assert "task.exec" not in bench.faults.calls
    assert not bench.node._background


async def test_a_note_is_kept_of_background_work_that_failed(bench: Bench, clock: Clock) -> None:
    pod = await bench.run("true", name="web")
    bench.faults.fail("stop", HelperFailed("no way"))
    await bench.until(lambda: bench.node.notes)
    assert bench.node.notes == ["after the end of container web: no way"]
    assert pod.state is State.RUNNING


def test_should_restart_says_no_while_the_pod_does_not_run(bench: Bench) -> None:
    pod = Pod(
        bench.node, id_="p", name="p", spec=bench.spec(), choice=Choice(kind="fake", level="none", asked="", by="")
    )
    spec = ContainerSpec(image="busybox", restart=RestartPolicy(name="always"))
    container = Container(bench.node, pod, id_="c", name="c", spec=spec)
    container.status.exit = ExitStatus(code=1)
    for state in State:
        pod.state = state
        assert supervision.should_restart(container) is (state is State.RUNNING)
