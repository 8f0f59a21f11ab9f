"""containerd runs tasks through our shim, as it does through its own: `ctr` of each generation. `make test-interop`
tries both side by side; `make test` has ours do the whole list, and the other one run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.containerds import IMAGE, NAMESPACE, OURS, SOCKET, TRIED, Containerd, serving
from framework.leaks import wait_until
from framework.probes import needs_program

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

# our own after containerd's, which is the oracle
RUNTIMES = ("io.containerd.runc.v2", OURS)
APPKERNEL = "io.containerd.drupe-appkernel.v2"
EVERY = (*RUNTIMES, APPKERNEL) if os.environ.get("DRUPE_TEST_INTEROP") else (OURS,)


@pytest.fixture(scope="module", params=TRIED)
def containerd(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, busybox: Path
) -> Iterator[Containerd]:
    yield from serving(tmp_path_factory.mktemp("c"), request.param, busybox)


@pytest.fixture(params=TRIED)
def fresh_containerd(request: pytest.FixtureRequest, tmp_path: Path, busybox: Path) -> Iterator[Containerd]:
    """For one test alone, which ends it and starts it again."""
    yield from serving(tmp_path, request.param, busybox)


@pytest.mark.parametrize("runtime", [*RUNTIMES, *EVERY[2:]])
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


@pytest.mark.parametrize("runtime", EVERY)
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


@pytest.mark.parametrize("runtime", EVERY)
def test_the_input_of_execs(containerd: Containerd, runtime: str) -> None:
    containerd.ctr("run", "-d", "--runtime", runtime, IMAGE, "input", "sleep", "1000")
    for number, given in enumerate(("word\n", "x" * 300_000)):  # an empty one ctr does not always tell its shim of
        execute = ("task", "exec", "--exec-id", f"e{number}", "input")
        assert containerd.ctr(*execute, "cat", input=given) == given
    late = f"(sleep 1; echo late) | ctr --address {SOCKET} --namespace {NAMESPACE} task exec --exec-id e input cat"
    assert containerd.inside("sh", "-c", late).stdout == "late\n"
    assert containerd.ctr("task", "exec", "--exec-id", "f", "input", "true", input="nobody reads this") == ""
    containerd.ctr("task", "rm", "--force", "input", check=False)
    containerd.ctr("container", "rm", "input")


def test_the_kind_is_in_the_name(containerd: Containerd) -> None:
    needs_program("runsc")
    said = containerd.ctr("run", "--rm", "--runtime", "io.containerd.drupe-gvisor.v2", IMAGE, "g", "dmesg")
    assert "gVisor" in said


def test_the_application_kernel_by_name(containerd: Containerd) -> None:
    said = containerd.ctr("run", "--rm", "--runtime", APPKERNEL, IMAGE, "k", "cat", "/proc/version")
    assert "(drupe)" in said


def test_a_checkpoint_that_cannot_be_made_says_why(containerd: Containerd) -> None:
    ctr = containerd.ctr
    ctr("run", "-d", "--runtime", OURS, IMAGE, "r", "sleep", "1000")
    refused = containerd.try_ctr("containers", "checkpoint", "--task", "r", "checkpoint:2")
    assert refused.returncode != 0 and "without CRIU" in refused.stderr
    assert "RUNNING" in ctr("task", "ls")
    ctr("task", "rm", "--force", "r", check=False)
    ctr("container", "rm", "r")


@pytest.mark.parametrize("runtime", EVERY)
def test_events_come_in_order(containerd: Containerd, runtime: str) -> None:
    asked = ("ctr", "--address", SOCKET, "--namespace", NAMESPACE, "events")
    listener = containerd.serve(*asked, log=f"events-{runtime}")
    told = containerd.directory / f"events-{runtime}"
    try:
        wait_until(lambda: _listens(containerd, told), what="it listens")
        names = [f"ordered-{number}" for number in range(3)]
        for name in names:
            containerd.ctr("run", "-d", "--runtime", runtime, IMAGE, name, "sleep", "1000")
            containerd.ctr("task", "exec", "--exec-id", "e", name, "true")
            containerd.ctr("task", "rm", "--force", name, check=False)
            containerd.ctr("container", "rm", name)
        order = ["create", "start", "exec-added", "exec-started", "exit", "delete"]
        # now and then runc's shim ends before it has told of the deletion
        whole = [order, order[:-1]] if runtime == RUNTIMES[0] else [order]
        for name in names:
            wait_until(lambda name=name: len(_heard(told, name)) > len(whole[-1]), what="the last event")  # type: ignore[misc]
            heard = _heard(told, name)
            heard.remove("exit e")  # told when it is seen, which need not be before that of the task
            assert heard in whole
    finally:
        listener.terminate()
        listener.wait(30)


def _listens(containerd: Containerd, told: Path) -> bool:
    """Have something told until it is heard."""
    containerd.ctr("namespace", "label", NAMESPACE, "listens=yes")
    return bool(told.read_text())


def _heard(told: Path, name: str) -> list[str]:
    """The topics of a task's events, as they came; the end of its exec is "exit e"."""
    found = []
    for line in told.read_text().splitlines():
        if "/tasks/" not in line or f'"{name}"' not in line:
            continue
        words = line.split(" ", 7)
        topic = next(word for word in words if word.startswith("/tasks/")).removeprefix("/tasks/")
        event = json.loads(line[line.index("{") :])
        if topic == "exit" and event.get("id") == "e":
            topic = "exit e"
        if topic != "delete" or event.get("id", "") in ("", name):  # runc's shim tells of an exec's deletion, too
            found.append(topic)
    return found


_LOGGER = """#!/bin/sh
# NAME VALUE …, as the URI's query has them
echo "$1 $CONTAINER_ID $CONTAINER_NAMESPACE" >"$2/told"
cat <&3 >"$2/out" 5>&- &
cat <&4 >"$2/err" 5>&- &
exec 5>&-
wait
echo done >"$2/done"
"""


@pytest.mark.parametrize("runtime", EVERY)
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
