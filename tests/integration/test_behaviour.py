"""The behaviour list on the real thing: every call of the pod and container API through a daemon, on runc sandboxes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drupe.errors import (
    AlreadyExists,
    DeadlineExceeded,
    DrupeError,
    InvalidArgument,
    InvalidState,
    InvalidTransition,
    NotFound,
    PermissionDenied,
)
from drupe.rpc.client import Client
from drupe.spec import (
    ContainerSpec,
    ContainerStatus,
    Event,
    ExecSpec,
    ExitStatus,
    HealthCheck,
    Hook,
    Hooks,
    NetworkSpec,
    PodSpec,
    PodStatus,
    Resources,
    RestartPolicy,
    Secret,
)
from drupe.spec.control import (
    ContainerCreate,
    ContainerStart,
    Delete,
    Events,
    ExecStart,
    Kill,
    ListFilter,
    PodCreate,
    PodRun,
    Ref,
    Stop,
    Update,
    Wait,
)
from framework.daemon import CALL_TIMEOUT_S, Daemon
from framework.leaks import wait_until
from framework.residue import is_alive, residue

pytestmark = pytest.mark.root

PATIENT = ("sh", "-c", "trap 'exit 0' TERM; echo up; while :; do sleep 0.02; done")
STUBBORN = ("sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.02; done")


class Face:
    """Short words for the calls."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def call(self, method: str, params: Any) -> Any:
        return self.client.call(method, params, timeout_s=CALL_TIMEOUT_S)

    def container(self, *argv: str, **fields: Any) -> ContainerSpec:
        return ContainerSpec(**{"image": "busybox", "argv": argv, **fields})

    def spec(self, *containers: ContainerSpec, **fields: Any) -> PodSpec:
        return PodSpec(**{"network": NetworkSpec(mode="none"), "containers": containers, **fields})

    def create(self, *containers: ContainerSpec, **fields: Any) -> PodStatus:
        made: PodStatus = self.call("pod.create", PodCreate(spec=self.spec(*containers, **fields)))
        return made

    def run(self, *containers: ContainerSpec, **fields: Any) -> PodStatus:
        made: PodStatus = self.call("pod.run", PodRun(spec=self.spec(*containers, **fields)))
        return made

    def start(self, *containers: ContainerSpec, **fields: Any) -> PodStatus:
        pod = self.create(*containers, **fields)
        started: PodStatus = self.call("pod.start", Ref(ref=pod.id))
        return started

    def up(self, *containers: ContainerSpec) -> PodStatus:
        """Started, and every workload has said `up`: it has set its traps."""
        pod = self.start(*containers)
        for container in pod.containers:
            wait_until(lambda: " up" in Path(container.log_path).read_text(), what="it is up")  # noqa: B023 used at once
        return pod

    def pods(self) -> list[PodStatus]:
        found: list[PodStatus] = self.call("pod.list", ListFilter()).pods
        return found

    def exec(self, ref: str, *argv: str, **fields: Any) -> ExitStatus:
        end: ExitStatus = self.call("exec.start", ExecStart(ref=ref, spec=ExecSpec(argv=argv, **fields)))
        return end

    def pod(self, ref: str) -> PodStatus:
        found: PodStatus = self.call("pod.status", Ref(ref=ref))
        return found

    def status(self, ref: str) -> ContainerStatus:
        found: ContainerStatus = self.call("container.status", Ref(ref=ref))
        return found

    def wait(self, ref: str) -> ExitStatus:
        end: ExitStatus = self.call("container.wait", Wait(ref=ref, timeout_s=20))
        return end

    def delete(self, ref: str, *, force: bool = False) -> None:
        self.call("pod.delete", Delete(ref=ref, force=force))


@pytest.fixture
def face(daemon: Daemon) -> Iterator[Face]:
    """Calls; afterwards no pod is left and the host has no trace of any."""
    with daemon.client() as client:
        yield Face(client)
    daemon.delete_pods()
    wait_until(lambda: not residue(daemon), what=f"nothing is left: {residue(daemon)}")
    assert "Traceback" not in daemon.log.read_text(), daemon.log.read_text()


# -- pods ---------------------------------------------------------------------------------------------------------


