"""Programs of a machine are killed or stopped, and the daemon too: the pod says what happened, and nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from framework import machines
from framework.daemon import COMMAND, Daemon
from framework.leaks import wait_until
from framework.machines import fails, pod_of
from framework.residue import is_alive, residue

pytestmark = [pytest.mark.root]
FAILS_WITHIN_S = 30.0  # it takes a second; machines of tests are busy


@pytest.fixture
def daemon(machine_daemon: Daemon) -> Iterator[Daemon]:
    yield machine_daemon
    machine_daemon.delete_pods()
    assert residue(machine_daemon) == {}


def run(daemon: Daemon, name: str, script: str = "exec sleep 1000", *flags: str) -> int:
    """A pod in a machine; the pid of its monitor."""
    argv = ("run", "-d", "--name", name, "--sandbox", "vm", "--network", "none", *flags, "busybox", "sh", "-c", script)
    daemon.command(*argv, check=True)
    return pid_of(daemon, name, "vmm")


def pid_of(daemon: Daemon, name: str, program: str) -> int:
    pod = pod_of(daemon, name)
    return int((daemon.run / "pods" / pod["id"] / "vm" / f"{program}.pid").read_text())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
@pytest.mark.parametrize(("program", "words"), [("vmm", "virtual machine monitor"), ("virtiofsd", "virtiofsd")])
def test_a_program_of_the_machine_ends_or_hangs(
    daemon: Daemon, program: str, words: str, number: signal.Signals
) -> None:
    monitor = run(daemon, "one")
    os.kill(pid_of(daemon, "one", program), number)
    cause = fails(daemon, "one", within_s=FAILS_WITHIN_S)
    assert words in cause and ("signal 9" in cause or "stopped by a signal" in cause)
    assert not is_alive(monitor)
    done = daemon.command("exec", "one", "true")
    assert done.returncode and "Traceback" not in done.stderr
    told = json.loads(daemon.command("inspect", "one", check=True).stdout)[0]["status"]
    assert told["exit"]["code"] == 255 and cause in told["exit"]["message"]


def test_who_waits_is_answered_when_the_machine_goes(daemon: Daemon) -> None:
    """An exec that runs, and a `wait`."""
    monitor = run(daemon, "one")
    waiting = subprocess.Popen([COMMAND, "exec", "one", "sleep", "999"], env=daemon.environment())
    wait_until(
        lambda: "sleep 999" in daemon.command("top", "one").stdout, what="the exec runs", timeout_s=FAILS_WITHIN_S
    )
    os.kill(monitor, signal.SIGKILL)
    assert waiting.wait(FAILS_WITHIN_S) != 0


def test_a_panic_of_the_guest_is_its_cause(daemon: Daemon) -> None:
    run(daemon, "one", "sleep 1; echo c >/proc/sysrq-trigger; sleep 1000", "--privileged")
    assert "panic" in fails(daemon, "one", within_s=FAILS_WITHIN_S)


def test_a_daemon_that_comes_back_goes_on_with_a_machine(fresh_daemon: Daemon) -> None:
    """Its output has no gap, an end that nobody saw is known, and what comes later works."""
    daemon = machines.prepared(fresh_daemon)
    run(daemon, "one", "n=0; while :; do n=$((n+1)); echo $n; sleep 0.1; done")
    run(daemon, "two", "sleep 2; exit 7")
    daemon.kill()
    time.sleep(3)
    daemon.start()
    wait_until(lambda: status(daemon, "two")["state"] == "stopped", what="the other ended", timeout_s=FAILS_WITHIN_S)
    assert status(daemon, "two")["exit"]["code"] == 7
    assert daemon.command("exec", "one", "echo", "served on", check=True).stdout == "served on\n"
    before = len(logged(daemon))
    wait_until(lambda: len(logged(daemon)) > before, what="it logs on", timeout_s=FAILS_WITHIN_S)
    lines = logged(daemon)
    assert lines == [str(number + 1) for number in range(len(lines))]


def status(daemon: Daemon, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(daemon.command("inspect", name, check=True).stdout)[0]["status"]
    return found


def logged(daemon: Daemon) -> list[str]:
    return daemon.command("logs", "one", check=True).stdout.split()


def test_a_missing_and_a_broken_guest_image(daemon: Daemon) -> None:
    """Refused with what to do, or failed with what the machine said, and nothing left."""
    (daemon.root / "guests").rename(daemon.root / "hidden")
    try:
        done = daemon.command("run", "--rm", "--sandbox", "vm", "busybox", "true")
        assert done.returncode == 125 and "drupe guest build" in done.stderr
        broken(daemon.root / "guests", daemon.root / "hidden")
        done = daemon.command("run", "--rm", "--sandbox", "vm", "busybox", "true")
        assert done.returncode == 125 and "machine" in done.stderr, done.stderr
    finally:
        subprocess.run(["rm", "-rf", daemon.root / "guests"], check=True)
        (daemon.root / "hidden").rename(daemon.root / "guests")


@pytest.mark.timeout(400)
def test_a_damaged_template(daemon: Daemon) -> None:
    """A pod boots, and says why, also after its interfaces were looked at; what was repaired is started from again."""
    devices = next(daemon.root.glob("vm/templates/*/devices"))
    good = devices.read_bytes()
    devices.write_bytes(b"x" + good[1:])
    daemon.command(
        "run", "-d", "--name", "one", "--sandbox", "vm", "busybox", "sleep", "1000",
        check=True, timeout_s=machines.BOOTS_WITHIN_S,
    )  # fmt: skip
    time.sleep(1)
    told = pod_of(daemon, "one")
    assert "start restore" not in told["timings_ms"] and "is damaged" in str(told["machine"]["notes"])
    daemon.command("rm", "-f", "one", check=True)
    devices.write_bytes(good)
    run(daemon, "one")
    assert "start restore" in pod_of(daemon, "one")["timings_ms"]


def broken(guests: Path, good: Path) -> None:
    """An image whose kernel is none."""
    digest = (good / "default").readlink()
    (guests / digest).mkdir(parents=True)
    (guests / "default").symlink_to(digest)
    for name in ("guest.json", "initrd"):
        (guests / digest / name).write_bytes((good / digest / name).read_bytes())
    (guests / digest / "kernel").write_bytes(b"\0" * 4096)
