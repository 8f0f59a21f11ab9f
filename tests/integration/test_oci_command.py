"""drupe-oci as conmon, a containerd shim or a person call it: whole lives of bundles, and what goes wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drupe.spec.control import Empty
from framework import bundles
from framework.bundles import Runtime, config, make_bundle
from framework.callers import CONMON, first_and_last, on_terminal, receive_terminal
from framework.daemon import Daemon
from framework.leaks import wait_until

pytestmark = pytest.mark.root


@pytest.fixture
def oci(daemon: Daemon, tmp_path: Path) -> Iterator[Runtime]:
    """drupe-oci with a root of its own; what a test leaves there is deleted."""
    runtime = bundles.drupe_oci(daemon, tmp_path / "state")
    yield runtime
    for line in runtime("list", "--quiet").stdout.split():
        runtime("delete", "--force", line)


def bundle(directory: Path, *args: str, **changes: Any) -> Path:
    return make_bundle(directory / "bundle", config(*args, cgroup=directory.name[-20:], **changes))


def test_the_whole_life_of_a_container(oci: Runtime, tmp_path: Path) -> None:
    made = bundle(tmp_path, "sh", "-c", "echo started; exec sleep 1000", annotations={"a": "b"})
    pid = oci.create(made, "c1", tmp_path / "out")
    state = oci.state("c1")
    assert (state["status"], state["pid"], state["bundle"]) == ("created", pid, str(made))
    assert (state["annotations"], state["rootfs"], state["id"]) == ({"a": "b"}, f"{made}/rootfs", "c1")
    assert (tmp_path / "out").read_text() == ""
    oci("start", "c1")
    wait_until(lambda: (tmp_path / "out").read_text() == "started\n", what="output in the caller's own file")
    assert oci.state("c1")["status"] == "running"
    assert oci("exec", "c1", "echo", "-n", "hi").stdout == "hi"
    assert oci("exec", "c1", "sh", "-c", "exit 7", check=False).returncode == 7
    assert json.loads(oci("ps", "--format", "json", "c1").stdout) == [pid]
    assert "sleep 1000" in oci("ps", "c1").stdout
    assert [entry["id"] for entry in json.loads(oci("list", "-f", "json").stdout)] == ["c1"]
    assert oci("delete", "c1", check=False).returncode == 1
    oci("kill", "c1", "KILL")
    wait_until(lambda: oci.state("c1")["status"] == "stopped", what="the end of the container")
    oci("delete", "c1")
    gone = oci("state", "c1", check=False)
    assert gone.returncode == 1 and "container does not exist" in gone.stderr
    oci("delete", "--force", "c1")


def test_the_container_is_a_child_of_who_called(oci: Runtime, tmp_path: Path) -> None:
    """conmon and shims learn the exit code by waitpid(2): the workload must be their own descendant."""
    made = bundle(tmp_path, "sh", "-c", "echo in; exit 42")
    pid_file = tmp_path / "pid"
    create = [*oci.argv, "create", "--bundle", made, "--pid-file", pid_file, "c1"]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CONMON), pid_file, *create],
        env=oci.env, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert done.stdout == "in\ncode 42\n"


def test_run_is_transparent(oci: Runtime, tmp_path: Path) -> None:
    """Streams, exit code and signals are the workload's."""
    made = bundle(tmp_path, "sh", "-c", "cat; echo err >&2; exit 3")
    done = oci("run", "--bundle", made, "c1", check=False, input="piped")
    assert (done.stdout, done.stderr, done.returncode) == ("piped", "err\n", 3)
    assert oci("list", "-q").stdout == ""
    made = bundle(tmp_path, "sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.01; done")
    running = subprocess.Popen([*oci.argv, "run", "--bundle", made, "c2"], env=oci.env, stdout=subprocess.PIPE)
    assert running.stdout is not None and running.stdout.readline() == b"ready\n"
    running.terminate()
    assert running.wait(20) == 9
    running.stdout.close()


