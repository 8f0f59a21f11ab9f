"""The harness itself: a daemon of a test works, and leaves the host as it was."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from framework.daemon import COMMAND, Daemon

pytestmark = pytest.mark.root


def test_a_daemon_runs_pods_and_leaves_nothing(fresh_daemon: Daemon) -> None:
    """Started, used, killed, started again, closed; the leak check after this test sees the rest."""
    done = fresh_daemon.command("run", "--rm", "--network", "none", "busybox", "echo", "hello", check=True)
    assert done.stdout == "hello\n"
    pod = fresh_daemon.run_pod("sleep", "1000")
    fresh_daemon.kill()
    fresh_daemon.start()
    assert pod.id in fresh_daemon.command("pod", "ls", "--json", check=True).stdout


def test_the_host_of_a_daemon_is_a_namespace_of_its_own(daemon: Daemon) -> None:
    """Its bridge is seen by `on_host` and not by this process."""
    daemon.command("run", "--rm", "busybox", "true", check=True)
    inside, outside = (
        daemon.on_host("ip", "-brief", "link"),
        subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True),
    )
    assert inside.stdout != outside.stdout
    assert set(inside.stdout.split()) - set(outside.stdout.split())


def test_commands_reach_the_daemon(drupe: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """The fixture `drupe` is the command line against the module's daemon."""
    assert drupe("run", "--rm", "--network", "none", "busybox", "sh", "-c", "exit 7").returncode == 7


@pytest.mark.parametrize("shared", ["root", "run"])
def test_no_two_daemons_share_a_directory(fresh_daemon: Daemon, tmp_path: Path, shared: str) -> None:
    """With one journal, each would take the other's pods for lost."""
    where = {"root": tmp_path / "root", "run": tmp_path / "run"} | {shared: getattr(fresh_daemon, shared)}
    argv = [COMMAND, "--root", where["root"], "--run", where["run"], "serve", "--socket", tmp_path / "s"]
    second = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode != 0 and f"another drupe has {where[shared]} open" in second.stderr
    assert "Traceback" not in second.stderr
    assert fresh_daemon.command("ps", check=True).returncode == 0
