"""Harm done to the daemon, its keeper, disk, journal and OCI runtime: clear errors, no leak, it lives."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from drupe.errors import DrupeError, HelperFailed, NotFound, ResourceExhausted, Unavailable
from drupe.spec import ContainerSpec, ContainerStatus, ExitStatus, Hook, Hooks, NetworkSpec, PodSpec
from drupe.spec.control import Empty, ListFilter, PodCreate, Ref, Wait
from framework import images, probes
from framework.daemon import CALL_TIMEOUT_S, COMMAND, Daemon
from framework.disks import fill, small_disk
from framework.leaks import wait_until
from framework.residue import is_alive, residue, rss_kib

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture
def broken(tmp_path_factory: pytest.TempPathFactory, busybox: Path) -> Iterator[Daemon]:
    """A daemon not started yet, for a test that prepares its directories or its PATH."""
    probes.needs_root()
    probes.needs_keeper()
    probes.needs_program("crun", "unshare", "nsenter", "ip")
    daemon = Daemon(tmp_path_factory.mktemp("d"))
    images.copy_store(busybox, daemon.root)
    try:
        yield daemon
    finally:
        if daemon.process is not None:
            daemon.close()
        else:
            os.close(daemon._netns)


def status(daemon: Daemon, ref: str) -> ContainerStatus:
    with daemon.client() as client:
        found: ContainerStatus = client.call("container.status", Ref(ref=ref), timeout_s=CALL_TIMEOUT_S)
    return found


def end_of(daemon: Daemon, ref: str) -> ExitStatus:
    with daemon.client() as client:
        end: ExitStatus = client.call("container.wait", Wait(ref=ref, timeout_s=20), timeout_s=CALL_TIMEOUT_S)
    return end


def log_lines(container: ContainerStatus) -> list[str]:
    """What it printed, rotated files first."""
    path = Path(container.log_path)
    rotated = sorted(path.parent.glob(path.name + ".*"), key=lambda p: -int(p.suffix[1:]))
    lines = [line for file in [*rotated, path] for line in file.read_text().splitlines()]
    return [line.split(" ", 3)[3] for line in lines]


def notes(daemon: Daemon) -> list[str]:
    with daemon.client() as client:
        found: list[str] = client.call("system.info", Empty(), timeout_s=CALL_TIMEOUT_S).recovery
    return found


def works(daemon: Daemon) -> None:
    """A pod can be run to its end, and nothing is left of any."""
    done = daemon.command("run", "--rm", "--network", "none", "busybox", "echo", "well")
    assert (done.returncode, done.stdout) == (0, "well\n"), done.stderr
    daemon.delete_pods()
    wait_until(lambda: not residue(daemon), what=f"nothing is left: {residue(daemon)}")
    assert "Traceback" not in daemon.log.read_text(), daemon.log.read_text()


# -- death of daemon and keeper -----------------------------------------------------------------------------------


def test_output_and_exit_of_the_time_without_a_daemon(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon
    script = "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; sleep 0.3; echo last; exit 7"
    pod = daemon.run_pod("sh", "-c", script)
    daemon.kill()
    wait_until(lambda: not is_alive(pod.containers[0].pid), what="the workload ends", timeout_s=20)
    daemon.start()
    container = status(daemon, pod.containers[0].id)
    assert (container.state, container.exit.code, container.exit.reason) == ("stopped", 7, "Error")
    assert log_lines(container) == [*(f"line {n}" for n in range(3000)), "last"]
    works(daemon)


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "shut down"])
def test_what_was_only_made_waits_for_its_start(fresh_daemon: Daemon, killed: bool) -> None:
    """`create` has answered: no later daemon takes that for a `run` that came to nothing."""
    daemon = fresh_daemon
    daemon.command("create", "--name", "made", "--network", "none", "busybox", "echo", "started", check=True)
    if killed:
        daemon.kill()
    else:
        daemon.command("system", "shutdown", check=True)
        assert daemon.process is not None
        daemon.process.wait(20)
    daemon.start()
    assert status(daemon, "made").state == "ready"
    daemon.command("start", "made", check=True)
    assert daemon.command("wait", "made", check=True).stdout == "0\n"
    assert daemon.command("logs", "made", check=True).stdout == "started\n"
    works(daemon)


def test_a_printing_workload_never_stands_still(fresh_daemon: Daemon) -> None:
    """Its daemon dies five times in a row while it prints; not one line is missing or doubled."""
    daemon = fresh_daemon
    pod = daemon.run_pod("sh", "-c", "i=0; trap 'exit 7' TERM; while :; do echo $i; i=$((i+1)); done")
    ref = pod.containers[0].id
    for _ in range(5):
        time.sleep(0.05)
        daemon.kill()
        daemon.start()
    with daemon.client() as client:
        client.call("container.kill", {"ref": ref, "signal": "TERM"}, timeout_s=CALL_TIMEOUT_S)
    assert end_of(daemon, ref).code == 7
    numbers = [int(line) for line in log_lines(status(daemon, ref))]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) and len(numbers) > 100
    works(daemon)


def test_a_waiting_client_learns_that_the_daemon_died(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon
    pod = daemon.run_pod("sleep", "60")
    with daemon.client() as client:
        killer = subprocess.Popen(["sh", "-c", f"sleep 0.2; kill -9 {daemon.pid}"])
        with pytest.raises(Unavailable):
            client.call("container.wait", Wait(ref=pod.containers[0].id))
        killer.wait()
    assert daemon.process is not None
    daemon.process.wait()
    daemon.start()
    works(daemon)


def kill_keeper(daemon: Daemon) -> int:
    pid = daemon.keeper_pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), what="the keeper is dead")
    return pid


def test_death_of_the_keeper_under_a_running_pod(fresh_daemon: Daemon) -> None:
    """The workload lives on, another keeper takes it over, its output goes on, and its end is heard of."""
    daemon = fresh_daemon
    script = "trap 'echo bye; exit 7' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.02; done"
    pod = daemon.run_pod("sh", "-c", script)
    ref, pid = pod.containers[0].id, pod.containers[0].pid
    time.sleep(0.2)
    old = kill_keeper(daemon)
    wait_until(lambda: is_alive(daemon.keeper_pid) and daemon.keeper_pid != old, what="another keeper is there")
    assert is_alive(pid)
    wait_until(lambda: any("keeper" in note for note in notes(daemon)), what="the daemon says so")
    before = len(log_lines(status(daemon, ref)))
    wait_until(lambda: len(log_lines(status(daemon, ref))) > before, what="output goes on")
    done = daemon.command("exec", pod.name, "echo", "inside", timeout_s=20)
    assert (done.returncode, done.stdout) == (0, "inside\n"), done.stderr
    with daemon.client() as client:
        client.call("container.kill", {"ref": ref, "signal": "TERM"}, timeout_s=CALL_TIMEOUT_S)
    end = end_of(daemon, ref)
    assert end.code == 7 or end.reason == "Lost", end
    assert log_lines(status(daemon, ref))[-1] == "bye"
    works(daemon)


def test_what_is_attached_outlives_the_keeper(fresh_daemon: Daemon) -> None:
    """A session in the foreground gets all of the output and the exit code, though keeper after keeper is killed."""
    daemon = fresh_daemon
    script = "i=0; while [ $i -lt 60 ]; do echo $i; i=$((i+1)); sleep 0.02; done; read line; echo $line; exit 9"
    argv = [COMMAND, "run", "--rm", "-i", "--network", "none", "busybox", "sh", "-c", script]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, env=daemon.environment(), stdin=pipe, stdout=pipe, text=True) as session:
        assert session.stdin and session.stdout
        lines = [session.stdout.readline()]
        for _ in range(2):
            old = kill_keeper(daemon)
            wait_until(lambda: daemon.keeper_pid not in (0, old), what="another keeper is there")  # noqa: B023
            lines += [session.stdout.readline() for _ in range(10)]
        session.stdin.write("the end\n")
        session.stdin.close()
        lines += session.stdout.readlines()
        assert session.wait(CALL_TIMEOUT_S) == 9
    assert lines == [f"{n}\n" for n in range(60)] + ["the end\n"]
    works(daemon)


def test_deaths_of_the_keeper_among_ends(fresh_daemon: Daemon) -> None:
    """Tasks that end around its death do not keep the others from being taken over."""
    daemon = fresh_daemon
    pod = daemon.run_pod("sleep", "1000")
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            daemon.command("run", "--rm", "--network", "none", "busybox", "sh", "-c", "sleep 0.02; exit 3")

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(8):
            time.sleep(0.15)
            old = kill_keeper(daemon)
            wait_until(lambda: daemon.keeper_pid not in (0, old), what="another keeper is there")  # noqa: B023
            assert daemon.command("exec", pod.containers[0].id, "true").returncode == 0
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert status(daemon, pod.containers[0].id).state == "running"
    works(daemon)


def test_death_of_the_keeper_without_pods(fresh_daemon: Daemon) -> None:
    old = kill_keeper(fresh_daemon)
    wait_until(lambda: fresh_daemon.keeper_pid not in (0, old), what="another keeper is there")
    works(fresh_daemon)


def test_death_of_keeper_and_daemon(fresh_daemon: Daemon) -> None:
    """Nobody holds the output any more: what was lost is said, and what lives is removed or kept, never half."""
    daemon = fresh_daemon
    pod = daemon.run_pod("sh", "-c", "while :; do sleep 0.05; done")
    daemon.kill()
    kill_keeper(daemon)
    daemon.start()
    container = status(daemon, pod.containers[0].id)
    assert (container.state == "running") == is_alive(pod.containers[0].pid), container
    if container.state == "stopped":
        assert container.exit is not None and container.exit.reason == "Lost"
    works(daemon)


# -- disk ---------------------------------------------------------------------------------------------------------


def test_a_full_disk(tmp_path_factory: pytest.TempPathFactory, busybox: Path) -> None:
    directory = tmp_path_factory.mktemp("d")
    with small_disk(directory / "root", "24m"):
        daemon = Daemon(directory)
        images.copy_store(busybox, daemon.root)
        daemon.start()
        try:
            pod = daemon.run_pod("sh", "-c", "trap 'exit 7' TERM; while :; do echo noise; sleep 0.01; done")
            ballast = fill(daemon.root)
            with pytest.raises(ResourceExhausted) as caught:
                for _ in range(20):
                    daemon.run_pod("true")
            assert caught.value.hint
            assert is_alive(pod.containers[0].pid)
            assert status(daemon, pod.containers[0].id).state == "running"
            done = daemon.command("exec", pod.name, "echo", "inside")
            assert (done.returncode, done.stdout) == (0, "inside\n"), done.stderr
            daemon.kill()
            try:
                daemon.start()
            except AssertionError as refusal:  # it may refuse to start then, but says why
                assert "full" in str(refusal) or "No space" in str(refusal), refusal
                assert "Traceback" not in str(refusal)
                ballast.unlink()
                daemon.start()
            ballast.unlink(missing_ok=True)
            assert status(daemon, pod.containers[0].id).state == "running"
            with daemon.client() as client:
                client.call("container.kill", {"ref": pod.containers[0].id, "signal": "TERM"})
            assert end_of(daemon, pod.containers[0].id).code == 7
            works(daemon)
        finally:
            daemon.close()


def test_a_read_only_state_directory(tmp_path_factory: pytest.TempPathFactory, busybox: Path) -> None:
    """With a running pod the disk turns read-only: refused with cause, the pod lives; it comes back, all is well."""
    directory = tmp_path_factory.mktemp("d")
    with small_disk(directory / "root", "32m"):
        daemon = Daemon(directory)
        images.copy_store(busybox, daemon.root)
        daemon.start()
        try:
            pod = daemon.run_pod("sleep", "60")
            daemon.kill()
            subprocess.run(["mount", "-o", "remount,bind,ro", daemon.root], check=True)
            with pytest.raises(AssertionError):
                daemon.start()
            said = daemon.log.read_text()
            assert "Traceback" not in said and ("read-only" in said.lower()), said
            assert is_alive(pod.containers[0].pid)
            subprocess.run(["mount", "-o", "remount,bind,rw", daemon.root], check=True)
            daemon.start()
            assert status(daemon, pod.containers[0].id).state == "running"
            works(daemon)
        finally:
            daemon.close()


# -- journal ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["garbage", "truncated", "empty"])
def test_a_corrupt_journal(fresh_daemon: Daemon, harm: str) -> None:
    daemon = fresh_daemon
    pod = daemon.run_pod("sleep", "60")
    daemon.kill()
    journal = daemon.root / "journal.db"
    with closing(sqlite3.connect(journal)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    match harm:
        case "garbage":
            journal.write_bytes(os.urandom(16384))
        case "truncated":
            os.truncate(journal, journal.stat().st_size // 2)
        case "empty":
            journal.write_bytes(b"")
    daemon.start()
    if harm != "empty":
        assert any("journal was corrupt" in note for note in notes(daemon)), notes(daemon)
        assert list(daemon.root.glob("journal.db.corrupt-*"))
    with daemon.client() as client:
        known = client.call("pod.list", ListFilter(), timeout_s=CALL_TIMEOUT_S).pods
    assert (pod.id in [p.id for p in known]) == is_alive(pod.containers[0].pid)
    works(daemon)


def test_a_journal_of_a_newer_version(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon
    daemon.kill()
    with closing(sqlite3.connect(daemon.root / "journal.db")) as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(AssertionError, match="has schema 99, this drupe knows"):
        daemon.start()
    with closing(sqlite3.connect(daemon.root / "journal.db")) as db:
        db.execute("PRAGMA user_version=1")
    daemon.start()
    works(daemon)


# -- the OCI runtime ----------------------------------------------------------------------------------------------


@pytest.fixture
def own_crun(broken: Daemon) -> Path:
    """A crun of the test's own, first on the daemon's PATH; the daemon runs."""
    path = broken.root.parent / "bin" / "crun"
    path.parent.mkdir()
    path.write_bytes(Path(str(probes.program("crun"))).read_bytes())
    path.chmod(0o755)
    broken.start(env={"PATH": f"{path.parent}:{os.environ['PATH']}"})
    return path


def test_a_vanished_runtime(broken: Daemon, own_crun: Path) -> None:
    pod = broken.run_pod("sleep", "60")
    hidden = own_crun.rename(own_crun.with_name("hidden"))
    with pytest.raises((NotFound, HelperFailed, Unavailable)) as caught:
        broken.run_pod("true")
    assert "crun" in str(caught.value) and "\n" not in str(caught.value)
    assert status(broken, pod.containers[0].id).state == "running"
    hidden.rename(own_crun)
    works(broken)


@pytest.mark.parametrize("hooks", [False, True], ids=["plain", "hooks"])
def test_a_runtime_that_vanishes_between_create_and_start(broken: Daemon, own_crun: Path, hooks: bool) -> None:
    """A plain container starts without its help; one with hooks needs it, and says so."""
    hook = Hooks(poststart=(Hook(path="/bin/true"),)) if hooks else Hooks()
    container = ContainerSpec(image="busybox", argv=("sleep", "60"), hooks=hook)
    spec = PodSpec(name="p", network=NetworkSpec(mode="none"), containers=(container,))
    hidden = own_crun.with_name("hidden")
    with broken.client() as client:
        client.call("pod.create", PodCreate(spec=spec), timeout_s=CALL_TIMEOUT_S)
        own_crun.rename(hidden)
        if hooks:
            with pytest.raises(DrupeError) as caught:
                client.call("pod.start", Ref(ref="p"), timeout_s=CALL_TIMEOUT_S)
            assert caught.value.code != "INTERNAL", caught.value
            assert client.call("pod.status", Ref(ref="p"), timeout_s=CALL_TIMEOUT_S).state == "failed"
        else:
            assert client.call("pod.start", Ref(ref="p"), timeout_s=CALL_TIMEOUT_S).state == "running"
    hidden.rename(own_crun)
    works(broken)


@pytest.mark.parametrize("how", ["kill -9 $$", "exit 3", "echo broken >&2; exit 1"])
def test_a_runtime_that_dies(broken: Daemon, own_crun: Path, how: str) -> None:
    real = own_crun.rename(own_crun.with_name("real-crun"))
    own_crun.write_text(f'#!/bin/sh\ncase " $* " in *" create "*) {how};; esac\nexec {real} "$@"\n')
    own_crun.chmod(0o755)
    with pytest.raises(DrupeError) as caught:
        broken.run_pod("sleep", "60")
    assert caught.value.code != "INTERNAL", caught.value
    assert "broken" in str(caught.value) or "broken" not in how
    wait_until(lambda: not residue(broken), what=f"nothing is left: {residue(broken)}")
    own_crun.unlink()
    real.rename(own_crun)
    works(broken)


def test_a_runtime_killed_after_it_made_the_container(broken: Daemon, own_crun: Path) -> None:
    real = own_crun.rename(own_crun.with_name("real-crun"))
    own_crun.write_text(f'#!/bin/sh\ncase " $* " in *" create "*) {real} "$@"; kill -9 $$;; esac\nexec {real} "$@"\n')
    own_crun.chmod(0o755)
    with pytest.raises(DrupeError):
        broken.run_pod("sleep", "60")
    wait_until(lambda: not residue(broken), what=f"nothing is left: {residue(broken)}")
    own_crun.unlink()
    real.rename(own_crun)
    works(broken)


def test_an_idle_daemon_ends_without_a_trace(broken: Daemon) -> None:
    """Its keeper ends with it, and its parent cgroup goes in every hierarchy."""
    broken.start()
    works(broken)
    keeper = broken.keeper_pid
    with broken.client() as client:
        client.call("system.shutdown", Empty(), timeout_s=CALL_TIMEOUT_S)
    assert broken.process is not None and broken.process.wait(20) == 0
    wait_until(lambda: not is_alive(keeper), what="the keeper ends")
    assert [str(path) for path in Path("/sys/fs/cgroup").glob(f"**{broken.cgroup}")] == []


# -- many ---------------------------------------------------------------------------------------------------------

MANY = 120 if probes.FULL else 60
GROWTH_KIB = 6 * 1024


def test_many_pods_one_after_the_other(fresh_daemon: Daemon) -> None:
    """Neither the host nor the daemon's memory keeps a trace of them."""
    daemon = fresh_daemon

    def round_of(count: int) -> None:
        for _ in range(count):
            daemon.run_pod("true")
        daemon.delete_pods()

    round_of(20)
    before, keeper = rss_kib(daemon.pid), rss_kib(daemon.keeper_pid)
    files = len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))
    keeper_files = len(list(Path(f"/proc/{daemon.keeper_pid}/fd").iterdir()))
    for _ in range(MANY // 20):
        round_of(20)
    assert rss_kib(daemon.pid) - before < GROWTH_KIB
    assert rss_kib(daemon.keeper_pid) - keeper < 1024
    assert len(list(Path(f"/proc/{daemon.pid}/fd").iterdir())) <= files + 2
    assert len(list(Path(f"/proc/{daemon.keeper_pid}/fd").iterdir())) <= keeper_files + 2
    works(daemon)