def test_detached_run_and_exec(oci: Runtime, tmp_path: Path) -> None:
    made = bundle(tmp_path, "sleep", "1000")
    with (tmp_path / "out").open("w") as out:
        subprocess.run(
            [*oci.argv, "run", "-d", "--bundle", made, "--pid-file", tmp_path / "run.pid", "c1"],
            env=oci.env, check=True, stdout=out, stderr=out, stdin=subprocess.DEVNULL, timeout=30,
        )  # fmt: skip
        process = {"args": ["sleep", "77"], "cwd": "/mnt", "env": ["PATH=/bin"], "user": {"uid": 1000, "gid": 1000}}
        (tmp_path / "process.json").write_text(json.dumps(process))
        subprocess.run(
            [*oci.argv, "exec", "-d", "--process", "process.json", "--pid-file", "exec.pid", "c1"],
            env=oci.env, check=True, stdout=out, stderr=out, stdin=subprocess.DEVNULL, cwd=tmp_path, timeout=30,
        )  # fmt: skip
    assert oci.state("c1")["pid"] == int((tmp_path / "run.pid").read_text())
    pid = int((tmp_path / "exec.pid").read_text())
    assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\x0077\x00"
    assert "Uid:\t1000\t" in Path(f"/proc/{pid}/status").read_text()


def test_exec_flags(oci: Runtime, tmp_path: Path) -> None:
    oci.create(bundle(tmp_path, "sleep", "1000"), "c1", tmp_path / "out")
    oci("start", "c1")
    script = "echo $A $B; pwd; id -u; id -g; grep -c NoNewPrivs:.1 /proc/self/status"
    flags = ("--cwd", "/tmp", "-e", "A=1", "--env=B=2", "--user", "1000:1000", "--no-new-privs")
    assert oci("exec", *flags, "c1", "sh", "-c", script).stdout.split() == ["1", "2", "/tmp", "1000", "1000", "1"]
    missing = oci("exec", "c1", "/nope", check=False)
    assert missing.returncode != 0 and "/nope" in missing.stderr
    assert oci("exec", "-g", "5", "--additional-gids", "7", "c1", "id", "-G").stdout == "0 5 7\n"
    capabilities = oci("exec", "--cap", "CAP_SYS_PTRACE", "c1", "grep", "CapEff", "/proc/self/status").stdout
    assert int(capabilities.split()[1], 16) == 1 << 0 | 1 << 5 | 1 << 19  # CHOWN and KILL are the container's
    wrong = oci("exec", "--user", "nobody", "c1", "id", check=False)
    assert wrong.returncode == 255 and "numbers" in wrong.stderr


def test_a_terminal_by_console_socket(oci: Runtime, tmp_path: Path) -> None:
    made = bundle(tmp_path, "sh", "-c", "tty; stty size; read word; echo got $word", process={
        "terminal": True, "consoleSize": {"height": 33, "width": 99}, "args": ["sh", "-c", "tty; stty size; read word; echo got $word"],  # noqa: E501
    })  # fmt: skip
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "console"))
        listener.listen()
        oci.create(made, "c1", tmp_path / "out", "--console-socket", tmp_path / "console")
        master = receive_terminal(listener)
    try:
        os.write(master, b"word\n")
        oci("start", "c1")
        said = b""
        while b"got word" not in said:
            said += os.read(master, 4096)
        assert b"/dev/pts/0" in said and b"33 99" in said
    finally:
        os.close(master)