def test_life_of_a_pod(face: Face) -> None:
    pod = face.create(face.container(*PATIENT), name="web", labels={"a": "b"}, annotations={"c": "d"})
    assert (pod.state, pod.containers[0].state) == ("ready", "ready")
    assert (pod.labels, pod.annotations) == ({"a": "b"}, {"c": "d"})
    assert is_alive(pod.containers[0].pid), "a created container has its init, waiting"
    pod = face.call("pod.start", Ref(ref="web"))
    assert (pod.state, pod.containers[0].state) == ("running", "running")
    wait_until(lambda: " up" in Path(pod.containers[0].log_path).read_text(), what="it is up")
    pod = face.call("pod.pause", Ref(ref="web"))
    assert (pod.state, pod.containers[0].state) == ("paused", "paused")
    pod = face.call("pod.resume", Ref(ref="web"))
    assert (pod.state, pod.containers[0].state) == ("running", "running")
    pod = face.call("pod.stop", Stop(ref="web"))
    assert (pod.state, pod.containers[0].exit.code) == ("stopped", 0)
    pod = face.call("pod.start", Ref(ref="web"))
    assert pod.state == "running" and is_alive(pod.containers[0].pid)
    face.call("pod.stop", Stop(ref="web", force=True))
    face.delete("web")
    with pytest.raises(NotFound):
        face.pod("web")


def test_a_paused_pod_stands_still(face: Face) -> None:
    counting = face.container("sh", "-c", "i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done")
    pod = face.start(counting, counting)
    logs = [Path(c.log_path) for c in pod.containers]
    wait_until(lambda: all(log.exists() and log.stat().st_size for log in logs), what="they print")
    face.call("pod.pause", Ref(ref=pod.id))
    time.sleep(0.05)
    sizes = [log.stat().st_size for log in logs]
    time.sleep(0.15)
    assert [log.stat().st_size for log in logs] == sizes
    face.call("pod.resume", Ref(ref=pod.id))
    wait_until(lambda: all(log.stat().st_size > size for log, size in zip(logs, sizes, strict=True)), what="they go on")


@pytest.mark.parametrize("state", ["ready", "running", "paused", "stopped"])
def test_moves(face: Face, state: str) -> None:
    """Each call from each state, as the table says."""
    allowed = {
        "ready": {"start", "stop", "delete"},
        "running": {"pause", "stop"},
        "paused": {"resume", "stop", "delete"},
        "stopped": {"start", "stop", "delete"},
    }[state]
    for verb in ("start", "pause", "resume", "stop", "delete"):
        pod = face.create(face.container(*PATIENT)) if state == "ready" else face.up(face.container(*PATIENT))
        if state == "paused":
            face.call("pod.pause", Ref(ref=pod.id))
        if state == "stopped":
            face.call("pod.stop", Stop(ref=pod.id, force=True))
        params = {"stop": Stop(ref=pod.id, timeout_s=5), "delete": Delete(ref=pod.id)}.get(verb, Ref(ref=pod.id))
        if verb in allowed:
            face.call(f"pod.{verb}", params)
        else:
            with pytest.raises(InvalidState):
                face.call(f"pod.{verb}", params)
            assert face.pod(pod.id).state == state
        if verb != "delete" or verb not in allowed:
            face.delete(pod.id, force=True)


def test_ready_to_paused_and_paused_to_ready_are_refused(face: Face) -> None:
    pod = face.create(face.container(*PATIENT))
    with pytest.raises(InvalidTransition) as caught:
        face.call("pod.pause", Ref(ref=pod.id))
    assert caught.value.details == {"from": "ready", "to": "paused"}


def test_list_filters(face: Face) -> None:
    face.create(face.container("true"), name="a", labels={"tier": "front"})
    face.run(face.container("sleep", "60"), name="b", labels={"tier": "back"}, namespace="other")

    def names(**wanted: Any) -> list[str]:
        return [pod.name for pod in face.call("pod.list", ListFilter(**wanted)).pods]

    assert (names(), names(states=("running",)), names(namespace="other")) == (["a", "b"], ["b"], ["b"])
    assert (names(labels=("tier=front",)), names(labels=("tier",)), names(labels=("no",))) == (["a"], ["a", "b"], [])
    assert [c.name for c in face.call("container.list", ListFilter(pod="other/b")).containers] == ["b"]


