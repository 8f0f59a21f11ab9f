"""A pod's kernel is killed or stopped, and the daemon too: the pod says what happened, and nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from framework.appkernels import leaves_nothing
from framework.daemon import COMMAND, Daemon
from framework.leaks import wait_until
from framework.residue import is_alive

pytestmark = [pytest.mark.root]
WITHIN_S = 20.0


@pytest.fixture
def daemon(fresh_daemon: Daemon, tmp_path: Path) -> Iterator[Daemon]:
    with leaves_nothing(fresh_daemon, tmp_path):
        yield fresh_daemon


def run(daemon: Daemon, name: str, script: str = "exec sleep 1000", *flags: str) -> int:
    """A pod that lives; the pid of its kernel."""
    begin(daemon, name, script, *flags)
    return int((daemon.run / "pods" / pod_of(daemon, name)["id"] / "appkernel/kernel.pid").read_text())


def begin(daemon: Daemon, name: str, script: str, *flags: str) -> None:
    argv = ("run", "-d", "--name", name, "--sandbox", "appkernel", "--network", "none", *flags)
    daemon.command(*argv, "busybox", "sh", "-c", script, check=True)


def pod_of(daemon: Daemon, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(daemon.command("inspect", "--type", "pod", name, check=True).stdout)[0]
    return found


def container_of(daemon: Daemon, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(daemon.command("inspect", name, check=True).stdout)[0]["status"]
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
def test_the_kernel_ends_or_hangs(daemon: Daemon, number: signal.Signals) -> None:
    kernel = run(daemon, "one")
    waiting = subprocess.Popen([COMMAND, "exec", "one", "sleep", "999"], env=daemon.environment())
    wait_until(lambda: "sleep 999" in daemon.command("top", "one").stdout, what="the exec runs", timeout_s=WITHIN_S)
    os.kill(kernel, number)
    wait_until(lambda: pod_of(daemon, "one")["state"] == "failed", what="the pod has failed", timeout_s=WITHIN_S)
    cause = pod_of(daemon, "one")["cause"]
    assert "the kernel of the pod" in cause and ("signal 9" in cause or "stopped by a signal" in cause)
    assert waiting.wait(WITHIN_S) != 0
    assert not is_alive(kernel)
    told = container_of(daemon, "one")["exit"]
    assert told["code"] == 255 and cause in told["message"]
    done = daemon.command("exec", "one", "true")
    assert done.returncode and "Traceback" not in done.stderr


def test_a_daemon_that_was_killed_goes_on_with_it(daemon: Daemon) -> None:
    """What runs is served on, and what has ended meanwhile is told."""
    run(daemon, "lives", "trap 'exit 5' USR1; echo begun; while :; do sleep 0.1; done")
    begin(daemon, "ends", "sleep 1; echo last words; exit 7")
    daemon.kill()
    daemon.start()
    assert daemon.command("exec", "lives", "echo", "served", check=True).stdout == "served\n"
    assert daemon.command("wait", "ends", check=True).stdout.strip() == "7"
    assert daemon.command("logs", "ends", check=True).stdout == "last words\n"
    daemon.command("kill", "-s", "USR1", "lives", check=True)
    assert daemon.command("wait", "lives", check=True).stdout.strip() == "5"
    assert daemon.command("logs", "lives", check=True).stdout == "begun\n"


def test_memory_that_runs_out_is_told(daemon: Daemon) -> None:
    begin(daemon, "eater", "x=a; while :; do x=$x$x; done", "--memory", "64m")
    wait_until(lambda: container_of(daemon, "eater")["state"] == "stopped", what="it has ended", timeout_s=WITHIN_S)
    assert container_of(daemon, "eater")["exit"]["reason"] == "OOMKilled"