def test_preserved_descriptors(oci: Runtime, tmp_path: Path) -> None:
    """Descriptors 3 and 4 arrive under their numbers; nothing of ours does."""
    made = bundle(tmp_path, "sh", "-c", "cat <&3; cat <&4; ls /proc/self/fd | wc -l")
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    shell = f'exec "$@" 3<{tmp_path}/a 4<{tmp_path}/b'
    argv = ["sh", "-c", shell, "sh", *oci.argv, "run", "--preserve-fds", "2", "--bundle", str(made), "c1"]
    done = subprocess.run(argv, env=oci.env, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "ab6\n"  # 0 to 4, and what ls itself opens


def test_limits_are_updated(oci: Runtime, tmp_path: Path) -> None:
    made = bundle(tmp_path, "sleep", "1000", linux={"resources": {"pids": {"limit": 100}}})
    oci.create(made, "c1", tmp_path / "out")
    oci("start", "c1")
    limits = '{"pids": {"limit": 55}, "memory": {"limit": 67108864}}'
    oci("update", "--resources", "-", "c1", input=limits)
    stats = json.loads(oci("events", "--stats", "c1").stdout)
    assert stats["data"]["pids"]["limit"] == 55
    assert stats["data"]["memory"]["usage"]["limit"] == 67108864
    oci("update", "--pids-limit", "44", "--memory", "32m", "--memory-swap", "-1", "c1")
    stats = json.loads(oci("events", "--stats", "c1").stdout)
    assert (stats["type"], stats["id"], stats["data"]["pids"]) == ("stats", "c1", {"current": 1, "limit": 44})
    assert stats["data"]["memory"]["usage"]["limit"] == 33554432
    unchanged = '{"memory": {"limit": 0, "swap": 0}, "cpu": {"shares": 0, "cpus": ""}, "pids": {"limit": 33}}'
    oci("update", "--resources", "-", "c1", input=unchanged)  # as Docker says it
    stats = json.loads(oci("events", "--stats", "c1").stdout)
    assert (stats["data"]["pids"]["limit"], stats["data"]["memory"]["usage"]["limit"]) == (33, 33554432)
    for wrong in ('{"pids": {"limit": "many"}}', "{", '{"cpu": {"burst": 1}}'):
        refused = oci("update", "--resources", "-", "c1", input=wrong, check=False)
        assert refused.returncode == 1 and "hint" not in refused.stdout and refused.stderr.startswith("drupe-oci: ")


def test_events_come_until_the_container_ends(oci: Runtime, tmp_path: Path) -> None:
    oci.create(bundle(tmp_path, "sleep", "1000"), "c1", tmp_path / "out")
    oci("start", "c1")
    watching = subprocess.Popen([*oci.argv, "events", "--interval", "20ms", "c1"], env=oci.env, stdout=subprocess.PIPE)
    assert watching.stdout is not None
    lines = [json.loads(watching.stdout.readline()) for _ in range(3)]
    assert {line["type"] for line in lines} == {"stats"}
    oci("kill", "c1", "9")
    assert watching.wait(20) == 0
    watching.stdout.close()


def test_an_event_tells_of_a_process_killed_for_memory(oci: Runtime, tmp_path: Path) -> None:
    resources = {"memory": {"limit": 16 << 20, "swap": 16 << 20}}
    oci.create(bundle(tmp_path, "sleep", "1000", linux={"resources": resources}), "c1", tmp_path / "out")
    oci("start", "c1")
    watching = subprocess.Popen([*oci.argv, "events", "--interval", "50ms", "c1"], env=oci.env, stdout=subprocess.PIPE)
    assert watching.stdout is not None
    assert json.loads(watching.stdout.readline())["type"] == "stats"
    oci("exec", "c1", "dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1", check=False)
    assert any(json.loads(line) == {"type": "oom", "id": "c1"} for line in watching.stdout)
    oci("kill", "c1", "KILL")
    assert watching.wait(20) == 0
    watching.stdout.close()


def test_pause_stops_and_resume_goes_on(oci: Runtime, tmp_path: Path) -> None:
    oci.create(bundle(tmp_path, "sleep", "1000"), "c1", tmp_path / "out")
    oci("start", "c1")
    oci("pause", "c1")
    assert oci.state("c1")["status"] == "paused"
    oci("resume", "c1")
    assert oci.state("c1")["status"] == "running"
    assert oci("exec", "c1", "echo", "on").stdout == "on\n"


def test_roots_keep_ids_apart(oci: Runtime, daemon: Daemon, tmp_path: Path) -> None:
    other = bundles.drupe_oci(daemon, tmp_path / "other")
    oci.create(bundle(tmp_path, "sleep", "1000"), "same", tmp_path / "out")
    assert other("state", "same", check=False).returncode == 1
    twice = oci("create", "--bundle", tmp_path / "bundle", "same", check=False)
    assert twice.returncode == 1 and "already exists" in twice.stderr
    assert other("list", "-q").stdout == ""


def test_the_name_or_an_annotation_chooses_the_kind(daemon: Daemon, oci: Runtime, tmp_path: Path) -> None:
    named = tmp_path / "drupe-oci-runc"
    named.symlink_to(bundles.COMMAND)
    by_name = bundles.drupe_oci(daemon, tmp_path / "state", named)
    made = bundle(tmp_path, "echo", "fine", annotations={"drupe.kind": "runc"})
    assert by_name("run", "--bundle", made, "c1").stdout == "fine\n"
    assert oci("run", "--bundle", made, "c1").stdout == "fine\n"
    other = bundle(tmp_path, "x", annotations={"drupe.kind": "nonsense"})
    refused = oci("run", "--bundle", other, "c1", check=False)
    assert refused.returncode == 1 and "unknown sandbox kind 'nonsense'" in refused.stderr
    refused = by_name("run", "--bundle", made.parent / "bundle", "c1", check=False)
    assert refused.returncode == 1 and "drupe-oci-runc" in refused.stderr  # another kind than its name says


def test_errors_go_where_runc_says_them(oci: Runtime, tmp_path: Path) -> None:
    log = tmp_path / "log"
    failed = oci("--log", log, "--log-format", "json", "start", "nobody", check=False)
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[0] == "drupe-oci: container does not exist"
    entry = json.loads(log.read_text())
    assert (entry["level"], entry["msg"]) == ("error", "container does not exist") and entry["time"]
    oci("--log", log, "--log-format=json", "run", "--bundle", bundle(tmp_path, "/nope"), "c1", check=False)
    assert "/nope" in json.loads(log.read_text().splitlines()[-1])["msg"]  # the program's own error, in the same log
    oci("--log", tmp_path / "text", "state", "nobody", check=False)
    assert 'level=error msg="container does not exist"' in (tmp_path / "text").read_text()


WRONG = {
    "not JSON": ("{", "truncated"),
    "a wrong type": ('{"ociVersion": "1.0.2", "process": {"cwd": "/", "user": {"uid": "root"}}}', "$.process.user.uid"),
    "no root": ('{"ociVersion": "1.0.2"}', "at `$.root.path`"),
    "another version": ('{"ociVersion": "2.0.0", "root": {"path": "rootfs"}}', "2.0.0"),
    "deep nesting": ("[" * 100_000, "config.json"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_bundle_is_one_clear_error(oci: Runtime, tmp_path: Path, name: str) -> None:
    text, words = WRONG[name]
    made = bundle(tmp_path, "true")
    (made / "config.json").write_text(text)
    refused = oci("create", "--bundle", made, "c1", check=False)
    assert refused.returncode == 1 and words in refused.stderr.partition("\n")[0]
    assert "Traceback" not in refused.stderr
    assert oci("list", "-q").stdout == ""


def test_what_is_no_configuration_is_not_waited_for(oci: Runtime, tmp_path: Path) -> None:
    """A fifo that nobody writes, a device without an end, a directory, nothing at all."""
    made = bundle(tmp_path, "true")
    place = made / "config.json"
    for make in (lambda: os.mkfifo(place), lambda: place.symlink_to("/dev/zero"), place.mkdir, lambda: None):
        if place.is_dir():
            place.rmdir()
        else:
            place.unlink(missing_ok=True)
        make()
        refused = oci("create", "--bundle", made, "c1", check=False)
        assert refused.returncode == 1 and "config.json" in refused.stderr


UNHONOURED = {
    "process.scheduler": {"process": {"args": ["true"], "scheduler": {"policy": "SCHED_BATCH"}}},
    "process.ioPriority": {"process": {"args": ["true"], "ioPriority": {"class": "IOPRIO_CLASS_IDLE", "priority": 0}}},
    "linux.timeOffsets": {"linux": {"timeOffsets": {"boottime": {"secs": 5}}}},
    "linux.intelRdt": {"linux": {"intelRdt": {"closID": "x"}}},
    "linux.netDevices": {"linux": {"netDevices": {"eth0": {}}}},
    "vm": {"vm": {"kernel": {"path": "/x"}}},
    "windows": {"windows": {"layerFolders": []}},
}


LATER = ("process.scheduler", "process.ioPriority", "linux.timeOffsets", "linux.intelRdt")


@pytest.mark.parametrize("field", UNHONOURED)
def test_what_the_program_would_overlook_is_refused_by_name(oci: Runtime, tmp_path: Path, field: str) -> None:
    newest = subprocess.run(["crun", "--version"], capture_output=True, text=True, check=True).stdout
    if (
        field in ("process.scheduler", "process.ioPriority", "linux.timeOffsets", "linux.intelRdt")
        and "1.8.1" not in newest
    ):
        pytest.skip(f"this crun carries it out: {newest.splitlines()[0]}")
    refused = oci("create", "--bundle", bundle(tmp_path, "true", **UNHONOURED[field]), "c1", check=False)
    assert refused.returncode == 1 and f"{field} is not carried out by crun" in refused.stderr


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["checkpoint", "c1"], "container does not exist"),
        (["checkpoint", "--wings", "c1"], "--wings"),
        (["restore", "c1"], "config.json does not exist"),
        (["dance"], "No help topic for 'dance'"),
        (["create", "--wings", "c1"], "--wings"),
        (["create"], "container id is missing"),
        (["create", "a/b"], "'a/b'"),
        (["state", ".."], "'..'"),
        (["kill", "c1", "NOSUCH"], "NOSUCH"),
        (["start", "c1", "c2"], "unexpected argument 'c2'"),
    ],
)
def test_mistakes_are_refused_by_name(oci: Runtime, argv: list[str], words: str) -> None:
    refused = oci(*argv, check=False)
    assert refused.returncode == 1 and words in refused.stderr and "Traceback" not in refused.stderr


