"""Logs through a real daemon: whole, rotated, in both formats, followed by many."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from drupe.spec import LogSpec
from drupe.spec.control import Ref, Wait
from framework.daemon import COMMAND, Daemon
from framework.leaks import wait_until

pytestmark = pytest.mark.root

Drupe = Callable[..., "CompletedProcess[str]"]
MIB = 1 << 20
LINES = 72_000  # of 72 bytes: 5 MB
FIVE_MB = f"yes {'x' * 64} | head -n {LINES} | awk '{{print NR, $0}}'"


@pytest.fixture(autouse=True)
def no_pods_left(daemon: Daemon) -> Iterator[None]:
    """Each test starts and ends without pods."""
    yield
    daemon.delete_pods()


def ended(daemon: Daemon, script: str, log: LogSpec) -> str:
    """A container that has run a shell line to its end."""
    ref = daemon.run_pod("sh", "-c", script, log=log).containers[0].id
    with daemon.client() as client:
        assert client.call("container.wait", Wait(ref=ref), timeout_s=60).code == 0
    return ref


def path_of(daemon: Daemon, ref: str) -> Path:
    with daemon.client() as client:
        return Path(client.call("container.status", Ref(ref=ref)).log_path)


@pytest.mark.parametrize("driver", ["cri", "json-file"])
def test_the_log_of_a_fast_writer_is_whole(daemon: Daemon, drupe: Drupe, driver: str) -> None:
    ref = ended(daemon, FIVE_MB, LogSpec(driver=driver, max_bytes=64 * MIB))
    lines = drupe("logs", ref).stdout.splitlines()
    assert [int(line.split()[0]) for line in lines] == list(range(1, LINES + 1))
    assert drupe("logs", "--tail", "2", ref).stdout.splitlines() == lines[-2:]


def test_the_json_log_is_dockers(daemon: Daemon, drupe: Drupe) -> None:
    ref = ended(daemon, "echo out; echo err >&2; printf half", LogSpec(driver="json-file"))
    entries = [json.loads(line) for line in path_of(daemon, ref).read_text().splitlines()]
    assert sorted((e["stream"], e["log"]) for e in entries) == [
        ("stderr", "err\n"),
        ("stdout", "half"),
        ("stdout", "out\n"),
    ]
    assert all(set(e) == {"log", "stream", "time"} for e in entries)
    done = drupe("logs", ref)
    assert (done.stdout, done.stderr) == ("out\nhalf", "err\n")


@pytest.mark.parametrize("driver", ["cri", "json-file"])
def test_a_rotated_log_is_read_over_its_files(daemon: Daemon, drupe: Drupe, driver: str) -> None:
    log = LogSpec(driver=driver, max_bytes=256 << 10, max_files=3)
    ref = ended(daemon, FIVE_MB, log)
    path = path_of(daemon, ref)
    files = sorted(entry.name for entry in path.parent.iterdir() if entry.name.startswith(path.name))
    assert files == [path.name, f"{path.name}.1", f"{path.name}.2"]
    assert all((path.parent / name).stat().st_size <= (256 << 10) + 200 for name in files)
    numbers = [int(line.split()[0]) for line in drupe("logs", ref).stdout.splitlines()]
    assert numbers == list(range(numbers[0], LINES + 1)), "the kept files are one piece up to the end"
    assert len(numbers) > 3000


def test_without_a_log_there_is_none_but_attach_works(daemon: Daemon, drupe: Drupe) -> None:
    done = drupe("run", "--name", "t", "--log-driver", "none", "--network", "none", "busybox", "echo", "seen")
    assert done.stdout == "seen\n"
    told = drupe("logs", "t")
    assert told.returncode != 0
    assert "keeps no log" in told.stderr


def test_two_followers_see_all_of_a_rotating_log(daemon: Daemon, drupe: Drupe) -> None:
    script = "n=1; while [ $n -le 3000 ]; do echo $n; n=$((n+1)); done; sleep 0.3; echo over"
    log = LogSpec(max_bytes=64 << 10, max_files=4)
    ref = daemon.run_pod("sh", "-c", f"until [ -e /go ]; do sleep 0.02; done; {script}", log=log).containers[0].id
    followers = [
        subprocess.Popen([COMMAND, "logs", "-f", ref], env=daemon.environment(), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        drupe("exec", ref, "touch", "/go", check=True)
        for follower in followers:
            out, _ = follower.communicate(timeout=20)
            assert out.split() == [*map(str, range(1, 3001)), "over"]
            assert follower.returncode == 0
    finally:
        for follower in followers:
            follower.kill()
            follower.wait()


def test_nothing_is_missing_after_a_crash_of_the_daemon(fresh_daemon: Daemon) -> None:
    """The keeper writes the log meanwhile: nothing is missing in it."""
    daemon = fresh_daemon
    script = "n=1; while [ $n -le 400 ]; do echo $n; n=$((n+1)); sleep 0.002; done; sleep 1000"
    ref = daemon.run_pod("sh", "-c", script).containers[0].id
    daemon.kill()
    daemon.start()
    wait_until(lambda: daemon.command("logs", "--tail", "1", ref).stdout == "400\n", what="it has written all")
    assert daemon.command("logs", ref).stdout.split() == [str(n) for n in range(1, 401)]
