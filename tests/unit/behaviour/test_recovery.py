"""Recovery on the fake: the daemon dies before and after each of its journal writes, and comes up on what is left.

The scenarios are run once to count their writes; then once for each write and moment. Those in which it dies twice
begin at a third of the writes in `make test`, at each in `make test-full`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sqlite3
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from drupe.errors import DrupeError
from drupe.runtime.container import Container
from drupe.runtime.pod import Pod
from drupe.runtime.recovery import recover
from drupe.sandboxers.fake import Killed
from drupe.spec import ContainerSpec, ExecSpec, HealthCheck, Resources, RestartPolicy
from drupe.state.journal import Row
from drupe.state.machine import State
from framework.bench import Bench
from framework.dying import CountingJournal
from framework.probes import each

CREATING, READY, RUNNING, PAUSED, STOPPED, FAILED, DELETED = State


def only(pod: Pod) -> Container:
    (container,) = pod.containers.values()
    return container


# -- what a daemon may be in the midst of -------------------------------------------------------------------------


async def life(bench: Bench) -> None:
    """Create, start, stop, start again, stop, delete."""
    pod = await bench.create("patient", "patient", name="life")
    async with pod.lock:
        await pod.start()
        await pod.stop()
        await pod.start()
        await pod.stop()
    await bench.core.delete_pod(pod)


async def run(bench: Bench) -> None:
    await bench.run("sleep 60", "sleep 60", name="run")


async def run_to_the_end(bench: Bench) -> None:
    pod = await bench.run("true", name="end")
    await bench.until(lambda: pod.state is STOPPED)


async def run_and_remove(bench: Bench) -> None:
    pod = await bench.run("true", name="rm", remove=True)
    await bench.until(lambda: pod.state is DELETED)


async def pause(bench: Bench) -> None:
    pod = await bench.run("patient", "patient", name="pause")
    async with pod.lock:
        await pod.pause()
        await pod.resume()
        await next(iter(pod.containers.values())).pause()
        await next(iter(pod.containers.values())).resume()
        await pod.pause()
        await pod.stop()


async def containers(bench: Bench) -> None:
    """Containers come and go in a running pod."""
    pod = await bench.start(name="many")
    first = await bench.core.create_container(pod, ContainerSpec(image="busybox", argv=("patient",)))
    second = await bench.core.create_container(pod, ContainerSpec(image="busybox", argv=("true",)))
    async with pod.lock:
        await first.start()
        await second.start()
        await bench.until(lambda: second.state is STOPPED)
        await first.update(Resources(pids=5))
        await first.stop()
        await first.start()
    await bench.core.delete_container(second)
    await bench.core.delete_container(first, force=True)


async def restarts(bench: Bench) -> None:
    policy = RestartPolicy(name="on-failure", max_retries=2, delay_s=0)
    pod = await bench.run("exit 1", name="again", container={"restart": policy})
    await bench.until(lambda: pod.state is STOPPED)


async def execs(bench: Bench) -> None:
    pod = await bench.run("sleep 60", name="exec")
    exec_id, _ = await only(pod).execs.start(ExecSpec(argv=("exit", "3")), {})
    await only(pod).execs.wait(exec_id)


async def failed_start(bench: Bench) -> None:
    pod = await bench.create("sleep 60", "no-such-program", name="failed")
    async with pod.lock:
        with contextlib.suppress(DrupeError):
            await pod.start()


Scenario = Callable[[Bench], Awaitable[None]]
SCENARIOS: list[Scenario] = [
    life, run, run_to_the_end, run_and_remove, pause, containers, restarts, execs, failed_start,
]  # fmt: skip


async def died(bench: Bench, scenario: Scenario, number: int, moment: str) -> None:
    """Run `scenario` until the daemon's death at one of its writes."""
    dead = asyncio.Event()

    def at_write(write: int, when: str) -> None:
        if bench.faults.dead or (write, when) == (number, moment):
            bench.faults.dead = True
            dead.set()
            raise Killed

    bench.journal.at_write = at_write
    acting = asyncio.ensure_future(scenario(bench))
    await asyncio.wait({acting, asyncio.ensure_future(dead.wait())}, return_when=asyncio.FIRST_COMPLETED)
    acting.cancel()
    await asyncio.gather(acting, return_exceptions=True)
    assert dead.is_set(), "the scenario has fewer writes than counted"


