"""What a clumsy or malicious client, image or workload must not achieve, against a real daemon."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from drupe.errors import DrupeError, InvalidArgument
from drupe.rpc.client import Client
from drupe.spec import ExecSpec, ExitStatus, Mount, RestartPolicy
from drupe.spec.control import Delete, Empty, ExecKill, ExecStart, FileRef, FileWrite, Kill, Ref, Stop, Wait
from framework.daemon import COMMAND, Daemon
from framework.leaks import wait_until
from framework.residue import is_alive, residue

pytestmark = pytest.mark.root

PROMPT_S = 5.0


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with daemon.client() as client:
        yield client
    daemon.delete_pods()


def test_idle_transfers_hold_up_nobody(daemon: Daemon, client: Client) -> None:
    """Each `drupe cp - …` from a terminal waits for its user: pods must live on meanwhile."""
    pod = daemon.run_pod("sleep", "1000").name
    pipes = [os.pipe() for _ in range(40)]
    writers = [threading.Thread(target=_write, args=(daemon, pod, read_end)) for read_end, _ in pipes]
    for writer in writers:
        writer.start()
    try:
        client.call("file.stat", FileRef(ref=pod, path="/etc"), timeout_s=PROMPT_S)
        client.call("pod.pause", Ref(ref=pod), timeout_s=PROMPT_S)
        client.call("pod.resume", Ref(ref=pod), timeout_s=PROMPT_S)
    finally:
        for _, write_end in pipes:
            os.close(write_end)
        for writer in writers:
            writer.join()


def test_devices_for_user_files_are_not_opened(daemon: Daemon, client: Client) -> None:
    """A workload may make device nodes that it cannot use itself; the daemon could, as what opens /etc/passwd."""
    pod = daemon.run_pod("sleep", "1000").name
    made = "rm -f /etc/passwd /etc/group; mknod /etc/passwd c 1 5; mkfifo /etc/group"
    assert _exec(client, pod, "sh", "-c", made).code == 0
    assert _exec(client, pod, "true", user="5").code == 0
    with pytest.raises(InvalidArgument, match="no user 'bin'"):
        _exec(client, pod, "true", user="bin")
    with pytest.raises(InvalidArgument, match="is a device"):
        client.call("file.write", FileWrite(ref=pod, path="/etc/passwd", append=True), fds={"data": 0}, timeout_s=5)


def test_files_are_the_containers_own_whatever_root_it_moved_to(daemon: Daemon, client: Client) -> None:
    escape = "mkdir -p /jail/bin; cp /bin/busybox /jail/bin/; exec chroot /jail /bin/busybox sleep 1000"
    pod = daemon.run_pod("sh", "-c", escape).name
    wait_until(lambda: Path(f"/proc/{_pid(client, pod)}/root").readlink() != Path("/"), what="its root has changed")
    listed = client.call("file.list", FileRef(ref=pod, path="/"), timeout_s=PROMPT_S).files
    assert "jail" in {Path(file.path).name for file in listed}


def test_a_bottomless_volume_is_counted_and_removed(daemon: Daemon, client: Client) -> None:
    dig = "cd /v; i=0; while [ $i -lt 1200 ]; do mkdir d; cd d; i=$((i+1)); done"
    mounts = (Mount(type="volume", source="deep", target="/v"),)
    pod = daemon.run_pod("sh", "-c", dig + "; touch /dug; sleep 1000", mounts=mounts).name
    wait_until(lambda: _exec(client, pod, "test", "-e", "/dug").code == 0, what="the volume is deep")
    assert client.call("system.df", Empty(), timeout_s=PROMPT_S)
    client.call("pod.delete", Delete(ref=pod, force=True), timeout_s=PROMPT_S)
    client.call("volume.delete", Delete(ref="deep"), timeout_s=PROMPT_S)
    assert not (daemon.root / "volumes/deep").exists()


@pytest.mark.parametrize("running", [True, False])
def test_a_transfer_that_waits_does_not_keep_its_container(daemon: Daemon, client: Client, running: bool) -> None:
    pod = daemon.run_pod("sleep", "1000").name
    if not running:
        client.call("pod.stop", Stop(ref=pod, force=True), timeout_s=PROMPT_S)
    read_end, write_end = os.pipe()
    writer = threading.Thread(target=_write, args=(daemon, pod, read_end))
    writer.start()
    try:
        wait_until(lambda: _temporaries(client, pod), what="the transfer has begun")
        client.call("pod.delete", Delete(ref=pod, force=True), timeout_s=PROMPT_S)
    finally:
        os.close(write_end)
        writer.join()


def test_killing_an_exec_takes_what_it_started(daemon: Daemon, client: Client) -> None:
    pod = daemon.run_pod("sleep", "1000").name
    family = ExecSpec(argv=("sh", "-c", "sh -c 'sleep 1001 & sleep 1002' & sleep 1003"))
    members = {"sleep 1001", "sleep 1002", "sleep 1003"}
    with client.stream("exec.start", ExecStart(ref=pod, spec=family), timeout_s=PROMPT_S) as stream:
        exec_id = next(iter(stream)).exec_id
        wait_until(lambda: members <= set(_processes(client, pod)), what="the family is complete")
        client.call("exec.kill", ExecKill(ref=pod, exec_id=exec_id, tree=True), timeout_s=PROMPT_S)
        assert not list(stream)
        assert stream.result.signal == 9
    wait_until(lambda: _processes(client, pod) == ["sleep 1000"], what="none of the family is left")


def test_a_client_that_is_killed_leaves_nothing_waiting(daemon: Daemon, client: Client) -> None:
    pod = daemon.run_pod("sleep", "1000").name
    before = _descriptors(daemon)
    command = [COMMAND, "exec", "-i", pod, "cat"]
    for _ in range(5):
        process = subprocess.Popen(command, env=daemon.environment(), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        wait_until(lambda: "cat" in _processes(client, pod), what="it runs")
        process.kill()
        process.communicate()
        wait_until(lambda: _processes(client, pod) == ["sleep 1000"], what="cat has seen the end of its input")
    wait_until(lambda: _descriptors(daemon) <= before, what="its descriptors are closed")


def test_daemon_and_keeper_killed_at_once(fresh_daemon: Daemon) -> None:
    """Nobody holds the workloads any more: they end, frozen ones too, and what is left can be started and removed."""
    keeper = fresh_daemon.keeper_pid
    plain = fresh_daemon.run_pod("sh", "-c", "touch /mark; sleep 1000").name
    frozen = fresh_daemon.run_pod("sleep", "1000").name
    steady = fresh_daemon.run_pod("sleep", "1000", restart=RestartPolicy(name="always")).name
    with fresh_daemon.client() as client:
        client.call("pod.pause", Ref(ref=frozen), timeout_s=PROMPT_S)
        wait_until(lambda: _exec(client, plain, "test", "-e", "/mark").code == 0, what="it has written")
        lived = [_pid(client, pod) for pod in (plain, frozen, steady)]
    fresh_daemon.kill()  # first: it would start another keeper
    os.kill(keeper, signal.SIGKILL)
    fresh_daemon.start()
    wait_until(lambda: not any(is_alive(pid) for pid in lived), what="the old workloads have ended")
    with fresh_daemon.client() as client:
        wait_until(lambda: _state(client, steady) == "running", what="the policy has started it again")
        for pod in (plain, frozen):
            assert _state(client, pod) == "stopped"
            client.call("pod.start", Ref(ref=pod), timeout_s=PROMPT_S)
            assert _exec(client, pod, "grep", "-q", "shm /dev/shm tmpfs", "/proc/mounts").code == 0
        assert _exec(client, plain, "test", "-e", "/mark").code == 0
    fresh_daemon.delete_pods()
    assert not residue(fresh_daemon)


def test_kill_reaches_into_a_paused_pod(daemon: Daemon, client: Client) -> None:
    pod = daemon.run_pod("sleep", "1000").name
    client.call("pod.pause", Ref(ref=pod), timeout_s=PROMPT_S)
    client.call("container.kill", Kill(ref=pod), timeout_s=PROMPT_S)
    assert client.call("container.wait", Wait(ref=pod), timeout_s=PROMPT_S).signal == signal.SIGKILL
    client.call("pod.delete", Delete(ref=pod), timeout_s=PROMPT_S)


def test_what_a_new_keeper_does_not_know_has_ended(fresh_daemon: Daemon) -> None:
    """Killed together with its keeper: no exit record tells of its end."""
    pod = fresh_daemon.run_pod("sleep", "1000").name
    with fresh_daemon.client() as client:
        pid = _pid(client, pod)
        os.kill(fresh_daemon.keeper_pid, signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
        assert client.call("container.wait", Wait(ref=pod), timeout_s=PROMPT_S).code != 0
        client.call("pod.delete", Delete(ref=pod, force=True), timeout_s=PROMPT_S)


def _state(client: Client, pod: str) -> str:
    return str(client.call("container.status", Ref(ref=pod), timeout_s=PROMPT_S).state)


def _temporaries(client: Client, pod: str) -> list[str]:
    listed = client.call("file.list", FileRef(ref=pod, path="/tmp"), timeout_s=PROMPT_S).files
    return [file.path for file in listed]


def _processes(client: Client, pod: str) -> list[str]:
    found = client.call("container.processes", Ref(ref=pod), timeout_s=PROMPT_S).processes
    return [process.command for process in found]


def _descriptors(daemon: Daemon) -> int:
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in (daemon.pid, daemon.keeper_pid))


def _exec(client: Client, pod: str, *argv: str, **options: object) -> ExitStatus:
    spec = ExecSpec(argv=argv, **options)  # type: ignore[arg-type]
    status: ExitStatus = client.call("exec.start", ExecStart(ref=pod, spec=spec), timeout_s=PROMPT_S)
    return status


def _pid(client: Client, pod: str) -> int:
    return int(client.call("container.status", Ref(ref=pod), timeout_s=PROMPT_S).pid)


def _write(daemon: Daemon, pod: str, data: int) -> None:
    with daemon.client() as own, suppress(DrupeError):
        own.call("file.write", FileWrite(ref=pod, path=f"/tmp/{data}"), fds={"data": data}, timeout_s=60)
    os.close(data)
