"""Each program of a machine is killed or stopped in each phase of its life, and the daemon too: who waits is told why,
in time, and nothing is left. The agent says where a pod has come to (tests/framework/hostile_agent.py), so that every
phase is met for sure."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from framework import hostileguest, images, machines
from framework.daemon import COMMAND, Daemon
from framework.leaks import wait_until
from framework.probes import needs_full
from framework.residue import residue

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]
FAILS_WITHIN_S = 90.0  # it takes about two seconds; machines of tests are busy
STANDS_STILL_S = 3.0


class Phase(NamedTuple):
    """argv: what is asked when it happens; () while the pod starts. method: of the agent, whose answer it waits for;
    "" : a file of the machine that is there then."""

    argv: tuple[str, ...] = ()
    method: str = ""
    file: str = ""
    block: bool = False


PHASES = {
    "share": Phase(file="virtiofsd.pid"),
    "vmm": Phase(file="vmm.pid"),
    "setup": Phase(method="Setup"),
    "bundle": Phase(method="PutBundle"),
    "create": Phase(method="Create"),
    "start": Phase(method="Start"),
    "exec": Phase(("exec", "one", "true"), "Exec"),
    "grow": Phase(("update", "--cpus", "2", "one"), "SetOnline"),
    "pause": Phase(("pause", "one"), "Pause"),
    "plug": Phase(("network", "connect", "other", "one"), "SetInterfaces"),
    "snapshot": Phase(("snapshot", "create", "one"), "Freeze", block=True),
    "stop": Phase(("stop", "one"), "Kill"),
    "remove": Phase(("rm", "-f", "one"), "Delete"),
    "shut down": Phase(("pod", "stop", "one"), "Shutdown"),
}
GOES = ("stop", "remove", "shut down")  # it ends anyhow, and need not have failed
WORDS = {"vmm": "monitor", "virtiofsd": "virtiofsd", "agent": "does not answer"}


@pytest.fixture
def daemon(lying_daemon: Daemon) -> Iterator[Daemon]:
    yield lying_daemon
    remove_all(lying_daemon)


def remove_all(daemon: Daemon) -> None:
    """And see that nothing is left."""
    daemon.delete_pods()
    for snapshot in daemon.command("snapshot", "ls", "-q", check=True).stdout.split():
        daemon.command("snapshot", "rm", snapshot, check=True)
    wait_until(lambda: not residue(daemon), what="nothing is left", timeout_s=FAILS_WITHIN_S)
    assert "Traceback" not in daemon.log.read_text()


def starts(phase: Phase, how: str) -> tuple[str, ...]:
    """The pod, whose agent does that at the phase's method."""
    flags = ["--hostname", f"lie-{how}-{phase.method}"] if phase.method else []
    flags += ["--annotation", "drupe.vm.rootfs=block"] if phase.block else []
    flags += ["--stop-timeout", "30"]
    flags += [] if phase.argv[:1] == ("network",) else ["--network", "none"]
    return ("run", "-d", "--name", "one", "--sandbox", "vm", *flags, "busybox", "sleep", "1000")