def is_whole(bench: Bench, pod: Pod) -> None:
    """What the core says of a pod is what the world has."""
    assert pod.status.phase == "" or pod.state is FAILED, (pod.state, pod.status.phase)
    assert pod.state is not CREATING
    up = pod.state in (READY, RUNNING, PAUSED)
    assert (pod.id in bench.world.sandboxes, pod.id in bench.network.attached) == (up, up), pod.state
    assert not pod.auto_stop or pod.state is not READY, "a pod of `run` is all or nothing"
    for container in pod.containers.values():
        task = bench.world.tasks.get(container.id)
        living = task is not None and task.exit is None
        assert container.status.phase == "" or container.state is FAILED, (container.state, container.status.phase)
        assert container.state is not CREATING
        assert container.is_live == (living and task.started), (container.state, task)
        assert container.state is not READY or living
        assert container.id in bench.storage.mounted
        assert pod.state is RUNNING or not container.is_live or pod.state is PAUSED
        assert not container.is_live or container.status.pid == task.process.pid


async def settled(bench: Bench, pod: Pod) -> None:
    """A pod of `run` has come to its end, if all of its containers have, and a restart that was due has been done."""

    def is_settled() -> bool:
        over = not any(c.is_live or c.restart_at for c in pod.containers.values())
        last = (DELETED,) if pod.spec.remove else (STOPPED, DELETED, FAILED)
        return not (pod.auto_stop and over) or pod.state in last

    await bench.until(is_settled)


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A directory that costs no disk: hundreds of journals are made."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as directory:
        yield Path(directory)


def count(directory: Path, scenario: Scenario) -> int:
    async def counting() -> int:
        bench = Bench(directory, journal=CountingJournal)
        await scenario(bench)
        writes = bench.journal.writes
        await bench.close()
        return writes

    return asyncio.run(counting())


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_death_at_every_write(in_memory: Path, scenario: Scenario, moment: str) -> None:
    writes = count(in_memory / "count", scenario)
    assert writes > 5
    for number in range(1, writes + 1):
        asyncio.run(die_and_recover(in_memory / str(number), scenario, number, moment))
    gc.collect()  # coroutines cut off in mid-flight must not be finalized at a random moment


@pytest.mark.slow
@pytest.mark.parametrize("scenario", [life, run_and_remove, pause], ids=lambda scenario: scenario.__name__)
def test_death_at_every_write_of_the_recovery_too(in_memory: Path, scenario: Scenario) -> None:
    """The daemon dies, and dies again at each write of its recovery: the next one comes to the same end."""
    for number in each(3, range(1, count(in_memory / "count", scenario) + 1)):
        again = 1
        while asyncio.run(die_twice(in_memory / f"{number}-{again}", scenario, number, again)):
            again += 1
    gc.collect()


async def die_twice(directory: Path, scenario: Scenario, number: int, again: int) -> bool:
    """Die before write `number`, and then before write `again` of the recovery; False when it has no so many."""
    first = Bench(directory, journal=CountingJournal)
    await died(first, scenario, number, "before")
    await first.abandon()
    second = Bench(directory, journal=CountingJournal, after=first)

    async def recovering(bench: Bench) -> None:
        await recover(bench.core)
        for pod in list(bench.core.pods.values()):
            await settled(bench, pod)

    try:
        await died(second, recovering, again, "before")
    except AssertionError:
        second.journal.at_write = lambda _number, _moment: None
        await second.close()
        return False
    third = await second.restart()
    try:
        for pod in list(third.core.pods.values()):
            await settled(third, pod)
        for pod in third.core.pods.values():
            is_whole(third, pod)
        assert third.left() == {}
    except (AssertionError, TimeoutError) as error:
        error.add_note(f"{scenario.__name__}: killed before write {number}, and before write {again} of the recovery")
        raise
    await third.close()
    return True


