"""The disk is full under machines: clear errors, nothing half, and those that run are not harmed. A guest that floods
its console fills no disk."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework import images, machines
from framework.daemon import Daemon
from framework.disks import fill, small_disk
from framework.leaks import wait_until
from framework.probes import needs_full
from framework.residue import residue

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]
SMALL_BYTES = 3 << 20


@pytest.fixture
def daemon(tmp_path_factory: pytest.TempPathFactory, busybox: Path) -> Iterator[Daemon]:
    """A daemon whose two directories are on a disk of their own, that is soon full."""
    needs_full("machines on a disk that is full")
    machines.needs_machines()
    directory = tmp_path_factory.mktemp("d")
    with small_disk(directory, "500m"):
        daemon = Daemon(directory)
        images.copy_store(busybox, daemon.root)
        daemon.start()
        try:
            yield machines.prepared(daemon)
        finally:
            daemon.close()


def run(daemon: Daemon, name: str, script: str, *flags: str) -> subprocess.CompletedProcess[str]:
    words = ("run", "-d", "--name", name, "--sandbox", "vm", "--network", "none", *flags, "busybox", "sh", "-c", script)
    done: subprocess.CompletedProcess[str] = daemon.command(*words)
    return done


def test_a_full_disk_and_a_flooded_console(daemon: Daemon) -> None:
    """A pod lives through it; what is begun meanwhile is refused and leaves nothing; afterwards all is well."""
    script = "while :; do echo line >/dev/kmsg; echo well; sleep 0.05; done"
    assert run(daemon, "one", script, "--privileged").returncode == 0
    ballast = fill(daemon.root.parent)
    try:
        refuses(daemon)
        assert daemon.command("exec", "one", "echo", "inside", check=True).stdout == "inside\n"
    finally:
        ballast.unlink()
    assert [pod for pod in daemon.command("pod", "ls", "-q", check=True).stdout.split()] != []
    before = len(daemon.command("logs", "one", check=True).stdout)
    wait_until(lambda: len(daemon.command("logs", "one").stdout) > before, what="it logs on", timeout_s=20)
    assert run(daemon, "two", "exit 3").returncode == 0
    assert daemon.command("wait", "two").stdout.strip() == "3"
    daemon.command("rm", "-f", "two", check=True)
    assert len(list((daemon.root / "vm/templates").glob("*"))) == 1, "one that was not finished is gone"
    floods(daemon)
    daemon.delete_pods()
    wait_until(lambda: not residue(daemon), what=f"nothing is left: {residue(daemon)}")
    assert "Traceback" not in daemon.log.read_text()


def refuses(daemon: Daemon) -> None:
    for words in (
        ("run", "--rm", "--sandbox", "vm", "--network", "none", "busybox", "true"),
        ("template", "create", "--memory", "64m"),
    ):
        done = daemon.command(*words)
        assert done.returncode and "Traceback" not in done.stderr, done
        assert "space" in done.stderr or "full" in done.stderr, done.stderr


def floods(daemon: Daemon) -> None:
    """A guest that writes to its console as fast as it can."""
    flood = "while :; do echo 'a line of the console that is as long as lines of kernels are' >/dev/ttyS0; done"
    assert run(daemon, "flood", f"mknod /dev/ttyS0 c 4 64; {flood}", "--privileged").returncode == 0
    time.sleep(5)
    assert daemon.command("exec", "one", "echo", "unharmed", check=True).stdout == "unharmed\n"
    logs = list(daemon.run.glob("pods/*/vm/console.log*"))
    assert logs and sum(path.stat().st_size for path in logs) < 2 * SMALL_BYTES
