"""Hooks of containers under the application kernel: programs of the host, in the order of the runtime specification."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from framework.appkernels import leaves_nothing
from framework.daemon import Daemon
from framework.leaks import wait_until

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def nothing_left(daemon: Daemon, tmp_path: Path) -> Iterator[None]:
    with leaves_nothing(daemon, tmp_path):
        yield


def hook(script: str, **more: Any) -> dict[str, Any]:
    return {"path": "/bin/sh", "args": ["-c", script], **more}


def run(daemon: Daemon, tmp_path: Path, hooks: dict[str, Any]) -> Any:
    return run_container(daemon, tmp_path, {"name": "c", "image": "busybox", "argv": ["sleep", "1000"], "hooks": hooks})


def run_container(daemon: Daemon, tmp_path: Path, container: dict[str, Any]) -> Any:
    spec = {"name": "hooked", "sandbox": "appkernel", "network": {"mode": "none"}, "containers": [container]}
    (tmp_path / "pod.json").write_text(json.dumps(spec))
    return daemon.command("pod", "run", "--file", str(tmp_path / "pod.json"))


def test_they_run_in_order_and_are_told_the_state(daemon: Daemon, tmp_path: Path) -> None:
    """The pid names the pod's network namespace; their environment is what they were given, and nothing else."""
    said = tmp_path / "said"
    pid = """$(echo "$state" | sed 's/.*"pid": *//;s/[,}].*//')"""
    note = f'read state; echo "$0 $A ${{HOME-none}} $(readlink /proc/{pid}/ns/net) $state" >>{said}'
    env = ["A=b", "PATH=/usr/bin:/bin"]
    phases = {"create_runtime": "createRuntime", "poststart": "poststart", "poststop": "poststop"}
    hooks = {phase: [{"path": "/bin/sh", "args": ["-c", note, phase], "env": env}] for phase in phases}
    assert run(daemon, tmp_path, hooks).returncode == 0
    status = json.loads(daemon.command("inspect", "--type", "pod", "hooked", check=True).stdout)[0]
    daemon.command("pod", "rm", "--force", "hooked", check=True)
    wait_until(lambda: said.read_text().count("\n") == 3, what="all three have run")
    lines = [line.split(" ", 4) for line in said.read_text().splitlines()]
    assert [line[0] for line in lines] == list(phases)
    states = [json.loads(line[-1]) for line in lines]
    assert [state["status"] for state in states] == ["creating", "running", "stopped"]
    assert {state["id"] for state in states} == {status["containers"][0]["id"]}
    assert all(line[1:3] == ["b", "none"] for line in lines)
    assert lines[0][3].startswith("net:[") and lines[0][3] == lines[1][3] != str(Path("/proc/self/ns/net").readlink())


def test_one_that_fails_before_the_start_undoes_it(daemon: Daemon, tmp_path: Path) -> None:
    done = run(daemon, tmp_path, {"create_runtime": [hook("echo no such luck >&2; exit 3")]})
    assert done.returncode != 0 and "createRuntime hook" in done.stderr and "no such luck" in done.stderr, done.stderr


def test_one_that_takes_too_long_is_ended(daemon: Daemon, tmp_path: Path) -> None:
    done = run(daemon, tmp_path, {"create_runtime": [hook("exec sleep 1000", timeout_s=1)]})
    assert done.returncode != 0 and "longer than it may" in done.stderr, done.stderr


def test_one_that_fails_after_the_start_is_a_warning(daemon: Daemon, tmp_path: Path) -> None:
    assert run(daemon, tmp_path, {"poststart": [hook("exit 3")]}).returncode == 0
    assert daemon.command("exec", "c", "echo", "alive", check=True).stdout == "alive\n"


def test_one_inside_runs_before_the_program_as_its_user(daemon: Daemon, tmp_path: Path) -> None:
    """What it says is what runc's says (docs/compat.md); it sees the files of the container, which wait for it."""
    note = 'exec >/told; echo $$ $PPID $(id -u) $(pwd) "$A" "${B-none}"; cat; echo; (sleep 0.2; echo later) & wait'
    container = {
        "name": "c", "image": "busybox", "argv": ["sh", "-c", "cat /told; sleep 1000"], "cwd": "/usr", "env": ["B=b"],
        "hooks": {"start_container": [hook(note, env=["A=b", "PATH=/bin"]), hook("echo second >>/told")]},
    }  # fmt: skip
    done = run_container(daemon, tmp_path, container)
    assert done.returncode == 0, done.stderr
    wait_until(lambda: "second" in daemon.command("logs", "c").stdout, what="the program has run")
    first, state, *rest = daemon.command("logs", "c").stdout.splitlines()
    assert first == "2 0 0 /usr b none" and rest == ["later", "second"]
    told = json.loads(state)
    assert (told["status"], told["pid"]) == ("created", 1) and told["id"] and told["bundle"]
    assert daemon.command("exec", "c", "echo", "alive", check=True).stdout == "alive\n"


@pytest.mark.parametrize(
    ("script", "more", "why"),
    [("echo no such luck; exit 3", {}, "no such luck"), ("exec sleep 1000", {"timeout_s": 1}, "longer than it may")],
    ids=["fails", "hangs"],
)
def test_one_inside_that_does_not_succeed_undoes_the_start(
    daemon: Daemon, tmp_path: Path, script: str, more: dict[str, Any], why: str
) -> None:
    done = run(daemon, tmp_path, {"start_container": [hook(script, **more)]})
    assert done.returncode != 0 and "startContainer hook" in done.stderr and why in done.stderr, done.stderr


def test_those_in_the_namespaces_of_the_container_are_refused_by_name(daemon: Daemon, tmp_path: Path) -> None:
    done = run(daemon, tmp_path, {"create_container": [hook("true")]})
    assert done.returncode != 0 and "hooks are not run by appkernel" in done.stderr, done.stderr
