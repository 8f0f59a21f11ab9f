"""Machines that hang, at each moment of their life, beside those that are only slow: who waits is told why, in time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from framework import images, machines, serviceguest
from framework.daemon import COMMAND, Daemon
from framework.leaks import wait_until
from framework.machines import fails, leaves_nothing, pod_of
from framework.probes import needs_full

pytestmark = [pytest.mark.root]
FAILS_WITHIN_S = 30.0  # it takes about two seconds; machines of tests are busy
COLD = ("--memory", "200m")  # there is no template of that size


@pytest.fixture
def daemon(machine_daemon: Daemon) -> Iterator[Daemon]:
    yield from leaves_nothing(machine_daemon)


def argv(name: str, script: str, *flags: str) -> tuple[str, ...]:
    return ("run", "-d", "--name", name, "--sandbox", "vm", "--network", "none", *flags, "busybox", "sh", "-c", script)


def pid_of(daemon: Daemon, program: str) -> int:
    """Of the only machine; 0 while it is not there."""
    with suppress(StopIteration, ValueError):
        return int(next(iter(daemon.run.glob(f"pods/*/vm/{program}.pid"))).read_text())
    return 0


# -- the agent ----------------------------------------------------------------------------------------------------


@pytest.fixture
def service(tmp_path_factory: pytest.TempPathFactory, busybox: Path) -> Iterator[Daemon]:
    """A daemon whose guests have another first process than the agent, which stops or kills it when it is told."""
    machines.needs_machines()
    daemon = Daemon(tmp_path_factory.mktemp("d"))
    images.copy_store(busybox, daemon.root)
    serviceguest.make_root(daemon.root)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.close()


def test_an_agent_that_is_a_service(service: Daemon) -> None:
    """It does what it does as the first process; when it is stopped the pod has failed, and who waits is told."""
    service.command(*argv("one", "exec sleep 1000", "--privileged"), check=True)
    own = service.command("exec", "one", "cat", "/proc/1/cgroup", check=True).stdout
    assert own == "0::/\n"
    assert "sleep 1000" in service.command("top", "one", check=True).stdout
    waiting = subprocess.Popen(
        [COMMAND, "exec", "one", "sleep", "999"], env=service.environment(), stderr=subprocess.PIPE, text=True
    )
    service.command("exec", "one", "hostname", serviceguest.FREEZE, check=True)
    assert "does not answer" in fails(service, "one", within_s=FAILS_WITHIN_S)
    _, said = waiting.communicate(timeout=FAILS_WITHIN_S)
    assert waiting.returncode and "Traceback" not in said


def test_a_service_that_is_killed_and_one_that_ends_its_machine(service: Daemon) -> None:
    needs_full("machines with another first process")
    service.command(*argv("two", "exec sleep 1000", "--privileged"), check=True)
    service.command("exec", "two", "hostname", serviceguest.KILL, check=True)
    assert "does not answer" in fails(service, "two", within_s=FAILS_WITHIN_S)
    service.command("rm", "-f", "two", check=True)
    service.command(*argv("three", "trap 'exit 7' TERM; while :; do sleep 0.1; done"), check=True)
    service.command("stop", "three", check=True)
    assert pod_of(service, "three")["state"] == "stopped"


# -- the programs, at each moment ---------------------------------------------------------------------------------


def during_boot(daemon: Daemon, harm: Callable[[], None]) -> str:
    starting = subprocess.Popen(
        [COMMAND, *argv("one", "sleep 1000", *COLD)], env=daemon.environment(), stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: pid_of(daemon, "vmm") > 0, what="the monitor is there", timeout_s=FAILS_WITHIN_S)
    harm()
    _, said = starting.communicate(timeout=FAILS_WITHIN_S)
    assert starting.returncode == 125, said
    return said


def during_exec(daemon: Daemon, harm: Callable[[], None]) -> str:
    daemon.command(*argv("one", "sleep 1000"), check=True)
    asking = [
        subprocess.Popen([COMMAND, *words], env=daemon.environment(), stderr=subprocess.PIPE, text=True)
        for words in (("exec", "one", "sleep", "999"), ("attach", "one"), ("logs", "-f", "one"), ("wait", "one"))
    ]
    wait_until(lambda: "sleep 999" in daemon.command("top", "one").stdout, what="it runs", timeout_s=FAILS_WITHIN_S)
    harm()
    for one in asking:
        assert "Traceback" not in one.communicate(timeout=FAILS_WITHIN_S)[1]
    for words in (("exec", "one", "true"), ("top", "one"), ("pause", "one")):
        done = daemon.command(*words)
        assert done.returncode and "Traceback" not in done.stderr, done
    return fails(daemon, "one", within_s=FAILS_WITHIN_S)


def during_stop(daemon: Daemon, harm: Callable[[], None]) -> str:
    daemon.command(*argv("one", "trap '' TERM; while :; do sleep 0.1; done", "--stop-timeout", "60"), check=True)
    stopping = subprocess.Popen([COMMAND, "stop", "one"], env=daemon.environment(), stderr=subprocess.PIPE, text=True)
    time.sleep(1)
    harm()
    _, said = stopping.communicate(timeout=FAILS_WITHIN_S)
    assert "Traceback" not in said
    assert pod_of(daemon, "one")["state"] in ("stopped", "failed")
    return str(json.loads(daemon.command("inspect", "one", check=True).stdout)[0]["status"]["exit"]["message"])


def during_pause(daemon: Daemon, harm: Callable[[], None]) -> str:
    daemon.command(*argv("one", "sleep 1000"), check=True)
    daemon.command("pod", "pause", "one", check=True)
    time.sleep(3)  # a pause is no hang
    assert pod_of(daemon, "one")["state"] == "paused"
    harm()
    return fails(daemon, "one", within_s=FAILS_WITHIN_S)


Moment = Callable[[Daemon, Callable[[], None]], str]
MOMENTS: tuple[Moment, ...] = (during_boot, during_exec, during_stop, during_pause)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
@pytest.mark.parametrize(("program", "words"), [("vmm", "monitor"), ("virtiofsd", "virtiofsd")])
@pytest.mark.parametrize("moment", MOMENTS)
def test_harm_at_each_moment(daemon: Daemon, moment: Moment, program: str, words: str, number: signal.Signals) -> None:
    if (moment, program, number) != (during_boot, "vmm", signal.SIGSTOP):
        needs_full("each program, each signal, each moment")
    began = 0.0

    def harm() -> None:
        nonlocal began
        began = time.monotonic()
        os.kill(pid_of(daemon, program), number)

    said = moment(daemon, harm)
    print(f"{moment.__name__} {program} {number.name}: {time.monotonic() - began:.1f} s")
    assert words in said or (moment is during_boot and "machine" in said), said


def test_a_snapshot_whose_machine_is_stopped(daemon: Daemon) -> None:
    needs_full("a machine that is stopped while it is saved")
    daemon.command(*argv("one", "sleep 1000", "--annotation", "drupe.vm.rootfs=block"), check=True)
    monitor = pid_of(daemon, "vmm")
    threading.Timer(0.3, os.kill, (monitor, signal.SIGSTOP)).start()
    for _ in range(20):
        done = daemon.command("snapshot", "create", "one")
        if done.returncode:
            break
    assert done.returncode and "stopped by a signal" in done.stderr, done.stderr
    assert "stopped by a signal" in fails(daemon, "one", within_s=FAILS_WITHIN_S)
    for line in daemon.command("snapshot", "ls", "-q", check=True).stdout.split():
        daemon.command("snapshot", "rm", line, check=True)


# -- slow is not hanging ------------------------------------------------------------------------------------------

BUSY = {
    "spins": "for n in 1 2 3 4 5 6 7 8; do (while :; do :; done)& done; wait",
    "forks": "for n in 1 2 3 4; do (while :; do /bin/busybox true; done)& done; wait",
    "writes": "while :; do head -c 100000000 /dev/zero | tr '\\0' a; done",
    "fills memory": "while :; do head -c 150000000 /dev/zero | tail -n 1 >/dev/null; done",
    "fills its cache": "while :; do head -c 200000000 /dev/zero >/tmp/file; cat /tmp/file >/dev/null; done",
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", BUSY)
def test_a_slow_pod_on_a_loaded_host_is_left_alone(daemon: Daemon, how: str) -> None:
    needs_full("busy guests, beside ten programs that want the host's processors")
    daemon.command(*argv("one", BUSY[how]), check=True)
    load = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(10)]
    try:
        time.sleep(20)
        assert pod_of(daemon, "one")["state"] == "running"
        assert daemon.command("exec", "one", "echo", "well", check=True).stdout == "well\n"
    finally:
        for one in load:
            one.kill()
            one.wait()


def test_a_machine_that_could_not_answer_had_no_time() -> None:
    """Of a process that is ready to run and does not come to it nothing counts; of one that sleeps, all."""
    from drupe.sandboxers.vm.patience import Patience

    needs_full("two processes that want one processor")
    spins = "import os; os.sched_setaffinity(0, {0})\nwhile True: pass"
    both = [subprocess.Popen(["nice", "-n", nice, "python3", "-c", spins]) for nice in ("0", "19")]
    sleeps = subprocess.Popen(["sleep", "60"])
    try:
        time.sleep(0.5)
        patience = {one.pid: Patience(one.pid) for one in (*both, sleeps)}
        had = dict.fromkeys(patience, 0.0)
        for _ in range(8):
            time.sleep(0.25)
            had = {pid: one.had_s(at_most_s=0.5) for pid, one in patience.items()}
    finally:
        for one in (*both, sleeps):
            one.kill()
            one.wait()
    assert had[both[1].pid] < 0.5 < 1.5 < had[sleeps.pid]