def test_a_template_is_written_once_and_runs(oci: Runtime, tmp_path: Path) -> None:
    made = bundle(tmp_path, "true")
    (made / "config.json").unlink()
    oci("spec", "--bundle", made)
    assert oci("spec", "--bundle", made, check=False).returncode == 1
    document = json.loads((made / "config.json").read_text())
    document["process"] |= {"terminal": False, "args": ["echo", "templated"]}
    document["linux"]["cgroupsPath"] = config(cgroup="spec")["linux"]["cgroupsPath"]
    (made / "config.json").write_text(json.dumps(document))
    assert oci("run", "c1", cwd=made).stdout == "templated\n"


def test_features_and_version(oci: Runtime) -> None:
    features = json.loads(oci("features").stdout)
    assert features["ociVersionMax"] == "1.2.0" and "createRuntime" in features["hooks"]
    assert oci("--version").stdout.startswith("drupe-oci version ")


def test_containers_outlive_the_daemon_which_is_started_on_demand(fresh_daemon: Daemon, tmp_path: Path) -> None:
    oci = bundles.drupe_oci(fresh_daemon, tmp_path / "state")
    made = bundle(tmp_path, "sleep", "1000")
    pid = oci.create(made, "c1", tmp_path / "out")
    oci("start", "c1")
    fresh_daemon.kill()
    try:
        assert oci.state("c1")["status"] == "running"  # answered by a daemon that drupe-oci has started
        assert oci("exec", "c1", "echo", "on").stdout == "on\n"
        assert Path(f"/proc/{pid}").exists()
        oci("delete", "--force", "c1")
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), what="the end of the container")
    finally:
        with fresh_daemon.client() as client:
            client.call("system.shutdown", Empty(), timeout_s=20)
        wait_until(lambda: not (fresh_daemon.run / "drupe.sock").exists(), what="the end of the second daemon")


