"""What people used to Docker's command line do without thinking."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drupe.images.build import image_from_tree
from drupe.images.progress import silent
from drupe.images.store import ImageStore
from framework.daemon import Daemon
from framework.leaks import wait_until

pytestmark = pytest.mark.root

Drupe = Callable[..., subprocess.CompletedProcess[str]]
TRAPPED = "trap 'exit 9' USR1; while :; do /bin/sh -c :; done"


@pytest.fixture
def web(drupe: Drupe, daemon: Daemon) -> Iterator[str]:
    """A container that runs; its name."""
    drupe("run", "-d", "--name", "web", "--network", "none", "busybox", "sleep", "1000", check=True)
    yield "web"
    daemon.delete_pods()


def test_cp_of_what_a_directory_holds(drupe: Drupe, web: str, tmp_path: Path) -> None:
    """SOURCE/. as Docker has it: into a directory that is there, into a new one, and through a link."""
    drupe("exec", web, "sh", "-c", "mkdir -p /data/sub && echo 1 >/data/a && echo 2 >/data/sub/b && ln -s data /link")
    (tmp_path / "there").mkdir()
    for source, goal in (("/data/.", "there"), ("/data/.", "new"), ("/link/.", "linked")):
        drupe("cp", f"{web}:{source}", str(tmp_path / goal), check=True)
        assert (tmp_path / goal / "a").read_text() == "1\n"
        assert (tmp_path / goal / "sub" / "b").read_text() == "2\n"


def test_exec_of_a_long_command(drupe: Drupe, web: str) -> None:
    """As long as the kernel takes it, and within the container's limits."""
    words = ["\x01" * 1000] * 400
    assert drupe("exec", web, "echo", *words, check=True).stdout == " ".join(words) + "\n"
    inside = drupe("exec", web, "sh", "-c", "cat /proc/self/cgroup", *words, check=True).stdout
    assert inside == drupe("exec", web, "cat", "/proc/1/cgroup", check=True).stdout


def test_what_an_image_says_holds_also_for_the_next_daemon(fresh_daemon: Daemon, tmp_path: Path) -> None:
    """Its health check is watched, unless refused; its stop signal ends the container, also after a daemon's death."""
    daemon, tree = fresh_daemon, tmp_path / "tree"
    (tree / "bin").mkdir(parents=True)
    shutil.copy(str(shutil.which("busybox")), tree / "bin/sh")
    health = {"Test": ["CMD", "/bin/sh", "-c", "exit 0"], "Interval": 50_000_000}
    config = {"Healthcheck": health, "StopSignal": "SIGUSR1", "Cmd": ["/bin/sh", "-c", TRAPPED]}
    image_from_tree(ImageStore(daemon.root / "images"), tree, tag="checked", config=config, progress=silent)
    daemon.command("run", "-d", "--name", "a", "--network", "none", "checked", check=True)
    daemon.command("run", "-d", "--name", "b", "--no-healthcheck", "--network", "none", "checked", check=True)
    state = "{{.State.Status}} {{.Status.Health}}"
    wait_until(lambda: daemon.command("inspect", "-f", state, "a").stdout == "running healthy\n", what="it is healthy")
    assert daemon.command("inspect", "-f", state, "b").stdout == "running \n"
    daemon.kill()
    daemon.start()
    daemon.command("stop", "a", check=True)
    assert daemon.command("wait", "a").stdout == "9\n"