def begin(daemon: Daemon, phase: Phase, how: str = "hold") -> subprocess.Popen[str]:
    """Ask for what the phase is part of."""
    if phase.argv[:1] == ("network",):
        daemon.command("network", "create", "other")  # once
    if phase.argv:
        daemon.command(*starts(phase, how), check=True, timeout_s=machines.BOOTS_WITHIN_S)
    words: Sequence[str] = phase.argv or starts(phase, how)
    return subprocess.Popen(
        [COMMAND, *words], env=daemon.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def meet(daemon: Daemon, phase: Phase) -> None:
    """Wait until the pod has come to it."""

    def is_there() -> bool:
        if phase.file:
            return pid_of(daemon, phase.file) > 0
        return any(f"held {phase.method}" in text for text in consoles(daemon))

    wait_until(is_there, what="the phase has come", timeout_s=FAILS_WITHIN_S)


def consoles(daemon: Daemon) -> Iterator[str]:
    for path in daemon.run.glob("pods/*/vm/console.log*"):
        with suppress(OSError):
            yield path.read_text(errors="replace")


def pid_of(daemon: Daemon, file: str) -> int:
    """Of the only machine; 0 while it is not there."""
    with suppress(StopIteration, ValueError, OSError):
        return int(next(iter(daemon.run.glob(f"pods/*/vm/{file}"))).read_text())
    return 0


def told(daemon: Daemon) -> str:
    """What is known of the pod's end."""
    found = daemon.command("inspect", "--type", "pod", "one")
    return found.stdout if found.returncode == 0 else ""


def state(daemon: Daemon) -> str:
    return str(json.loads(told(daemon) or '[{"state": "gone"}]')[0]["state"])


def is_clean(said: str) -> bool:
    return "Traceback" not in said and len(said) < 3000


def happens(phase: Phase, program: str) -> bool:
    """Whether that program is there in that phase."""
    return not (program == "agent" and not phase.method) and not (program == "virtiofsd" and phase.block)


CASES = [
    (phase, program, number)
    for phase in PHASES
    for program in WORDS
    for number in (signal.SIGKILL, signal.SIGSTOP)
    if happens(PHASES[phase], program)
]
SHORT = [("create", "vmm", signal.SIGKILL)]
IS_FULL = bool(os.environ.get("DRUPE_TEST_FULL"))  # what is left out is not even collected: there are a hundred


def test_the_others() -> None:
    needs_full("each program, each signal, each phase")
    assert len(CASES) > 70


@pytest.mark.parametrize(("phase", "program", "number"), CASES if IS_FULL else SHORT)
def test_a_program_in_each_phase(daemon: Daemon, phase: str, program: str, number: signal.Signals) -> None:
    one = PHASES[phase]
    agent = "die" if number == signal.SIGKILL else "freeze"
    asking = begin(daemon, one, agent if program == "agent" else "hold")
    meet(daemon, one)
    began = time.monotonic()
    if program != "agent":
        wait_until(lambda: pid_of(daemon, f"{program}.pid") > 0, what="it is there", timeout_s=FAILS_WITHIN_S)
        os.kill(pid_of(daemon, f"{program}.pid"), number)
    _, said = asking.communicate(timeout=FAILS_WITHIN_S)
    took = time.monotonic() - began
    if phase in GOES:
        assert state(daemon) in ("stopped", "failed", "running", "gone")
    else:
        assert asking.returncode, said
        assert WORDS[program] in said + told(daemon)
        if one.argv:
            wait_until(lambda: state(daemon) == "failed", what="the pod has failed", timeout_s=FAILS_WITHIN_S)
    assert is_clean(said), said
    print(f"{phase} {program} {number.name}: {took:.1f} s, {said.strip()}")


@pytest.mark.timeout(1800)
def test_the_daemon_is_killed_in_each_phase(tmp_path_factory: pytest.TempPathFactory, busybox: Path) -> None:
    """A pod that ran goes on, one that had just begun can be removed, and nothing is left."""
    needs_full("a daemon that is killed, in each phase")
    hostileguest.needs()
    daemon = Daemon(tmp_path_factory.mktemp("d"))
    images.copy_store(busybox, daemon.root)
    try:
        hostileguest.start(daemon)
        for name, phase in PHASES.items():
            dies_at(daemon, name, phase)
            remove_all(daemon)
    finally:
        daemon.close()


def dies_at(daemon: Daemon, name: str, phase: Phase) -> None:
    asking = begin(daemon, phase)
    meet(daemon, phase)
    daemon.kill()
    _, said = asking.communicate(timeout=FAILS_WITHIN_S)
    hostileguest.again(daemon)
    assert is_clean(said), said
    if phase.argv and name not in (*GOES, "pause"):
        assert state(daemon) == "running", name
        assert daemon.command("exec", "one", "echo", "served on", check=True).stdout == "served on\n"
    print(f"{name}: {asking.returncode} {said.strip()} {state(daemon)}")


@pytest.mark.parametrize("phase", PHASES if IS_FULL else [])
def test_the_daemon_stands_still_in_each_phase(daemon: Daemon, phase: str) -> None:
    """Time in which it did not run is no fault of the guest's: all is as if nothing had been."""
    one = PHASES[phase]
    asking = begin(daemon, one)
    meet(daemon, one)
    os.kill(daemon.pid, signal.SIGSTOP)
    time.sleep(STANDS_STILL_S)
    os.kill(daemon.pid, signal.SIGCONT)
    _, said = asking.communicate(timeout=FAILS_WITHIN_S)
    assert asking.returncode == 0, said
    print(f"{phase}: {said.strip()} {state(daemon)}")