async def die_and_recover(directory: Path, scenario: Scenario, number: int, moment: str) -> None:
    bench = Bench(directory, journal=CountingJournal)
    await died(bench, scenario, number, moment)
    living = {k: t.process.pid for k, t in bench.world.tasks.items() if t.started and t.exit is None}
    again = await bench.restart()
    note = f"{scenario.__name__}: killed {moment} write {number}; {again.node.notes}"
    try:
        for pod in list(again.core.pods.values()):
            await settled(again, pod)
        for pod in again.core.pods.values():
            is_whole(again, pod)
        assert again.left() == {}
        for pod in again.core.pods.values():
            for container in pod.containers.values():
                assert (
                    not container.is_live or container.id not in living or living[container.id] == container.status.pid
                )
    except (AssertionError, TimeoutError) as error:
        error.add_note(note)
        raise
    third = await again.restart()
    assert set(third.core.pods) == set(again.core.pods), f"{note}; a second restart changed what there is"
    assert not third.node.notes, f"{note}; a second restart found {third.node.notes}"
    await third.close()


# -- single cases -------------------------------------------------------------------------------------------------


async def test_running_pods_stay_with_their_processes(bench: Bench) -> None:
    pod = await bench.run("sleep 60", name="web", labels={"a": "b"}, hostname="h")
    pid = only(pod).status.pid
    again = await bench.restart()
    found = again.core.pod("web")
    assert (found.id, found.state, found.spec.labels, found.hostname, found.auto_stop) == (
        pod.id, RUNNING, {"a": "b"}, "h", True,
    )  # fmt: skip
    assert (only(found).status.pid, only(found).state) == (pid, RUNNING)
    await only(found).kill("KILL")
    assert (await again.end_of(only(found))).code == 137
    await again.close()


@pytest.mark.parametrize("code", [0, 7])
async def test_an_end_while_the_daemon_was_dead_is_not_lost(bench: Bench, code: int) -> None:
    gone = await bench.run("sleep 60", name="gone", remove=True)
    kept = await bench.run("sleep 60", name="kept")
    await bench.abandon()
    for pod in (gone, kept):
        bench.world.tasks[only(pod).id].process._end(code, 0)
    again = await bench.restart()
    await again.until(lambda: [p.name for p in again.core.pods.values()] == ["kept"])
    found = again.core.pod("kept")
    await again.until(lambda: found.state is STOPPED)
    assert only(found).status.exit.code == code
    assert [e.attributes["exit_code"] for e in again.events("container", "die")] == [str(code)] * 2
    await again.close()


async def test_an_exec_lives_through_a_restart(bench: Bench) -> None:
    pod = await bench.run("sleep 60", name="web")
    exec_id, _ = await only(pod).execs.start(ExecSpec(argv=("patient",)), {})
    again = await bench.restart()
    container = only(again.core.pod("web"))
    await container.execs.kill(exec_id, 9)
    assert (await container.execs.wait(exec_id, timeout_s=1)).code == 137
    await again.close()


async def test_the_time_limit_of_an_exec_lives_through_a_restart(bench: Bench) -> None:
    """Also when it passed while no daemon was there; what is left of it goes with the exec."""
    pod = await bench.run("sleep 60", name="web")
    exec_id, _ = await only(pod).execs.start(ExecSpec(argv=("patient",), timeout_s=0.05), {})
    ended, _ = await only(pod).execs.start(ExecSpec(argv=("true",), timeout_s=60), {})
    await only(pod).execs.wait(ended)
    await bench.abandon()
    await asyncio.sleep(0.06)
    again = Bench(bench.paths.root.parent, after=bench)
    again.journal.put_record("exec_limit", "gone", {"ends_at": 0.0, "timeout_s": 1.0})
    await recover(again.core)
    end = await only(again.core.pod("web")).execs.wait(exec_id)
    assert (end.code, end.reason, end.message) == (137, "Timeout", "after 0.05 s")
    assert again.journal.records("exec_limit") == {}
    await again.close()


async def test_a_lost_task_is_said_to_be_lost(bench: Bench) -> None:
    await bench.start("sleep 60", name="web")
    await bench.abandon()
    bench.world.tasks.popitem()[1].process._act.cancel()
    again = await bench.restart()
    container = only(again.core.pod("web"))
    assert (container.state, container.status.exit.code, container.status.exit.reason) == (STOPPED, 255, "Lost")
    await again.close()


async def test_a_recorded_exit_of_a_lost_task_is_believed(bench: Bench) -> None:
    pod = await bench.start("sleep 60", name="web")
    await bench.abandon()
    bench.world.tasks[only(pod).id].process._end(5, 0)
    bench.world.tasks.clear()
    again = await bench.restart()
    assert only(again.core.pod("web")).status.exit.code == 5
    await again.close()