def test_run_ends_with_its_containers_and_rm_leaves_nothing(face: Face, daemon: Daemon) -> None:
    pod = face.run(face.container("sh", "-c", "exit 5"), face.container("true"))
    wait_until(lambda: face.pod(pod.id).state == "stopped", what="the pod ends")
    assert face.call("pod.wait", Wait(ref=pod.id)).code == 5
    face.delete(pod.id)
    gone = face.run(face.container("true"), remove=True)
    wait_until(lambda: gone.id not in [p.id for p in face.pods()], what="it is removed")


def test_a_deadline(face: Face) -> None:
    pod = face.run(face.container("sleep", "60"), timeout_s=0.3)
    end = face.wait(pod.containers[0].id)
    assert (end.code, end.reason) == (137, "Timeout")
    wait_until(lambda: face.pod(pod.id).state == "stopped", what="the pod is stopped")


def test_a_failing_pod_leaves_nothing(face: Face, daemon: Daemon) -> None:
    with pytest.raises(NotFound) as caught:
        face.run(face.container("sleep", "60"), face.container("no-such-program"))
    assert caught.value.details["exit_code"] == "127" and "no-such-program" in caught.value.message
    with pytest.raises(PermissionDenied) as denied:
        face.run(face.container("/etc/passwd"))
    assert denied.value.details["exit_code"] == "126"
    wait_until(lambda: not residue(daemon), what=f"nothing is left: {residue(daemon)}")


def test_names_and_references(face: Face) -> None:
    pod = face.create(face.container("true"), name="web")
    with pytest.raises(AlreadyExists):
        face.create(face.container("true"), name="web")
    assert face.pod("web").id == face.pod(pod.id[:8]).id == pod.id
    assert face.status("web/web").id == face.status(pod.containers[0].id[:8]).id == pod.containers[0].id


# -- containers ---------------------------------------------------------------------------------------------------


def test_containers_come_and_go_in_a_running_pod(face: Face) -> None:
    pod = face.start()
    spec = face.container("sh", "-c", "exit 3", name="job")
    made = face.call("container.create", ContainerCreate(pod=pod.id, spec=spec))
    assert made.state == "ready"
    assert face.call("container.start", ContainerStart(ref="job")).state in ("running", "stopped")
    assert face.wait("job").code == 3
    face.call("container.start", ContainerStart(ref="job"))
    assert face.wait("job").code == 3
    face.call("container.delete", Delete(ref="job"))
    assert face.pod(pod.id).containers == []


def test_guards_of_containers(face: Face) -> None:
    pod = face.create(face.container(*STUBBORN, name="c"))
    with pytest.raises(InvalidState, match="is ready, not running"):
        face.call("container.start", ContainerStart(ref="c"))
    with pytest.raises(InvalidState, match="cannot exec"):
        face.exec("c", "true")
    with pytest.raises(InvalidState):
        face.call("container.pause", Ref(ref="c"))
    face.call("pod.start", Ref(ref=pod.id))
    with pytest.raises(InvalidState):
        face.call("container.delete", Delete(ref="c"))
    with pytest.raises(InvalidState):
        face.call("container.start", ContainerStart(ref="c"))
    with pytest.raises(InvalidArgument, match="no signal 'NOPE'"):
        face.call("container.kill", Kill(ref="c", signal="NOPE"))
    face.call("container.stop", Stop(ref="c", timeout_s=0.05))
    assert face.wait("c").code == 137
    face.call("container.stop", Stop(ref="c"))
    with pytest.raises(InvalidState, match="cannot exec"):
        face.exec("c", "true")
    with pytest.raises(InvalidState):
        face.call("container.kill", Kill(ref="c", signal="TERM"))
    with pytest.raises(InvalidState):
        face.call("container.processes", Ref(ref="c"))