def test_a_daemon_that_cannot_start_is_said_in_the_log_too(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    oci = Runtime("drupe-oci", [bundles.COMMAND], root=tmp_path, env={"DRUPE_RUN": str(tmp_path / "file/run")})
    failed = oci("--log", tmp_path / "log", "--log-format", "json", "state", "c1", check=False)
    assert failed.returncode == 1 and "Traceback" not in failed.stderr
    assert "Not a directory" in json.loads((tmp_path / "log").read_text())["msg"]


def test_signals_by_name_and_number(oci: Runtime, tmp_path: Path) -> None:
    made = bundle(
        tmp_path, "sh", "-c", "trap 'echo usr1' USR1; trap 'echo hup' HUP; echo up; while :; do sleep 0.01; done"
    )
    oci.create(made, "c1", tmp_path / "out")
    oci("start", "c1")
    said = tmp_path / "out"
    wait_until(lambda: said.read_text() == "up\n", what="the container")
    oci("kill", "c1", "SIGUSR1")
    wait_until(lambda: "usr1" in said.read_text(), what="SIGUSR1")
    oci("kill", "--all", "c1", str(int(signal.SIGHUP)))
    wait_until(lambda: "hup" in said.read_text(), what="SIGHUP")
    oci("kill", "c1", "KILL")
    wait_until(lambda: oci.state("c1")["status"] == "stopped", what="the end")


def test_a_terminal_in_the_foreground(oci: Runtime, tmp_path: Path) -> None:
    """run and exec on the caller's own terminal: its size, its input, its output."""
    made = bundle(tmp_path, process={"terminal": True, "args": ["sh", "-c", "tty; read word; echo got $word; exit 4"]})
    code, said = on_terminal([*oci.argv, "run", "--bundle", str(made), "c1"], oci.env, b"in\n")
    assert (code, *first_and_last(said)) == (4, b"/dev/pts/0", b"got in")
    oci.create(bundle(tmp_path, "sleep", "1000"), "c2", tmp_path / "out")
    oci("start", "c2")
    argv = [*oci.argv, "exec", "--tty", "c2", "sh", "-c", "tty; read word; echo got $word; exit 5"]
    code, said = on_terminal(argv, oci.env, b"in\n")
    assert (code, *first_and_last(said)) == (5, b"/dev/pts/0", b"got in")


def test_from_another_pid_namespace(oci: Runtime, tmp_path: Path) -> None:
    """The daemon's /proc/PID is another process there, or none."""
    made = bundle(tmp_path, "echo", "inside")
    oci.argv = ["unshare", "--pid", "--fork", "--mount-proc", *oci.argv]
    assert oci("run", "--bundle", made, "c1").stdout == "inside\n"