async def test_a_policy_goes_on_after_a_restart_of_the_daemon(bench: Bench) -> None:
    policy = {"restart": RestartPolicy(name="always", delay_s=0)}
    pod = await bench.run("patient", name="web", container=policy)
    await bench.abandon()
    bench.world.tasks[only(pod).id].process._end(1, 0)
    again = await bench.restart()
    container = only(again.core.pod("web"))
    await again.until(lambda: container.status.restarts == 1 and container.state is RUNNING)
    await again.close()


async def test_a_restart_that_was_due_is_done(bench: Bench) -> None:
    policy = {"restart": RestartPolicy(name="always", delay_s=3600)}
    pod = await bench.run("true", name="web", container=policy)
    await bench.until(lambda: only(pod).restart_at)
    again = await bench.restart()
    container = only(again.core.pod("web"))
    assert again.core.pod("web").state is RUNNING
    await again.until(lambda: container.restart_at)
    await again.close()


async def test_one_stopped_by_its_user_is_not_restarted(bench: Bench) -> None:
    policy = {"restart": RestartPolicy(name="always", delay_s=0)}
    pod = await bench.start("patient", name="web", container=policy)
    await only(pod).stop()
    again = await bench.restart()
    await again.settle()
    assert only(again.core.pod("web")).state is STOPPED
    await again.close()


async def test_health_is_watched_again(bench: Bench) -> None:
    check = {"health": HealthCheck(argv=("true",), interval_s=0.001)}
    await bench.run("sleep 60", name="web", container=check)
    again = await bench.restart()
    again.faults.calls.clear()
    await again.until(lambda: "task.exec" in again.faults.calls)
    await again.close()


async def test_a_deadline_that_passed_meanwhile_is_enforced(bench: Bench) -> None:
    await bench.run("sleep 60", name="web", timeout_s=0.05)
    await bench.abandon()
    await asyncio.sleep(0.06)
    again = await bench.restart()
    pod = again.core.pod("web")
    await again.until(lambda: pod.state is STOPPED)
    assert only(pod).status.exit.reason == "Timeout"
    await again.close()


@pytest.mark.parametrize("what", ["pod directory", "layer", "cgroup", "network", "sandbox", "root"])
async def test_orphans_are_removed(bench: Bench, what: str) -> None:
    pod = await bench.run("sleep 60", name="web")
    await bench.abandon()
    match what:
        case "pod directory":
            (bench.paths.pod("orphan") / "x").mkdir(parents=True)
        case "layer":
            (bench.paths.layer("orphan") / "upper").mkdir(parents=True)
        case "cgroup":
            bench.cgroups.limits[f"{bench.paths.cgroup}/orphan"] = Resources()
        case "network":
            bench.network.attached["orphan"] = bench.network.attached[pod.id]
        case "sandbox":
            bench.world.sandboxes["orphan"] = bench.world.sandboxes[pod.id]
        case "root":
            bench.storage.mounted.add("orphan")
    again = await bench.restart()
    assert again.left() == {}
    assert again.core.pod("web").state is RUNNING
    await again.close()


@pytest.mark.parametrize("kind", ["pod", "container"])
async def test_a_row_that_cannot_be_read_is_noted_and_cleaned(bench: Bench, kind: str) -> None:
    await bench.run("sleep 60", name="good")
    await bench.run("sleep 60", name="bad")
    row: Row = next(r for r in bench.journal.rows(kind) if r.data["status"]["name"] == "bad")
    bench.journal.put(kind, row.id, state=row.state, phase="", data={"spec": {"no": 1}})
    again = await bench.restart()
    assert any(f"recovery: {kind} {row.id} cannot be read" in note for note in again.node.notes)
    assert again.left() == {}
    assert again.core.pod("good").state is RUNNING
    await again.close()


async def test_a_corrupt_journal_is_set_aside_and_nothing_leaks(bench: Bench) -> None:
    await bench.run("sleep 60", name="web")
    await bench.abandon()
    bench.paths.journal.write_bytes(b"\0garbage" * 1000)
    again = await bench.restart()
    assert any("journal was corrupt" in note for note in again.journal.notes)
    assert list(bench.paths.root.glob("journal.db.corrupt-*"))
    assert again.left() == {}
    assert sqlite3.connect(bench.paths.journal).execute("PRAGMA integrity_check").fetchone() == ("ok",)
    await again.close()
