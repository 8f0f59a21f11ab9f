"""kill -9 of the real daemon at every journal write of a pod's life: nothing lost, nothing half, nothing leaked.

A first run lists the writes. Then, for each of them, the daemon dies there, comes up again on the same directories, and
what it says is compared with what the host has. It dies before every write, so after all the work since the one before;
and after those that begin a step, so before the step's work. `make test` tries a third of these, `make test-full` all
(units try them all, with fakes: tests/unit/behaviour/test_recovery.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from drupe.errors import DrupeError
from drupe.rpc.client import Client
from drupe.spec import ContainerSpec, ContainerStatus, ExecSpec, NetworkSpec, PodSpec, PodStatus
from drupe.spec.control import ContainerStart, Delete, ExecStart, ListFilter, PodCreate, PodRun, Ref, Stop, Wait
from framework import machines, probes
from framework.daemon import CALL_TIMEOUT_S, Daemon
from framework.faulty import FaultyDaemon
from framework.leaks import wait_until
from framework.residue import is_alive, residue

pytestmark = [pytest.mark.root, pytest.mark.slow]

SETTLES_WITHIN_S = 60.0  # a machine is resumed by its guest, on a busy host
WORKLOAD = "trap 'exit 7' TERM; echo begin; while :; do sleep 0.02; done"


# -- what it is in the midst of -----------------------------------------------------------------------------------


def spec(*, containers: int = 1, **fields: object) -> PodSpec:
    argv = ("sh", "-c", WORKLOAD)
    made = tuple(ContainerSpec(name=f"c{n}", image="busybox", argv=argv, stop_grace_s=0.2) for n in range(containers))
    return PodSpec(name="victim", network=NetworkSpec(mode="none"), containers=made, **fields)


def life(client: Client) -> None:
    """Create, start, stop, start again, stop, delete."""
    client.call("pod.create", PodCreate(spec=spec()), timeout_s=CALL_TIMEOUT_S)
    client.call("pod.start", Ref(ref="victim"), timeout_s=CALL_TIMEOUT_S)
    client.call("pod.stop", Stop(ref="victim"), timeout_s=CALL_TIMEOUT_S)
    client.call("pod.start", Ref(ref="victim"), timeout_s=CALL_TIMEOUT_S)
    client.call("pod.stop", Stop(ref="victim", force=True), timeout_s=CALL_TIMEOUT_S)
    client.call("pod.delete", Delete(ref="victim"), timeout_s=CALL_TIMEOUT_S)


def run_pause_exec(client: Client) -> None:
    """Run two containers, pause and resume them, exec, stop and start one, and remove."""
    several(client, "runc")


def gvisor(client: Client) -> None:
    """The same under gVisor, where the keeper holds gofers and the sentry knows how containers end."""
    several(client, "gvisor")


def vm(client: Client) -> None:
    """The same in a machine, which goes on while nobody is there to talk to its agent."""
    several(client, "vm")


def several(client: Client, kind: str) -> None:
    client.call("pod.run", PodRun(spec=spec(containers=2, remove=True, sandbox=kind)), timeout_s=CALL_TIMEOUT_S)
    client.call("pod.pause", Ref(ref="victim"), timeout_s=CALL_TIMEOUT_S)
    client.call("pod.resume", Ref(ref="victim"), timeout_s=CALL_TIMEOUT_S)
    client.call("exec.start", ExecStart(ref="c0", spec=ExecSpec(argv=("true",))), timeout_s=CALL_TIMEOUT_S)
    client.call("container.stop", Stop(ref="c0", force=True), timeout_s=CALL_TIMEOUT_S)  # not with 7, as next time
    client.call("container.start", ContainerStart(ref="c0"), timeout_s=CALL_TIMEOUT_S)
    client.call("pod.delete", Delete(ref="victim", force=True), timeout_s=CALL_TIMEOUT_S)


def begins_work(write: str) -> bool:
    """Whether a step follows this write; between others nothing happens."""
    return write.startswith("UPDATE objects SET phase")


Scenario = Callable[[Client], None]


def act(daemon: Daemon, scenario: Scenario) -> None:
    with daemon.client() as client:
        scenario(client)


# -- what is true afterwards --------------------------------------------------------------------------------------


def pods(daemon: Daemon) -> list[PodStatus]:
    with daemon.client() as client:
        found: list[PodStatus] = client.call("pod.list", ListFilter(), timeout_s=CALL_TIMEOUT_S).pods
    return found


def is_settled(daemon: Daemon) -> bool:
    """Nothing is in the midst of a step any more: a stop may go on for a moment after the daemon answers."""
    return not any(pod.phase or any(c.phase for c in pod.containers) for pod in pods(daemon))


def is_whole(daemon: Daemon, pod: PodStatus) -> None:
    """A definite state, and the host agrees with it."""
    assert pod.state in ("ready", "running", "paused", "stopped"), (pod.state, pod.phase, pod.cause)
    assert pod.phase == "", (pod.state, pod.phase)
    has_namespaces = (daemon.run / "pods" / pod.id / "ns" / "net").exists()
    assert has_namespaces == (pod.state != "stopped")
    if pod.state == "paused":
        with daemon.client() as client:
            pod = client.call("pod.resume", Ref(ref=pod.id), timeout_s=CALL_TIMEOUT_S)
    for container in pod.containers:
        assert container.phase == "" and container.state in ("ready", "running", "stopped"), container
        has_process = container.state == "running" or (container.state == "ready" and pod.sandbox != "vm")
        assert has_process == is_alive(container.pid), container
        if container.state == "running":
            is_unharmed(daemon, container)


def is_unharmed(daemon: Daemon, container: ContainerStatus) -> None:
    """Its output is there, and its exit code still arrives."""
    wait_until(lambda: " stdout F begin" in Path(container.log_path).read_text(), what="its output is there")
    with daemon.client() as client:
        client.call("container.kill", {"ref": container.id, "signal": "TERM"}, timeout_s=CALL_TIMEOUT_S)
        end = client.call("container.wait", Wait(ref=container.id), timeout_s=CALL_TIMEOUT_S)
    assert end.code == 7, end


@pytest.mark.timeout(3600 if probes.FULL else 240)
@pytest.mark.parametrize(
    ("scenario", "moment"),
    [
        (life, "before"),
        (life, "after"),
        (run_pause_exec, "before"),
        (run_pause_exec, "after"),
        (gvisor, "after"),
        (vm, "after"),
        (vm, "before"),
    ],
)
def test_death_at_each_write(faulty: FaultyDaemon, scenario: Scenario, moment: str) -> None:
    if scenario is gvisor:
        probes.needs_program("runsc")
    if scenario is vm:
        probes.needs_full("a machine that is started some forty times")
        machines.prepared(faulty)
    faulty.arm(0, "never")
    act(faulty, scenario)
    writes = faulty.listed()
    chosen = probes.each(3, [n for n, text in enumerate(writes, 1) if moment == "before" or begins_work(text)])
    assert len(writes) > 20
    assert residue(faulty) == {}
    faulty.kill()
    faulty.start()
    began = time.monotonic()
    not_reached: list[int] = []
    for write in chosen:
        faulty.arm(write, moment)
        with suppress(DrupeError, OSError):
            act(faulty, scenario)
        if not faulty.died():
            made = len(faulty.listed())
            assert made < write, f"it did not die at write {write} of {made}"
            not_reached.append(write)  # a busy host: an end came together with another, and one event less was written
            faulty.kill()
        try:
            faulty.start()
            wait_until(lambda: is_settled(faulty), what="what was begun is at its end", timeout_s=SETTLES_WITHIN_S)
            for pod in pods(faulty):
                is_whole(faulty, pod)
            faulty.delete_pods()
            wait_until(lambda: not residue(faulty), what=f"nothing is left: {residue(faulty)}")
            assert "Traceback" not in faulty.log.read_text()
        except (AssertionError, DrupeError) as error:
            error.add_note(f"killed {moment} write {write} of {len(writes)}; {faulty.log.read_text()[-2000:]}")
            raise
    assert len(not_reached) <= 2, f"these writes did not come again: {not_reached}"
    spent_s = time.monotonic() - began
    print(f"{scenario.__name__}: killed {moment} {len(chosen)} of {len(writes)} writes, {spent_s:.1f} s")
