"""Pods under the application kernel through a real daemon: ports, files, limits, counters, and too many processes."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drupe.sandboxers.appkernel.bounds import most_tasks
from framework import probes
from framework.appkernels import leaves_nothing
from framework.daemon import COMMAND, Daemon
from framework.leaks import wait_until

pytestmark = pytest.mark.root
HERE = ("--sandbox", "appkernel")
ALONE = (*HERE, "--network", "none")


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    daemon = request.getfixturevalue("fresh_daemon" if "fresh_daemon" in request.fixturenames else "daemon")
    with leaves_nothing(daemon, tmp_path):
        yield


def said(daemon: Daemon, *argv: str) -> str:
    return daemon.command(*argv, check=True).stdout


def refusal(daemon: Daemon, *argv: str) -> str:
    done = daemon.command(*argv)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    return done.stderr


def start(daemon: Daemon, name: str, *argv: str, script: str = "exec sleep 1000") -> None:
    daemon.command("run", "-d", "--name", name, *argv, "busybox", "sh", "-c", script, check=True)


def cgroup_of(daemon: Daemon, name: str, controller: str = "pids") -> Path:
    """The directory that holds a pod's kernel, of one controller (cgroup v1 or v2)."""
    pod = json.loads(said(daemon, "inspect", "--type", "pod", name))[0]["id"]
    kernel = (daemon.run / "pods" / pod / "appkernel/kernel.pid").read_text()
    for line in Path(f"/proc/{kernel}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return Path(f"/sys/fs/cgroup/{controller}{path}")
    return Path(f"/sys/fs/cgroup{path}")


# -- ports ----------------------------------------------------------------------------------------------------------


def test_a_privileged_port_is_the_guests_right(daemon: Daemon) -> None:
    """A server on port 80 answers the host by the published port; a user without the capability gets EACCES."""
    script = "mkdir /www; echo served >/www/word; exec httpd -f -p 80 -h /www"
    start(daemon, "web", *HERE, "-p", "8080:80", script=script)
    fetch = ("bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8080; printf 'GET /word HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3")
    wait_until(lambda: "served" in daemon.on_host(*fetch, timeout_s=5).stdout, what="the server answers")
    for rights in (("--user", "1000"), ("--cap-drop", "NET_BIND_SERVICE")):
        done = daemon.command("run", "--rm", *HERE, *rights, "busybox", "httpd", "-f", "-p", "81")
        assert done.returncode == 1 and "bind: Permission denied" in done.stderr, rights


# -- files ----------------------------------------------------------------------------------------------------------


def test_a_program_in_a_bind_mount_is_found(daemon: Daemon, tmp_path: Path) -> None:
    """By its path, and by PATH; one that is not there is told as missing."""
    (tmp_path / "tool").write_text("#!/bin/sh\necho found\n")
    (tmp_path / "tool").chmod(0o755)
    start(daemon, "bound", *ALONE, "-v", f"{tmp_path}:/data:ro")
    for words in (
        ("bound", "/data/tool"),
        ("-w", "/data", "bound", "./tool"),
        ("-e", "PATH=/bin:/data", "bound", "tool"),
    ):
        assert said(daemon, "exec", *words) == "found\n"
    done = daemon.command("exec", "bound", "/data/none")
    assert (done.returncode, "is not in the container" in done.stderr) == (127, True), done.stderr


def test_files_are_copied_both_ways(daemon: Daemon, tmp_path: Path) -> None:
    """Content, mode and owner; both sides see at once what the other has written."""
    start(
        daemon, "c1", *ALONE, script="echo first >/srv-file; chown 7:8 /srv-file; chmod 640 /srv-file; exec sleep 1000"
    )
    wait_until(lambda: "srv-file" in said(daemon, "exec", "c1", "ls", "/"), what="the file is there")
    wait_until(lambda: said(daemon, "exec", "c1", "stat", "-c", "%a", "/srv-file") == "640\n", what="its mode")
    out = tmp_path / "out"
    said(daemon, "cp", "-a", "c1:/srv-file", str(out))
    assert (out.read_text(), out.stat().st_mode & 0o777, out.stat().st_uid) == ("first\n", 0o640, 7)
    said(daemon, "exec", "c1", "sh", "-c", "echo second >>/srv-file")
    said(daemon, "cp", "c1:/srv-file", str(out))
    assert out.read_text() == "first\nsecond\n"
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/sub/in").write_text("from outside")
    said(daemon, "cp", str(tmp_path / "tree"), "c1:/opt")
    assert said(daemon, "exec", "c1", "cat", "/opt/sub/in") == "from outside"
    assert "in the memory of" in refusal(daemon, "cp", str(out), "c1:/dev/shm/x")


def test_what_is_in_memory_cannot_be_read_from_outside(fresh_daemon: Daemon, tmp_path: Path) -> None:
    """With roots as images: refused by name, each way there is."""
    probes.needs_program("mkfs.erofs")
    daemon, config = fresh_daemon, tmp_path / "drupe.toml"
    config.write_text('[kinds.appkernel]\nroot = "image"\n')
    daemon.kill()
    daemon.start(env={"DRUPE_CONFIG": str(config)})
    start(daemon, "c1", *ALONE, script="echo new >/new; echo done; exec sleep 1000")
    wait_until(lambda: said(daemon, "logs", "c1") == "done\n", what="it has written")
    (tmp_path / "in").touch()
    ways = [("diff", "c1"), ("commit", "c1", "made:x"), ("export", "-o", str(tmp_path / "tar"), "c1")]
    ways += [("cp", "c1:/new", str(tmp_path / "out")), ("cp", str(tmp_path / "in"), "c1:/in")]
    for argv in ways:
        why = refusal(daemon, *argv)
        assert "cannot read and write a container's files from outside" in why and "memory of the pod" in why, argv


# -- counters and limits ----------------------------------------------------------------------------------------------


def stats(daemon: Daemon, name: str) -> dict[str, Any]:
    found = json.loads(said(daemon, "stats", "--no-stream", "--json", name))
    one: dict[str, Any] = (found[0] if isinstance(found, list) else found)["stats"]
    return one


def test_counters_are_the_guests_and_limits_hold(daemon: Daemon) -> None:
    start(daemon, "c1", *ALONE, "--memory", "64m", script="sleep 1000 & sleep 1001 & exec sleep 1002")
    wait_until(lambda: said(daemon, "top", "c1").count("sleep 100") == 3, what="three processes")
    assert stats(daemon, "c1")["pids"] == 3
    said(daemon, "update", "--memory", "96m", "c1")
    limit = cgroup_of(daemon, "c1", "memory")
    files = [limit / name for name in ("memory.limit_in_bytes", "memory.max") if (limit / name).exists()]
    assert [file.read_text() for file in files] == [f"{96 << 20}\n"]
    assert memory_seen(daemon, "c1") == 96 << 10


def memory_seen(daemon: Daemon, name: str) -> int:
    """What a program takes for the memory of its machine, in KiB."""
    return int(said(daemon, "exec", name, "awk", "/^MemTotal/ { print $2 }", "/proc/meminfo"))


def sleepers(count: int) -> str:
    """A script that leaves so many behind, who hold none of its streams."""
    return f"for n in $(seq {count}); do sleep 1000 <>/dev/null >&0 2>&0 & done; echo all"


def test_tasks_are_counted_by_the_kernel(daemon: Daemon) -> None:
    """A limit holds for the guests' own tasks, whoever they are; it is told, and can be changed while they run."""
    start(daemon, "c1", *ALONE, "--pids-limit", "16")
    assert stats(daemon, "c1")["pids_limit"] == 16
    refused = daemon.command("exec", "c1", "sh", "-c", sleepers(40))
    assert refused.returncode == 2 and "can't fork: Resource temporarily unavailable" in refused.stderr
    wait_until(lambda: stats(daemon, "c1")["pids"] >= 15, what="as many as there may be")
    assert stats(daemon, "c1")["pids"] <= 16
    assert said(daemon, "exec", "c1", "echo", "let in") == "let in\n"
    said(daemon, "update", "--pids-limit", "64", "c1")
    assert stats(daemon, "c1")["pids_limit"] == 64
    assert said(daemon, "exec", "c1", "sh", "-c", sleepers(20)) == "all\n"


def test_limits_of_a_pod_hold_for_its_containers_together(daemon: Daemon, tmp_path: Path) -> None:
    containers = [{"name": name, "image": "busybox", "argv": ["sleep", "1000"]} for name in ("a", "b")]
    limits = {"pids": 12, "memory_bytes": 128 << 20}
    spec = {"name": "p", "sandbox": "appkernel", "network": {"mode": "none"}, "containers": containers}
    (tmp_path / "pod.json").write_text(json.dumps(spec | {"resources": limits}))
    said(daemon, "pod", "run", "--file", str(tmp_path / "pod.json"))
    assert memory_seen(daemon, "a") == 128 << 10
    said(daemon, "exec", "a", "sh", "-c", sleepers(6))
    refused = daemon.command("exec", "b", "sh", "-c", sleepers(6))
    assert refused.returncode == 2 and "can't fork" in refused.stderr
    said(daemon, "pod", "update", "--memory", "96m", "--pids-limit", "40", "p")
    assert memory_seen(daemon, "b") == 96 << 10
    assert said(daemon, "exec", "b", "sh", "-c", sleepers(6)) == "all\n"


def test_containers_of_a_pod_are_counted_one_by_one_and_changed_together(daemon: Daemon, tmp_path: Path) -> None:
    """What only the pod can do is refused of one of its containers, with the reason."""
    containers = [{"name": name, "image": "busybox", "argv": ["sleep", "1000"]} for name in ("a", "b")]
    spec = {"name": "p", "sandbox": "appkernel", "network": {"mode": "none"}, "containers": containers}
    (tmp_path / "pod.json").write_text(json.dumps(spec))
    said(daemon, "pod", "run", "--file", str(tmp_path / "pod.json"))
    for name in ("a", "b"):
        one = stats(daemon, name)
        assert one["pids"] == 1 and 0 < one["memory_working_set_bytes"] < 64 << 20
        assert "cpu_shares" in refusal(daemon, "update", "--cpu-shares", "512", name)
    said(daemon, "pod", "pause", "p")
    said(daemon, "pod", "resume", "p")
    said(daemon, "pod", "update", "--memory", "90m", "p")
    assert said(daemon, "exec", "b", "echo", "alive") == "alive\n"


def test_memory_of_one_of_several_is_limited_while_it_runs(daemon: Daemon, tmp_path: Path) -> None:
    """What it has forked by then, and what it runs later: each is held, its neighbour is not."""
    eat = "x=a; while :; do x=$x$x; done"
    containers = [{"name": name, "image": "busybox", "argv": ["sleep", "1000"]} for name in ("a", "b")]
    spec = {"name": "p", "sandbox": "appkernel", "network": {"mode": "none"}, "containers": containers}
    (tmp_path / "pod.json").write_text(json.dumps(spec))
    said(daemon, "pod", "run", "--file", str(tmp_path / "pod.json"))
    said(daemon, "update", "--memory", "48m", "a")
    assert (memory_seen(daemon, "a"), memory_seen(daemon, "b") > 48 << 10) == (48 << 10, True)
    assert stats(daemon, "a")["memory_limit_bytes"] == 48 << 20
    assert daemon.command("exec", "a", "sh", "-c", eat).returncode == 137
    hold = "x=a; while [ ${#x} -lt 67108864 ]; do x=$x$x; done; echo enough"
    assert said(daemon, "exec", "b", "sh", "-c", hold) == "enough\n"
    assert said(daemon, "exec", "a", "echo", "alive") == "alive\n"
    assert stats(daemon, "a")["oom_kills"] > 0


def two(daemon: Daemon, tmp_path: Path, script: str, **more: Any) -> None:
    """A pod of two containers that run the same."""
    containers = [{"name": name, "image": "busybox", "argv": ["sh", "-c", script], **more} for name in ("a", "b")]
    spec = {"name": "p", "sandbox": "appkernel", "network": {"mode": "none"}, "containers": containers}
    (tmp_path / "pod.json").write_text(json.dumps(spec))
    said(daemon, "pod", "run", "--file", str(tmp_path / "pod.json"))


def test_one_of_several_stands_still_by_itself(fresh_daemon: Daemon, tmp_path: Path) -> None:
    """Who runs and who waits; its neighbour does not, a restart of the daemon changes nothing, and it can be killed."""
    daemon, counts = fresh_daemon, {name: tmp_path / name for name in ("a", "b")}
    script = "while :; do i=$((i+1)); echo $i >/own/x; mv /own/x /own/count; sleep 0.02; done & while :; do :; done"
    containers = [
        {
            "name": name, "image": "busybox", "argv": ["sh", "-c", script],
            "mounts": [{"type": "bind", "source": str(place), "target": "/own"}],
        }
        for name, place in counts.items()
    ]  # fmt: skip
    for place in counts.values():
        place.mkdir()
    spec = {"name": "p", "sandbox": "appkernel", "network": {"mode": "none"}, "containers": containers}
    (tmp_path / "pod.json").write_text(json.dumps(spec))
    said(daemon, "pod", "run", "--file", str(tmp_path / "pod.json"))

    def count(name: str) -> int:
        return int((counts[name] / "count").read_text()) if (counts[name] / "count").exists() else 0

    def goes_on(name: str) -> None:
        before = count(name)
        wait_until(lambda: count(name) > before, what=f"{name} goes on")

    goes_on("a")
    said(daemon, "pause", "a")
    before = count("a")
    for _ in range(3):
        goes_on("b")
    assert "paused" in refusal(daemon, "exec", "a", "true")
    daemon.kill()
    daemon.start()
    goes_on("b")
    assert count("a") == before
    assert said(daemon, "ps", "--filter", "name=a", "--format", "{{.State}}") == "paused\n"
    said(daemon, "unpause", "a")
    goes_on("a")
    said(daemon, "pause", "b")
    said(daemon, "kill", "b")
    wait_until(lambda: "b" not in said(daemon, "ps", "--format", "{{.Names}}"), what="it has ended")
    goes_on("a")


def test_time_of_one_of_several_is_limited(daemon: Daemon, tmp_path: Path) -> None:
    """Both would run for ever; who may have a hundredth of a processor gets far less, answers, and is let go."""
    two(daemon, tmp_path, "while :; do :; done")
    said(daemon, "update", "--cpu-quota", "1000", "--cpu-period", "100000", "a")

    def used_s(name: str) -> float:
        return float(stats(daemon, name)["cpu_usage_ns"]) / 1e9

    def gains(name: str, least_s: float) -> tuple[float, float]:
        """What both get while the one that is named gets so much."""
        before = {one: used_s(one) for one in ("a", "b")}
        wait_until(lambda: used_s(name) > before[name] + least_s, what=f"{name} runs", timeout_s=100)
        return used_s("a") - before["a"], used_s("b") - before["b"]

    a, b = gains("b", 1.0)
    assert a < b / 2, (a, b)
    assert said(daemon, "exec", "a", "echo", "alive") == "alive\n"
    said(daemon, "update", "--cpu-quota", "-1", "a")
    gains("a", 0.5)


def test_a_pause_outlives_the_daemon(fresh_daemon: Daemon) -> None:
    """What stands still is told so at once, not when time is up; and goes on after a resume by another daemon."""
    daemon = fresh_daemon
    start(daemon, "c1", *ALONE, script="while :; do echo tick; sleep 0.1; done")
    wait_until(lambda: "tick" in said(daemon, "logs", "c1"), what="it ticks")
    wait_until(lambda: stats(daemon, "c1")["pids"] == 2, what="a shell and its child")
    said(daemon, "pause", "c1")
    for argv in (("top", "c1"), ("kill", "-s", "TERM", "c1"), ("exec", "c1", "true")):
        assert "paused" in refusal(daemon, *argv), argv
    assert stats(daemon, "c1")["pids"] in (1, 2)
    daemon.kill()
    daemon.start()
    assert said(daemon, "ps", "--format", "{{.State}}") == "paused\n"
    ticks = said(daemon, "logs", "c1")
    time.sleep(0.5)
    assert said(daemon, "logs", "c1") == ticks
    said(daemon, "unpause", "c1")
    wait_until(lambda: len(said(daemon, "logs", "c1")) > len(ticks), what="it ticks again")
    assert said(daemon, "exec", "c1", "echo", "alive") == "alive\n"


# -- too many processes -----------------------------------------------------------------------------------------------


def test_more_processes_than_the_host_gives_are_refused(daemon: Daemon) -> None:
    """The bound is the host's, for a pod that nobody limited; at it guests get EAGAIN, and go on."""
    start(daemon, "c1", *ALONE)
    most = cgroup_of(daemon, "c1") / "pids.max"
    assert int(most.read_text()) == most_tasks() < int(Path("/proc/sys/kernel/pid_max").read_text()) // 4
    most.write_text("24")
    script = "(while :; do sleep 1000 & done) 2>&1 | head -n 1; echo alive"
    assert said(daemon, "exec", "c1", "sh", "-c", script).splitlines()[1:] == ["alive"]
    most.write_text((most.parent / "pids.current").read_text())
    why = refusal(daemon, "exec", "c1", "true")
    assert "as many processes as it may have" in why, why


def test_a_fork_bomb_costs_its_pod_alone(daemon: Daemon) -> None:
    """Another pod starts and answers meanwhile, the host forks, and the bomb is removed, with all of its processes."""
    start(daemon, "bomb", *ALONE, "--memory", "256m")
    start(daemon, "other", *ALONE)
    group = cgroup_of(daemon, "bomb")
    (group / "pids.max").write_text("400")
    subprocess.run(
        [COMMAND, "exec", "-d", "bomb", "sh", "-c", "b() { b | b & }; b"], env=daemon.environment(), check=True
    )
    refused = group / "pids.events"
    wait_until(lambda: int(refused.read_text().split()[1]) > 0, what="the bomb meets its bound", timeout_s=60)
    assert said(daemon, "exec", "other", "echo", "well") == "well\n"
    assert said(daemon, "run", "--rm", *ALONE, "busybox", "echo", "new") == "new\n"
    assert int((group / "pids.current").read_text()) <= 400
    said(daemon, "rm", "--force", "bomb")
    assert not group.exists()
