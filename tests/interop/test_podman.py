"""Podman (and conmon) with `--runtime drupe-oci`: what a user does with containers, seen through Podman."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.leaks import CGROUP_PARENT, wait_until
from framework.podman import IMAGE, ULIMITS, Podman
from framework.probes import needs_program, needs_root

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


@pytest.fixture
def podman(tmp_path: Path) -> Iterator[Podman]:
    needs_root()
    needs_program("podman", "conmon", "crun", "unshare", "nsenter")
    place = Podman(tmp_path)
    try:
        place.load()
        yield place
    finally:
        place.close()
        for parent in Path("/sys/fs/cgroup").glob(f"*/{CGROUP_PARENT}-podman"):
            for made in (*parent.glob("*"), parent):  # Podman keeps them for the next one
                if made.is_dir():
                    made.rmdir()
        shutil.rmtree(tmp_path / "root", ignore_errors=True)


def test_a_days_work(podman: Podman, tmp_path: Path) -> None:
    """One Podman for all of it: making its place takes longer than each step."""
    # run: output, exit codes, standard input, a terminal, an id, limits, volumes
    assert podman.run("echo", "hello").stdout == "hello\n"
    assert podman.run("sh", "-c", "exit 5", check=False).returncode == 5
    assert podman.run("cat", flags=["-i"], input="piped").stdout == "piped"
    assert "/dev/pts/0" in podman.run("tty", flags=["-t"]).stdout
    assert podman.run("/nope", check=False).returncode == 127
    assert podman.run("/etc/passwd", check=False).returncode == 126
    (tmp_path / "volume").mkdir()
    script = "id -u; hostname; cat /proc/self/oom_score_adj; echo text > /v/file"
    flags = ["--user", "0:7", "--hostname", "named", "--oom-score-adj", "300", "-v", f"{tmp_path}/volume:/v"]
    assert podman.run("sh", "-c", script, flags=flags).stdout.split() == ["0", "named", "300"]
    assert (tmp_path / "volume/file").read_text() == "text\n"
    # one that stays: logs, exec, inspect, pause, joining its network, ends
    stays = ["-d", "--name", "c", "--memory", "64m", "--pids-limit", "50"]
    podman.run("sh", "-c", "echo in the log; exec sleep 1000", flags=stays)
    assert podman("logs", "c").stdout == "in the log\n"
    assert podman("exec", "c", "echo", "in exec").stdout == "in exec\n"
    flags = ["--user", "1000", "--env", "A=b", "--workdir", "/tmp"]
    assert podman("exec", *flags, "c", "sh", "-c", "id -u; pwd; echo $A").stdout.split() == ["1000", "/tmp", "b"]
    assert podman("exec", "c", "sh", "-c", "exit 3", check=False).returncode == 3
    inspected = json.loads(podman("inspect", "c").stdout)[0]
    assert inspected["OCIRuntime"].endswith("drupe-oci") and inspected["State"]["Running"]
    assert memory_limit(int(inspected["State"]["Pid"])) == 64 << 20
    podman("pause", "c")
    assert podman("inspect", "--format", "{{.State.Status}}", "c").stdout == "paused\n"
    podman("unpause", "c")
    podman("exec", "-d", "c", "touch", "/tmp/detached")
    wait_until(lambda: podman("exec", "c", "ls", "/tmp").stdout == "detached\n", what="the detached exec")
    assert "sleep 1000" in podman("top", "c").stdout
    own = podman("exec", "c", "readlink", "/proc/self/ns/net").stdout
    joined = podman("run", "--rm", "--network", "container:c", *ULIMITS, IMAGE, "readlink", "/proc/self/ns/net")
    assert joined.stdout == own
    podman("kill", "c")
    assert podman("wait", "c").stdout == "137\n"
    podman("start", "c")
    podman("stop", "--time", "0", "c")
    assert podman("inspect", "--format", "{{.State.Status}}", "c").stdout in ("exited\n", "stopped\n")
    podman("rm", "c")
    assert podman("ps", "--all", "--quiet").stdout == ""
    # nothing of them is left with us either
    assert podman.drupe("ps", "--all", "--quiet").stdout == ""


def memory_limit(pid: int) -> int:
    """Bytes, of the process's cgroup of either version."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if names == "memory":
            return int(Path(f"/sys/fs/cgroup/memory{path}/memory.limit_in_bytes").read_text())
        if names == "" and (file := Path(f"/sys/fs/cgroup{path}/memory.max")).exists():
            return int(file.read_text())
    return 0
