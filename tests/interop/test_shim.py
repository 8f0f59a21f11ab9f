"""containerd runs tasks through our shim, as it does through its own: `ctr` of each generation, both side by side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.containerds import IMAGE, NAMESPACE, OURS, VERSIONS, Containerd, serving
from framework.leaks import wait_until
from framework.probes import needs_program

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

# our own after containerd's, which is the oracle
RUNTIMES = ("io.containerd.runc.v2", OURS)


@pytest.fixture(scope="module", params=VERSIONS)
def containerd(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, busybox: Path
) -> Iterator[Containerd]:
    yield from serving(tmp_path_factory.mktemp("c"), request.param, busybox)


@pytest.fixture(params=VERSIONS)
def fresh_containerd(request: pytest.FixtureRequest, tmp_path: Path, busybox: Path) -> Iterator[Containerd]:
    """For one test alone, which ends it and starts it again."""
    yield from serving(tmp_path, request.param, busybox)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_run(containerd: Containerd, runtime: str) -> None:
    run = ("run", "--rm", "--runtime", runtime, IMAGE)
    assert containerd.ctr(*run, "a", "echo", "hello") == "hello\n"
    assert containerd.try_ctr(*run, "b", "sh", "-c", "exit 5").returncode == 5
    assert len(containerd.ctr(*run, "c", "seq", "200000")) == 1288895  # no byte is lost at the end
    missing = containerd.try_ctr(*run, "d", "/nope")
    assert missing.returncode == 1 and any(
        words in missing.stderr for words in ("executable file not found", "no such file or directory")
    )
    containerd.ctr("container", "rm", "d", check=False)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_tasks_life_across_a_restart_of_containerd(fresh_containerd: Containerd, runtime: str) -> None:
    containerd = fresh_containerd
    containerd.ctr("run", "-d", "--runtime", runtime, IMAGE, "l", "sleep", "1000")
    execute = ("task", "exec", "--exec-id")
    assert containerd.ctr(*execute, "e1", "l", "echo", "in exec") == "in exec\n"
    assert containerd.try_ctr(*execute, "e2", "l", "sh", "-c", "exit 7").returncode == 7
    containerd.ctr("task", "pause", "l")
    assert "PAUSED" in containerd.ctr("task", "ls")
    containerd.ctr("task", "resume", "l")
    assert "RUNNING" in containerd.ctr("task", "ls")
    assert "memory" in containerd.ctr("task", "metrics", "l")
    assert containerd.drupe("ps", "--all", "--quiet").stdout == ""
    containerd.kill()
    containerd.start()
    assert containerd.ctr(*execute, "e3", "l", "echo", "again") == "again\n"
    containerd.ctr("task", "kill", "--signal", "SIGKILL", "l")
    wait_until(lambda: "STOPPED" in containerd.ctr("task", "ls"), what="the end of the task")
    containerd.ctr("task", "rm", "l", check=False)  # exits with the task's own code
    containerd.ctr("container", "rm", "l")
    assert containerd.ctr("container", "ls", "-q") == ""


def test_the_kind_is_in_the_name(containerd: Containerd) -> None:
    needs_program("runsc")
    said = containerd.ctr("run", "--rm", "--runtime", "io.containerd.drupe-gvisor.v2", IMAGE, "g", "dmesg")
    assert "gVisor" in said


_LOGGER = """#!/bin/sh
# NAME VALUE …, as the URI's query has them
echo "$1 $CONTAINER_ID $CONTAINER_NAMESPACE" >"$2/told"
cat <&3 >"$2/out" 5>&- &
cat <&4 >"$2/err" 5>&- &
exec 5>&-
wait
echo done >"$2/done"
"""


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_program_that_takes_the_output(containerd: Containerd, runtime: str, tmp_path: Path) -> None:
    logger = tmp_path / "logger"
    logger.write_text(_LOGGER)
    logger.chmod(0o755)
    run = ("run", "-d", "--runtime", runtime)
    uri = f"binary://{logger}?directory={tmp_path}"
    containerd.ctr(*run, "--log-uri", uri, IMAGE, "b", "sh", "-c", "seq 100000; echo err >&2")
    wait_until(lambda: (tmp_path / "done").exists() or "STOPPED" in containerd.ctr("task", "ls"), what="its end")
    containerd.ctr("task", "rm", "b", check=False)
    containerd.ctr("container", "rm", "b")
    wait_until(lambda: (tmp_path / "done").exists() or runtime == RUNTIMES[0], what="the logger's end")
    assert (tmp_path / "told").read_text() == f"directory b {NAMESPACE}\n"
    assert len((tmp_path / "out").read_text()) == 588895 and (tmp_path / "err").read_text() == "err\n"
    wrong = containerd.try_ctr(*run, "--log-uri", "binary:///no/such", IMAGE, "w", "true")
    assert wrong.returncode != 0 and "/no/such" in wrong.stderr
    containerd.ctr("container", "rm", "w", check=False)