def test_kill_from_ready_ends_it(face: Face) -> None:
    pod = face.start()
    face.call("container.create", ContainerCreate(pod=pod.id, spec=face.container(*PATIENT, name="c")))
    pid = face.status("c").pid
    face.call("container.kill", Kill(ref="c", signal="KILL"))
    wait_until(lambda: face.status("c").state == "stopped", what="it is stopped")
    assert not is_alive(pid)
    assert face.call("container.start", ContainerStart(ref="c")).state == "running"


@pytest.mark.parametrize("all_", [False, True])
def test_kill(face: Face, all_: bool) -> None:
    pod = face.up(face.container(*STUBBORN))
    face.call("container.kill", Kill(ref=pod.containers[0].id, signal="9", all=all_))
    end = face.wait(pod.containers[0].id)
    assert (end.code, end.signal) == (137, 9)
    assert face.pod(pod.id).state == "running", "a pod made by create stays"


def test_kill_of_a_paused_one(face: Face) -> None:
    pod = face.up(face.container(*PATIENT))
    ref = pod.containers[0].id
    face.call("container.pause", Ref(ref=ref))
    assert face.status(ref).state == "paused"
    face.call("container.kill", Kill(ref=ref, signal="KILL"))
    assert face.wait(ref).code == 137


def test_nothing_in_a_paused_pod_can_be_ended_alone(face: Face) -> None:
    pod = face.up(face.container(*PATIENT, name="a"), face.container(*PATIENT, name="b"))
    ref = pod.containers[0].id
    face.call("pod.pause", Ref(ref=pod.id))
    calls = [("kill", Kill(ref=ref)), ("stop", Stop(ref=ref)), ("delete", Delete(ref=ref, force=True))]
    for verb, params in calls:
        with pytest.raises(InvalidState, match="is paused"):
            face.call(f"container.{verb}", params)
    face.delete(pod.id, force=True)


def test_processes_and_stats(face: Face) -> None:
    pod = face.start(face.container("sh", "-c", "sleep 60 & sleep 61 & wait"))
    ref = pod.containers[0].id

    def commands() -> list[str]:
        return sorted(p.command for p in face.call("container.processes", Ref(ref=ref)).processes)

    expected = ["sh -c sleep 60 & sleep 61 & wait", "sleep 60", "sleep 61"]
    wait_until(lambda: commands() == expected, what="the shell and its two children, which have run their programs")
    stats = face.call("pod.stats", Ref(ref=pod.id))
    assert stats.pids >= 3 and stats.memory_usage_bytes > 0


def test_update_holds_at_once_and_after_a_start(face: Face) -> None:
    pod = face.up(face.container(*PATIENT))
    ref = pod.containers[0].id
    face.call("container.update", Update(ref=ref, resources=Resources(pids=33, memory_bytes=48 << 20)))

    def limits() -> tuple[int, int]:
        stats = face.call("container.stats", {"refs": [ref]}).items[0].stats
        return stats.pids_limit, stats.memory_limit_bytes

    assert limits() == (33, 48 << 20)
    face.call("container.stop", Stop(ref=ref))
    face.call("container.start", ContainerStart(ref=ref))
    assert limits() == (33, 48 << 20)


def test_exec_wait_and_timeout(face: Face) -> None:
    pod = face.up(face.container(*PATIENT, env=("A=1",)))
    ref = pod.containers[0].id
    items: list[Any] = []
    end = face.client.call(
        "exec.start", ExecStart(ref=ref, spec=ExecSpec(argv=("sh", "-c", "exit $((A+3))"))), on_item=items.append
    )
    assert end.code == 4 and items[0].pid > 0
    end = face.exec(ref, "sh", "-c", "sleep 60 & sleep 61", timeout_s=0.2)
    assert (end.code, end.reason) == (137, "Timeout")
    wait_until(
        lambda: all("6" not in p.command for p in face.call("container.processes", Ref(ref=ref)).processes
                    if p.command.startswith("sleep 6")), what="its children are dead too",
    )  # fmt: skip
    with pytest.raises(NotFound):
        face.exec(ref, "no-such-program")
    assert face.status(ref).state == "running"


def test_wait_with_a_deadline(face: Face) -> None:
    pod = face.start(face.container("sleep", "60"))
    with pytest.raises(DeadlineExceeded):
        face.call("container.wait", Wait(ref=pod.containers[0].id, timeout_s=0.05))


