"""Containers: every call of virtcontainers' list with its guards, output and exits, execs, and what follows an end."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from drupe.errors import (
    AlreadyExists,
    HelperFailed,
    InvalidArgument,
    InvalidState,
    InvalidTransition,
    NotFound,
    Unsupported,
)
from drupe.runtime.container import Container
from drupe.runtime.pod import Pod
from drupe.sandboxers.contract import TaskExit
from drupe.spec import ContainerSpec, ExecSpec, ExitStatus, Resources, Secret
from drupe.spec.control import ListFilter
from drupe.state.machine import State
from framework.bench import Bench

CREATING, READY, RUNNING, PAUSED, STOPPED, FAILED, DELETED = State


def only(pod: Pod) -> Container:
    (container,) = pod.containers.values()
    return container


def spec(line: str, **fields: object) -> ContainerSpec:
    return ContainerSpec(image="busybox", argv=tuple(line.split()), **fields)


# -- create, start, stop, delete ----------------------------------------------------------------------------------


@pytest.mark.parametrize("running", [False, True])
async def test_create_in_a_pod_that_is_ready_or_running(bench: Bench, running: bool) -> None:
    pod = await (bench.start() if running else bench.create())
    container = await bench.core.create_container(pod, spec("sleep 60", name="web"))
    assert (container.state, container.name, only(pod)) == (READY, "web", container)
    assert [c.id for c in bench.core.list_containers(ListFilter(pod=pod.id))] == [container.id]


@pytest.mark.parametrize("state", ["paused", "stopped", "failed"])
async def test_no_create_in_other_states(bench: Bench, state: str) -> None:
    pod = await bench.start("patient")
    if state == "paused":
        await pod.pause()
    else:
        await pod.stop()
    if state == "failed":
        pod.fail("test", "because")
    with pytest.raises(InvalidState, match=f"cannot create a container: pod .* is {state}, not ready or running"):
        await bench.core.create_container(pod, spec("true"))
    assert len(pod.containers) == 1


async def test_names_are_unique_in_a_pod(bench: Bench) -> None:
    pod = await bench.create("sleep 60", name="web")
    with pytest.raises(AlreadyExists, match="the pod has a container named 'web' already"):
        await bench.core.create_container(pod, spec("true", name="web"))
    assert len(pod.containers) == 1


async def test_start_needs_a_running_pod(bench: Bench) -> None:
    pod = await bench.create("sleep 60")
    with pytest.raises(InvalidState, match=r"cannot start container .*: pod .* is ready, not running"):
        await only(pod).start()


@pytest.mark.parametrize("state", ["running", "paused"])
async def test_no_second_start(bench: Bench, state: str) -> None:
    pod = await bench.start("sleep 60")
    if state == "paused":
        await only(pod).pause()
    with pytest.raises(InvalidState):
        await only(pod).start()
    assert only(pod).state == state


async def test_a_stopped_container_starts_again(bench: Bench) -> None:
    pod = await bench.start("exit 3")
    container = only(pod)
    assert (await bench.end_of(container)).code == 3
    await container.start()
    assert container.status.restarts == 0
    assert (await bench.end_of(container)).code == 3
    assert len(bench.events("container", "die")) == 2


async def test_the_pod_of_create_stays_when_its_containers_end(bench: Bench) -> None:
    pod = await bench.start("true")
    await bench.end_of(only(pod))
    await bench.settle()
    assert pod.state is RUNNING


async def test_stop_is_idempotent_and_says_how_it_ended(bench: Bench) -> None:
    pod = await bench.start("patient")
    await only(pod).stop()
    await only(pod).stop()
    assert only(pod).status.exit.code == 0
    assert only(pod).status.finished_at >= only(pod).status.started_at > 0


async def test_stop_signal_of_the_spec(bench: Bench) -> None:
    pod = await bench.start("patient", container={"stop_signal": "INT", "stop_grace_s": 0.01})
    await only(pod).stop()
    assert only(pod).status.exit.signal == 9  # INT is not what it waits for


@pytest.mark.parametrize("state", ["ready", "stopped", "failed"])
async def test_delete_from_ready_stopped_failed(bench: Bench, state: str) -> None:
    pod = await bench.start()
    container = await bench.core.create_container(pod, spec("nothing" if state == "failed" else "true"))
    if state == "stopped":
        await container.start()
        await bench.end_of(container)
    if state == "failed":
        with pytest.raises(NotFound):
            await container.start()
    assert container.state == state
    await bench.core.delete_container(container)
    assert (pod.containers, container.state, bench.left()) == ({}, DELETED, {})


@pytest.mark.parametrize("state", ["running", "paused"])
async def test_no_delete_of_what_lives_unless_forced(bench: Bench, state: str) -> None:
    pod = await bench.start("stubborn")
    container = only(pod)
    if state == "paused":
        await container.pause()
    with pytest.raises(InvalidState, match="cannot move from running to deleted"):
        await bench.core.delete_container(container)
    await bench.core.delete_container(container, force=True)
    assert (pod.containers, bench.left()) == ({}, {})


async def test_the_last_delete_ends_a_pod_that_run_made(bench: Bench) -> None:
    pod = await bench.run("sleep 60")
    await bench.core.delete_container(only(pod), force=True)
    assert (pod.state, bench.core.pods, bench.left()) == (DELETED, {}, {})


async def test_a_delete_that_fails_can_be_done_again(bench: Bench) -> None:
    pod = await bench.create("sleep 60")
    container = only(pod)
    bench.faults.fail("storage.umount_rootfs")
    with pytest.raises(HelperFailed, match="is not fully removed") as caught:
        await bench.core.delete_container(container)
    assert caught.value.cause == "rootfs: storage.umount_rootfs failed as the test wants"
    assert (container.state, container.status.phase, only(pod)) == (FAILED, "deleting", container)
    await bench.core.delete_container(container)
    assert (pod.containers, bench.left()) == ({}, {})


# -- kill, pause, update ------------------------------------------------------------------------------------------


async def test_kill_of_a_running_one(bench: Bench) -> None:
    pod = await bench.start("patient")
    await only(pod).kill("KILL")
    exit_ = await bench.end_of(only(pod))
    assert (exit_.code, exit_.signal) == (137, 9)
    assert bench.events("container", "kill")[0].attributes["signal"] == "9"


async def test_kill_with_a_signal_it_handles(bench: Bench) -> None:
    pod = await bench.start("patient")
    await only(pod).kill("term")
    assert (await bench.end_of(only(pod))).code == 0


async def test_kill_from_ready_is_allowed_and_ends_it(bench: Bench) -> None:
    pod = await bench.start()
    container = await bench.core.create_container(pod, spec("sleep 60"))
    await container.kill("KILL")
    assert (await bench.end_of(container)).code == 137
    assert container.state is STOPPED
    await container.start()
    assert container.state is RUNNING


async def test_kill_of_a_paused_one(bench: Bench) -> None:
    pod = await bench.start("sleep 60")
    await only(pod).pause()
    await only(pod).kill("9")
    assert (await bench.end_of(only(pod))).code == 137
    assert only(pod).state is STOPPED


async def test_nothing_in_a_paused_pod_can_be_ended_alone(bench: Bench) -> None:
    pod = await bench.start("sleep 60", "sleep 60", "true")
    one, _, ended = pod.containers.values()
    await bench.end_of(ended)
    await pod.pause()
    with pytest.raises(InvalidState, match="cannot kill it: pod") as caught:
        await one.kill("KILL")
    assert caught.value.hint == "resume it first"
    with pytest.raises(InvalidState, match="is paused"):
        await bench.core.delete_container(one, force=True)
    await bench.core.delete_container(ended, force=True)
    await pod.resume()
    await one.kill("KILL")
    await bench.end_of(one)


async def test_kill_of_the_only_one_in_a_paused_pod(bench: Bench) -> None:
    pod = await bench.start("sleep 60", "true")
    one, ended = pod.containers.values()
    await bench.end_of(ended)
    await pod.pause()
    with pytest.raises(InvalidState, match="cannot kill it: pod"):
        await one.kill("TERM")
    await one.kill("KILL")
    assert (await bench.end_of(one)).code == 137


@pytest.mark.parametrize("what", ["container", "pod"])
async def test_an_end_amid_a_resume_counts(bench: Bench, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    pod = await bench.start("sleep 60", "sleep 60")
    one = next(iter(pod.containers.values()))
    await (pod if what == "pod" else one).pause()
    resume = one.tasks.resume

    async def slowly(task_id: str) -> None:
        await resume(task_id)
        if task_id == one.id:
            one.ended(ExitStatus(code=137, signal=9, at=1.0))

    monkeypatch.setattr(one.tasks, "resume", slowly)
    await (pod if what == "pod" else one).resume()
    assert (one.state, pod.state) == (STOPPED, RUNNING)


async def test_kill_all_reaches_execs(bench: Bench) -> None:
    pod = await bench.start("sleep 60")
    exec_id, _ = await only(pod).execs.start(ExecSpec(argv=("sleep", "60")), {})
    await only(pod).kill("KILL", everything=True)
    assert (await only(pod).execs.wait(exec_id)).code == 137
    assert (await bench.end_of(only(pod))).code == 137


async def test_kill_of_a_stopped_one(bench: Bench) -> None:
    pod = await bench.start("true")
    await bench.end_of(only(pod))
    with pytest.raises(InvalidState, match=r"cannot kill it: container .* is stopped"):
        await only(pod).kill("TERM")


@pytest.mark.parametrize("signal", ["NOPE", "0", "65", "", "-9", "SIGSIG"])
async def test_no_such_signal(bench: Bench, signal: str) -> None:
    pod = await bench.start("sleep 60")
    with pytest.raises(InvalidArgument, match="no signal"):
        await only(pod).kill(signal)
    assert only(pod).state is RUNNING


async def test_pause_and_resume_of_one_container(bench: Bench) -> None:
    pod = await bench.start("sleep 60", "sleep 60")
    one, other = pod.containers.values()
    await one.pause()
    assert (one.state, other.state, pod.state) == (PAUSED, RUNNING, RUNNING)
    with pytest.raises(InvalidTransition):
        await one.pause()
    await one.resume()
    assert one.state is RUNNING
    with pytest.raises(InvalidState, match="cannot resume it"):
        await one.resume()
    assert [e.action for e in bench.events("container")][-2:] == ["pause", "unpause"]


async def test_paused_time_does_not_pass(bench: Bench) -> None:
    pod = await bench.start("sleep 0.02")
    await only(pod).pause()
    await asyncio.sleep(0.05)
    assert only(pod).state is PAUSED
    await only(pod).resume()
    assert (await bench.end_of(only(pod))).code == 0


async def test_resume_of_the_pod_resumes_what_was_paused_alone(bench: Bench) -> None:
    pod = await bench.start("sleep 60", "sleep 60")
    one, other = pod.containers.values()
    await one.pause()
    await pod.pause()
    await pod.resume()
    assert (one.state, other.state) == (RUNNING, RUNNING)
    await one.kill("KILL")
    await bench.end_of(one)


async def test_update_holds_and_is_kept(bench: Bench) -> None:
    pod = await bench.start("sleep 60")
    await only(pod).update(Resources(memory_bytes=1 << 26))
    await only(pod).update(Resources(pids=5))
    assert only(pod).spec.resources == Resources(memory_bytes=1 << 26, pids=5)
    assert (await only(pod).stats()).pids_limit == 5
    with pytest.raises(Unsupported):
        await only(pod).update(Resources(hugepages={"2MB": 1}))
    assert only(pod).spec.resources.hugepages == {}


async def test_update_of_a_stopped_one_is_for_its_next_start(bench: Bench) -> None:
    pod = await bench.start("true")
    await bench.end_of(only(pod))
    await only(pod).update(Resources(pids=7))
    assert only(pod).spec.resources.pids == 7 and "task.update" not in bench.faults.calls


async def test_stats(bench: Bench) -> None:
    pod = await bench.start("spin", "sleep 60")
    busy, idle = pod.containers.values()
    await asyncio.sleep(0.01)
    assert (await busy.stats()).cpu_usage_ns > 0 and (await idle.stats()).cpu_usage_ns == 0
    assert (await pod.stats()).pids == 2
    await busy.stop(force=True)
    assert (await busy.stats()).pids == 0


# -- output, input, attach, terminals -----------------------------------------------------------------------------


def read_all(fd: int) -> bytes:
    with os.fdopen(fd, "rb") as file:
        return file.read()


async def test_attached_before_the_start_no_byte_is_missed(bench: Bench) -> None:
    out, out_w = os.pipe()
    err, err_w = os.pipe()
    pod = await bench.core.run_pod(bench.spec("seq 200"), {"stdout": out_w, "stderr": err_w})
    os.close(out_w)
    os.close(err_w)
    assert await asyncio.to_thread(read_all, out) == b"".join(b"%d\n" % n for n in range(1, 201))
    assert await asyncio.to_thread(read_all, err) == b""
    assert (await bench.end_of(only(pod))).code == 0


async def test_standard_error_is_its_own_stream(bench: Bench) -> None:
    err, err_w = os.pipe()
    pod = await bench.core.run_pod(bench.spec("complain no"), {"stderr": err_w})
    os.close(err_w)
    assert (await asyncio.to_thread(read_all, err), (await bench.end_of(only(pod))).code) == (b"no\n", 1)


async def test_input_reaches_it_and_its_end_too(bench: Bench) -> None:
    (to, to_w), (out, out_w) = os.pipe(), os.pipe()
    pod = await bench.core.run_pod(bench.spec("cat", container={"stdin": True}), {"stdin": to, "stdout": out_w})
    os.close(out_w)
    os.close(to)
    os.write(to_w, b"some words")
    os.close(to_w)
    assert await asyncio.to_thread(read_all, out) == b"some words"
    assert (await bench.end_of(only(pod))).code == 0


async def test_without_stdin_input_is_at_its_end(bench: Bench) -> None:
    pod = await bench.run("cat")
    assert (await bench.end_of(only(pod))).code == 0


async def test_the_log_is_complete_when_the_end_is_told(bench: Bench) -> None:
    pod = await bench.run("seq 100")
    await bench.end_of(only(pod))
    lines = Path(only(pod).status.log_path).read_text().splitlines()
    assert [line.split(" ", 3)[1:] for line in lines] == [["stdout", "F", str(n)] for n in range(1, 101)]


async def test_a_terminal_and_its_size(bench: Bench) -> None:
    out, out_w = os.pipe()
    to, to_w = os.pipe()
    pod = await bench.core.run_pod(bench.spec("size", container={"tty": True}), {"stdin": to, "stdout": out_w})
    os.close(out_w)
    os.close(to)
    await only(pod).tasks.resize(only(pod).id, 24, 80)
    os.write(to_w, b"\n")
    assert await asyncio.to_thread(read_all, out) == b"24 80\r\n"
    os.close(to_w)


# -- exec ---------------------------------------------------------------------------------------------------------


async def test_exec(bench: Bench) -> None:
    pod = await bench.start("sleep 60", container={"env": ("A=1",)})
    out, out_w = os.pipe()
    exec_id, pid = await only(pod).execs.start(ExecSpec(argv=("printenv", "A")), {"stdout": out_w})
    os.close(out_w)
    assert pid > 0
    assert (await only(pod).execs.wait(exec_id)).code == 0
    assert read_all(out) == b"1\n"
    assert [e.action for e in bench.events("container")][-2:] == ["exec_start", "exec_die"]


@pytest.mark.parametrize("state", ["ready", "paused", "stopped"])
async def test_exec_needs_both_running(bench: Bench, state: str) -> None:
    pod = await (bench.create("patient") if state == "ready" else bench.start("patient"))
    if state == "paused":
        await only(pod).pause()
    if state == "stopped":
        await only(pod).stop()
    with pytest.raises(InvalidState, match=f"cannot exec: .* is {state}"):
        await only(pod).execs.start(ExecSpec(argv=("true",)), {})


async def test_exec_of_a_missing_program_leaves_nothing(bench: Bench) -> None:
    pod = await bench.start("sleep 60")
    with pytest.raises(NotFound):
        await only(pod).execs.start(ExecSpec(argv=("nothing",)), {})
    assert not only(pod).execs._ended


async def test_exec_timeout_kills_it_and_keeps_its_end(bench: Bench) -> None:
    pod = await bench.start("sleep 60")
    exec_id, _ = await only(pod).execs.start(ExecSpec(argv=("sleep", "60")), {})
    exit_ = await only(pod).execs.wait(exec_id, timeout_s=0.01)
    assert (exit_.code, exit_.reason, exit_.message) == (137, "Timeout", "after 0.01 s")
    assert only(pod).state is RUNNING


async def test_exec_that_is_unknown(bench: Bench) -> None:
    pod = await bench.start("sleep 60")
    with pytest.raises(NotFound, match="has no exec abc"):
        await only(pod).execs.wait("abc")


async def test_the_end_of_a_container_ends_its_execs(bench: Bench) -> None:
    pod = await bench.start("sleep 60")
    exec_id, _ = await only(pod).execs.start(ExecSpec(argv=("sleep", "60")), {})
    await only(pod).stop(force=True)
    assert (await only(pod).execs.wait(exec_id, timeout_s=1)).code == 137


async def test_many_ended_execs_are_not_kept_for_ever(bench: Bench) -> None:
    pod = await bench.start("sleep 60")
    for _ in range(100):
        exec_id, _ = await only(pod).execs.start(ExecSpec(argv=("true",)), {})
        only(pod).execs.keep_end(exec_id)
        await only(pod).execs.wait(exec_id)
    assert len(only(pod).execs._ended) <= 33 and not bench.world.tasks[only(pod).id].execs


# -- ends ---------------------------------------------------------------------------------------------------------


async def test_an_end_before_the_start_has_returned_is_not_lost(bench: Bench) -> None:
    gate = bench.faults.hold("task.start")
    pod = await bench.create("exit 9")
    starting = asyncio.ensure_future(pod.start())
    await bench.settle()
    assert only(pod)._starting
    bench.core.process_ended(TaskExit(only(pod).id, "", ExitStatus(code=9, at=1.0)))
    gate.set()
    await starting
    assert (only(pod).state, only(pod).status.exit.code) == (STOPPED, 9)
    assert [e.action for e in bench.events("container")][-2:] == ["start", "die"]


async def test_all_waiters_hear_of_the_end(bench: Bench) -> None:
    pod = await bench.start("sleep 60")
    waiting = [asyncio.ensure_future(only(pod).wait()) for _ in range(5)]
    await bench.settle()
    await only(pod).kill("KILL")
    assert [w.code for w in await asyncio.gather(*waiting)] == [137] * 5


async def test_waiting_for_the_removal(bench: Bench) -> None:
    pod = await bench.run("exit 4", remove=True)
    container = only(pod)
    assert (await bench.end_of(container, "removed")).code == 4
    await asyncio.wait_for(pod.gone.wait(), 1)
    assert bench.left() == {}


async def test_run_stops_its_pod_with_the_last_container(bench: Bench) -> None:
    pod = await bench.run("sleep 0.01", "true")
    await bench.until(lambda: pod.state is STOPPED)
    assert not bench.world.sandboxes


async def test_a_pod_with_a_ready_container_does_not_end(bench: Bench) -> None:
    pod = await bench.run("sleep 0.01")
    await bench.core.create_container(pod, spec("sleep 60"))
    await bench.until(lambda: next(iter(pod.containers.values())).state is STOPPED)
    await bench.settle()
    assert pod.state is RUNNING


async def test_last_exit_prefers_the_failure(bench: Bench) -> None:
    pod = await bench.run("true", "exit 5")
    await bench.until(lambda: pod.state is STOPPED)
    assert pod.last_exit().code == 5


# -- failures in the making ---------------------------------------------------------------------------------------

POD_STEPS = {
    "sandbox": "create",
    "network": "network.attach",
    "shm": "storage.mount_shm",
}
CONTAINER_STEPS = {
    "rootfs": "storage.mount_rootfs",
    "volumes": "storage.attach_volumes",
    "task": "task.create",
}


@pytest.mark.parametrize(("stage", "call"), [*POD_STEPS.items(), *CONTAINER_STEPS.items()])
@pytest.mark.parametrize("kind", [HelperFailed, OSError, RuntimeError])
async def test_a_failure_at_each_step_leaves_nothing(
    bench: Bench, stage: str, call: str, kind: type[Exception]
) -> None:
    error = OSError(28, "No space left on device") if kind is OSError else kind("no")
    bench.faults.fail(call, error)
    with pytest.raises(Exception) as caught:
        await bench.create("sleep 60")
    assert (bench.core.pods, bench.left()) == ({}, {})
    if isinstance(error, HelperFailed):
        assert (caught.value, caught.value.stage) == (error, stage)
    if isinstance(error, OSError):
        assert caught.value.code == "RESOURCE_EXHAUSTED" and caught.value.stage == stage


@pytest.mark.parametrize("call", CONTAINER_STEPS.values())
async def test_a_failed_container_leaves_its_pod_alone(bench: Bench, call: str) -> None:
    pod = await bench.start("sleep 60")
    bench.faults.fail(call)
    with pytest.raises(HelperFailed):
        await bench.core.create_container(pod, spec("true"))
    assert (len(pod.containers), pod.state, bench.left()) == (1, RUNNING, {})


@pytest.mark.parametrize("call", [*POD_STEPS.values(), *CONTAINER_STEPS.values()])
async def test_a_cancelled_create_leaves_nothing(bench: Bench, call: str) -> None:
    bench.faults.hold(call)
    creating = asyncio.ensure_future(bench.create("sleep 60"))
    await bench.until(lambda: call in bench.faults.calls)
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert (bench.core.pods, bench.left()) == ({}, {})


async def test_a_start_that_fails_leaves_an_inspectable_container(bench: Bench) -> None:
    pod = await bench.start()
    container = await bench.core.create_container(pod, spec("sleep 60"))
    bench.faults.fail("task.start")
    with pytest.raises(HelperFailed):
        await container.start()
    assert (container.state, container.status.cause) == (FAILED, "task.start failed as the test wants")
    assert (container.status.exit.code, container.status.exit.reason) == (128, "StartError")
    assert pod.state is RUNNING


# -- secrets ------------------------------------------------------------------------------------------------------


async def test_secrets_are_in_no_byte_of_the_journal(bench: Bench) -> None:
    secret = Secret(name="token", value=b"s3cr3t-words")
    pod = await bench.start("sleep 60", container={"secrets": (secret,)})
    await only(pod).update(Resources(pids=5))
    await only(pod).stop(force=True)
    await only(pod).start()
    bench.journal._db.execute("PRAGMA wal_checkpoint(FULL)")
    kept = b"".join(path.read_bytes() for path in bench.paths.root.glob("journal.db*"))
    assert b"token" in kept and b"s3cr3t" not in kept
    assert only(pod).spec.secrets == (secret,)


async def test_the_end_of_one_that_was_just_removed(bench: Bench) -> None:
    """With --rm a quick container may be gone before whoever ran it asks for its exit code."""
    pod = await bench.start("exit 7")
    container = only(pod)
    await container.wait()
    await bench.core.delete_pod(pod, force=True)
    end = bench.node.end_of_removed(container.id)
    assert end is not None and end.code == 7
    assert bench.node.end_of_removed("stranger") is None
