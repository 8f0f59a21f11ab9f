"""`--timeout` ends whatever it is given to, and says so: exit code 137, one line, nothing left."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator

import pytest

import drupe as api
from framework.daemon import Daemon
from framework.leaks import wait_until

pytestmark = pytest.mark.root

Drupe = Callable[..., "subprocess.CompletedProcess[str]"]
BUSY = "trap '' TERM INT HUP QUIT; while :; do :; done"
RUN = ("run", "--network", "none")


@pytest.fixture(autouse=True)
def no_pods_left(daemon: Daemon) -> Iterator[None]:
    yield
    daemon.delete_pods()


def ends(drupe: Drupe) -> list[dict[str, object]]:
    """How the containers ended, as `inspect` has it."""
    found = json.loads(drupe("ps", "-a", "--json").stdout)
    return [one["exit"] for one in found]


@pytest.mark.parametrize("limit", ["300ms", "0.3", "0.005m"])
def test_a_busy_loop_that_ignores_signals(drupe: Drupe, limit: str) -> None:
    done = drupe(*RUN, "--rm", "--name", "busy", "--timeout", limit, "busybox", "sh", "-c", BUSY)
    assert done.returncode == 137
    assert done.stderr == "drupe: container busy was stopped: its time was up: the pod's time limit of 0.3 s passed\n"
    assert drupe("ps", "-aq").stdout == ""


def test_all_that_it_started_ends_too(drupe: Drupe) -> None:
    done = drupe(*RUN, "--timeout", "300ms", "busybox", "sh", "-c", f"({BUSY}) & ({BUSY}) & wait; {BUSY}")
    assert done.returncode == 137
    assert [(end["code"], end["reason"]) for end in ends(drupe)] == [(137, "Timeout")]


def test_detached(drupe: Drupe) -> None:
    container = drupe(*RUN, "-d", "--timeout", "300ms", "busybox", "sh", "-c", BUSY, check=True).stdout.strip()
    assert drupe("wait", container).stdout.strip() == "137"
    assert ends(drupe)[0]["reason"] == "Timeout"


def test_detached_and_removed(drupe: Drupe) -> None:
    drupe(*RUN, "-d", "--rm", "--timeout", "300ms", "busybox", "sh", "-c", BUSY, check=True)
    wait_until(lambda: drupe("ps", "-aq").stdout == "", what="it is gone")


def test_what_ends_in_time_is_left_alone(drupe: Drupe) -> None:
    done = drupe(*RUN, "--rm", "--timeout", "1m", "busybox", "sh", "-c", "exit 5")
    assert (done.returncode, done.stderr) == (5, "")


def test_a_restart_policy_does_not_bring_it_back(drupe: Drupe) -> None:
    drupe(*RUN, "-d", "--name", "again", "--restart", "always", "--timeout", "300ms", "busybox", "sh", "-c", BUSY)
    wait_until(lambda: drupe("ps", "-q").stdout == "", what="it has ended")
    assert json.loads(drupe("inspect", "again").stdout)[0]["status"]["restarts"] == 0


@pytest.fixture
def idle(drupe: Drupe) -> str:
    drupe(*RUN, "-d", "--name", "idle", "busybox", "sleep", "1000", check=True)
    return "idle"


def test_exec(drupe: Drupe, idle: str) -> None:
    done = drupe("exec", "--timeout", "200ms", idle, "sh", "-c", f"({BUSY}) & {BUSY}")
    assert (done.returncode, done.stderr) == (137, "drupe: sh was killed: its time of 0.2 s was up\n")
    assert "while" not in drupe("top", idle).stdout


def test_exec_that_nobody_waits_for(drupe: Drupe, idle: str) -> None:
    drupe("exec", "-d", "--timeout", "200ms", idle, "sh", "-c", BUSY, check=True)
    wait_until(lambda: "while" not in drupe("top", idle).stdout, what="it is killed")


@pytest.mark.parametrize("verb", [("run",), ("exec", "idle")])
@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("0", "bad time limit '0'"),
        ("0ms", "bad time limit '0ms'"),
        ("-1s", "bad duration '-1s'"),
        ("soon", "bad duration 'soon'"),
        ("2 s", "bad duration '2 s'"),
        ("", "bad duration ''"),
        ("1e9s", "bad duration '1e9s'"),
    ],
)
def test_bad_values(drupe: Drupe, verb: tuple[str, ...], value: str, says: str) -> None:
    done = drupe(verb[0], f"--timeout={value}", *verb[1:], "busybox", "true")
    assert done.returncode in (2, 125)
    assert says in done.stderr and "Traceback" not in done.stderr
    assert drupe("ps", "-aq").stdout == ""


def test_python(daemon: Daemon) -> None:
    with api.Runtime(str(daemon.run / "drupe.sock")) as runtime:
        for limit in (0, -1.0, float("nan"), float("inf")):
            with pytest.raises(api.InvalidArgument, match="bad timeout"):
                runtime.sandbox("busybox", network="none", lifetime=limit).start()
        with runtime.sandbox("busybox", ["sh", "-c", BUSY], network="none", lifetime=0.3) as sandbox:
            assert sandbox.wait() == 137
        with runtime.sandbox("busybox", network="none") as sandbox:
            with pytest.raises(api.CommandTimeout, match=r"sh ran longer than 0.2 s and was killed"):
                sandbox.run(["sh", "-c", BUSY], timeout=0.2)
            with pytest.raises(api.InvalidArgument, match="bad timeout"):
                sandbox.run(["true"], timeout=0)