# -- what follows an end ------------------------------------------------------------------------------------------


def test_restart_on_failure(face: Face) -> None:
    policy = RestartPolicy(name="on-failure", max_retries=2, delay_s=0.01)
    pod = face.run(face.container("sh", "-c", "echo again; exit 1", restart=policy))
    wait_until(lambda: face.pod(pod.id).state == "stopped", what="it gives up")
    container = face.status(pod.containers[0].id)
    assert (container.restarts, container.exit.code) == (2, 1)
    assert Path(container.log_path).read_text().count("again") == 3


def test_no_restart_after_a_stop(face: Face) -> None:
    pod = face.up(face.container(*PATIENT, restart=RestartPolicy(name="always", delay_s=0.01)))
    face.call("container.stop", Stop(ref=pod.containers[0].id))
    time.sleep(0.1)
    assert face.status(pod.containers[0].id).state == "stopped"


def test_health(face: Face) -> None:
    check = HealthCheck(argv=("test", "-e", "/tmp/well"), interval_s=0.05, retries=2)
    pod = face.up(face.container(*PATIENT, health=check))
    ref = pod.containers[0].id
    wait_until(lambda: face.status(ref).health == "unhealthy", what="it is unhealthy")
    assert face.exec(ref, "touch", "/tmp/well").code == 0
    wait_until(lambda: face.status(ref).health == "healthy", what="it is healthy")


def test_hooks_run_in_their_order(face: Face, tmp_path: Path) -> None:
    script = tmp_path / "hook"
    trace = tmp_path / "trace"
    script.write_text(f'#!/bin/sh\ncat > /dev/null\necho "$1" >> {trace}\n')
    script.chmod(0o755)

    def hook(name: str) -> tuple[Hook, ...]:
        return (Hook(path=str(script), args=(name,)),)

    hooks = Hooks(prestart=hook("prestart"), poststart=hook("poststart"), poststop=hook("poststop"))
    pod = face.run(face.container("true", hooks=hooks))
    face.wait(pod.containers[0].id)
    face.delete(pod.id, force=True)
    assert trace.read_text().split() == ["prestart", "poststart", "poststop"]


@pytest.mark.parametrize("phase", ["prestart", "create_runtime"])
def test_a_hook_that_fails_keeps_the_container_from_running(face: Face, daemon: Daemon, phase: str) -> None:
    with pytest.raises(DrupeError) as caught:
        face.run(face.container("true", hooks=Hooks(**{phase: (Hook(path="/bin/false"),)})))
    assert "hook" in str(caught.value), caught.value
    wait_until(lambda: not residue(daemon), what=f"nothing is left: {residue(daemon)}")


def test_secrets_are_in_no_file_of_the_state_directory(face: Face, daemon: Daemon) -> None:
    """Not in the journal, not in the layers, not in the bundle: only in the memory they are mounted from."""
    secret = Secret(name="token", value=b"s3cr3t-words-of-the-test")
    pod = face.run(face.container("sh", "-c", "cat /run/secrets/token > /dev/null; sleep 60", secrets=(secret,)))
    assert face.exec(pod.containers[0].id, "test", "-s", "/run/secrets/token").code == 0
    for directory in (daemon.root, daemon.run):
        for path in directory.rglob("*"):
            if path.is_file() and not path.is_socket() and path.stat().st_size < 64 << 20:
                assert b"s3cr3t-words" not in path.read_bytes(), path


def test_events_tell_the_story(face: Face) -> None:
    began = time.time()
    pod = face.run(face.container("sh", "-c", "exit 2"), remove=True)
    wait_until(lambda: not face.pods(), what="it is removed")
    told: list[Event] = []
    face.client.call("system.events", Events(since=began, follow=False), on_item=told.append)
    mine = [(e.type, e.action) for e in told if pod.id in (e.id, e.attributes.get("pod"))]
    assert mine == [
        ("container", "create"), ("pod", "create"), ("pod", "start"), ("container", "start"), ("container", "die"),
        ("pod", "stop"), ("container", "destroy"), ("pod", "destroy"),
    ]  # fmt: skip
    (die,) = [e for e in told if e.action == "die"]
    assert die.attributes["exit_code"] == "2"
