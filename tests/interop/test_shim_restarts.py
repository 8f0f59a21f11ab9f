"""Restarts of our daemon under tasks of containerd, of each generation: containerd must not notice. The oracle is
containerd's own shim, which nothing of ours touches."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.containerds import IMAGE, OURS, TRIED, Containerd, serving
from framework.leaks import wait_until

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
RUNTIME = ("--runtime", OURS)
# says something, waits for a file, says as much as pipes hold, and is done
SCRIPT = "echo begun $0; until test -e /shared/go; do sleep 0.05; done; seq 9000; touch /shared/done-$0; exit 7"


@pytest.fixture(params=TRIED)
def containerd(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, busybox: Path
) -> Iterator[Containerd]:
    """For one test, as the daemon that it ends is not the one that it leaves."""
    yield from serving(tmp_path_factory.mktemp("c"), request.param, busybox)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_tasks_outlive_the_daemon(containerd: Containerd, number: signal.Signals, tmp_path: Path) -> None:
    ctr = containerd.ctr
    run = ("run", *RUNTIME, "--mount", f"type=bind,src={tmp_path},dst=/shared,options=rbind:rw")
    task = containerd.begin_ctr(*run, "--rm", IMAGE, "ends", "sh", "-c", SCRIPT, "task")
    ctr(*run, "--detach", IMAGE, "lives", "sleep", "1000")
    execute = containerd.begin_ctr("task", "exec", "--exec-id", "e", "lives", "sh", "-c", SCRIPT, "exec")
    assert (task.stdout.readline(), execute.stdout.readline()) == ("begun task\n", "begun exec\n")
    containerd.end_daemon(number)
    (tmp_path / "go").touch()
    asking = containerd.begin_ctr("task", "ls")
    wait_until(lambda: len(list(tmp_path.glob("done-*"))) == 2, what="both end while there is no daemon")
    containerd.start_daemon()
    for ended in (task, execute):
        assert ended.communicate(timeout=60)[0].split() == [str(n) for n in range(1, 9001)]
        assert ended.returncode == 7
    assert _status(asking.communicate(timeout=60)[0]) in ("RUNNING", "UNKNOWN")  # it waits two seconds, and no more
    assert _status(ctr("task", "ls")) == "RUNNING"
    assert ctr("task", "exec", "--exec-id", "again", "lives", "echo", "in exec") == "in exec\n"
    assert "memory" in ctr("task", "metrics", "lives")
    ctr("task", "kill", "--signal", "SIGKILL", "lives")
    wait_until(lambda: "STOPPED" in ctr("task", "ls"), what="the end of the task")
    removed = containerd.try_ctr("task", "rm", "lives")  # newer ones only warn of the code
    assert removed.returncode == 137 or "exit code 137" in removed.stderr
    ctr("container", "rm", "lives")
    assert ctr("container", "ls", "-q") == "" and containerd.drupe("ps", "--all", "--quiet").stdout == ""


def _status(listed: str) -> str:
    """What `ctr task ls` says of the task that lives."""
    return next(line.split()[2] for line in listed.splitlines() if line.startswith("lives"))
