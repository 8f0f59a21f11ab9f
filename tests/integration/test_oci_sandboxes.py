"""drupe-oci for kinds whose sandboxes the daemon keeps: a stand-in is the caller's child, and the workload is not."""

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
from framework.bundles import KindRuntime, config, make_bundle
from framework.callers import CONMON, on_terminal, receive_terminal
from framework.daemon import Daemon
from framework.leaks import wait_until
from framework.probes import needs_program

pytestmark = pytest.mark.root


@pytest.fixture
def oci(daemon: Daemon, tmp_path: Path) -> Iterator[KindRuntime]:
    """By gVisor's name, with a root of its own; what a test leaves there is deleted."""
    needs_program("runsc", "crun")
    runtime = bundles.of_kind("gvisor", daemon, tmp_path / "state")
    yield runtime
    for line in runtime("list", "--quiet").stdout.split():
        runtime("delete", "--force", line)


def bundle(directory: Path, *args: str, **changes: Any) -> Path:
    return make_bundle(directory / "bundle", config(*args, cgroup=directory.name[-20:], **changes))


def processes(oci: KindRuntime) -> int:
    """How many there are in c1."""
    return len(oci("ps", "c1").stdout.splitlines()) - 1


def test_a_whole_life(oci: KindRuntime, daemon: Daemon, tmp_path: Path) -> None:
    made = bundle(tmp_path, "sh", "-c", "echo started; exec sleep 1000", annotations={"a": "b"})
    pid = oci.create(made, "c1", tmp_path / "out")
    state = oci.state("c1")
    assert (state["status"], state["pid"], state["bundle"]) == ("created", pid, str(made))
    assert (state["annotations"], state["rootfs"], state["id"]) == ({"a": "b"}, f"{made}/rootfs", "c1")
    oci("start", "c1")
    wait_until(lambda: (tmp_path / "out").read_text() == "started\n", what="output in the caller's own file")
    # the stand-in has the container's files and namespaces, and runs none of its programs
    assert Path(f"/proc/{pid}/comm").read_text() == "drupe-stand-in\n"
    assert sorted(path.name for path in Path(f"/proc/{pid}/root").iterdir()) == sorted(
        path.name for path in (made / "rootfs").iterdir()
    )
    assert "CapEff:\t0000000000000000" in Path(f"/proc/{pid}/status").read_text()
    for name in ("net", "pid", "mnt", "uts", "ipc"):
        assert Path(f"/proc/{pid}/ns/{name}").readlink() != Path(f"/proc/self/ns/{name}").readlink()
    # pods with an owner are shown to who asks, and obey nobody else
    assert daemon.command("ps", "--quiet").stdout == ""
    assert "Linux version 4.4.0" in oci("exec", "c1", "cat", "/proc/version").stdout
    assert "sleep" in oci("ps", "c1").stdout
    assert json.loads(oci("ps", "--format", "json", "c1").stdout) == [pid]  # who asks looks numbers up on the host
    counted = json.loads(oci("events", "--stats", "c1").stdout)["data"]
    assert counted["memory"]["usage"]["usage"] > 1 << 20
    oci("update", "--memory", "256m", "c1")
    assert json.loads(oci("events", "--stats", "c1").stdout)["data"]["memory"]["usage"]["limit"] == 256 << 20
    assert oci("delete", "c1", check=False).returncode == 1
    oci("kill", "c1", "KILL")
    wait_until(lambda: oci.state("c1")["status"] == "stopped", what="the end of the container")
    wait_until(lambda: not Path(f"/proc/{pid}/exe").exists(), what="the end of its stand-in")
    oci("delete", "c1")
    assert oci("list", "--quiet").stdout == ""


@pytest.mark.parametrize(("script", "told"), [("echo in; exit 42", "in\ncode 42\n"), ("kill -9 $$", "code 137\n")])
def test_the_stand_in_is_a_child_of_who_called(oci: KindRuntime, tmp_path: Path, script: str, told: str) -> None:
    """conmon and shims learn the exit code by waitpid(2)."""
    made = bundle(tmp_path, "sh", "-c", f"({script}); exit $?")
    pid_file = tmp_path / "pid"
    create = [*oci.argv, "create", "--bundle", made, "--pid-file", pid_file, "c1"]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CONMON), pid_file, *create],
        env=oci.env, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert done.stdout == told


def test_signals_to_the_stand_in_reach_the_workload(oci: KindRuntime, tmp_path: Path) -> None:
    script = "trap 'echo hup' HUP; trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done"
    made = bundle(tmp_path, "sh", "-c", script)
    running = subprocess.Popen([*oci.argv, "run", "--bundle", made, "c1"], env=oci.env, stdout=subprocess.PIPE)
    assert running.stdout is not None and running.stdout.readline() == b"ready\n"
    running.terminate()
    assert running.wait(20) == 9
    running.stdout.close()
    assert oci("list", "-q").stdout == ""
    pid = oci.create(made, "c2", tmp_path / "out")
    oci("start", "c2")
    wait_until(lambda: (tmp_path / "out").read_text() == "ready\n", what="its traps")
    os.kill(pid, signal.SIGHUP)
    wait_until(lambda: (tmp_path / "out").read_text() == "ready\nhup\n", what="the signal")


def test_who_kills_the_stand_in_ends_the_sandbox(oci: KindRuntime, tmp_path: Path) -> None:
    pid = oci.create(bundle(tmp_path, "sleep", "1000"), "c1", tmp_path / "out")
    oci("start", "c1")
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: oci.state("c1")["status"] == "stopped", what="the end of the sandbox")
    oci("delete", "c1")
    pid = oci.create(bundle(tmp_path, "sleep", "1000"), "c2", tmp_path / "out")
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: oci.state("c2")["status"] == "stopped", what="the end of what was never started")
    oci("delete", "c2")


def test_an_exec_has_a_stand_in_of_its_own(oci: KindRuntime, tmp_path: Path) -> None:
    oci.create(bundle(tmp_path, "sleep", "1000"), "c1", tmp_path / "out")
    oci("start", "c1")
    with (tmp_path / "exec").open("w") as out:
        argv = [*oci.argv, "exec", "-d", "--pid-file", tmp_path / "pid", "c1", "sh", "-c", "echo said; sleep 1000"]
        subprocess.run(argv, env=oci.env, check=True, stdout=out, stderr=out, stdin=subprocess.DEVNULL, timeout=30)
    wait_until(lambda: (tmp_path / "exec").read_text() == "said\n", what="the exec's output")
    assert processes(oci) == 2
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    wait_until(lambda: processes(oci) < 2, what="the end of the exec")
    with subprocess.Popen([*oci.argv, "exec", "c1", "sleep", "1000"], env=oci.env) as waiting:
        wait_until(lambda: processes(oci) == 2, what="another exec")
        oci("delete", "--force", "c1")
        assert waiting.wait(20) == 137
    oci.create(bundle(tmp_path, "sleep", "1000"), "c1", tmp_path / "out")
    oci("start", "c1")
    failed = oci("exec", "c1", "/nope", check=False)
    assert failed.returncode == 255 and "executable file not found" in failed.stderr


def test_terminals(oci: KindRuntime, tmp_path: Path) -> None:
    """By a console socket, and the caller's own: one terminal behind the other echoes once."""
    sized = "until stty size 2>/dev/null | grep .; do sleep 0.05; done"  # it has one a moment after its program
    script = ["sh", "-c", f"{sized}; read word; echo got $word; exit 4"]
    made = bundle(tmp_path, process={"terminal": True, "consoleSize": {"height": 33, "width": 99}, "args": script})
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "console"))
        listener.listen()
        oci.create(made, "c1", tmp_path / "out", "--console-socket", tmp_path / "console")
        master = receive_terminal(listener)
    try:
        oci("start", "c1")
        said = os.read(master, 4096)
        while b"33 99" not in said:
            said += os.read(master, 4096)
        os.write(master, b"word\n")
        while b"got word" not in said:
            said += os.read(master, 4096)
        assert said.replace(b"\r", b"") == b"33 99\nword\ngot word\n"
    finally:
        os.close(master)
    oci("delete", "--force", "c1")
    code, said = on_terminal([*oci.argv, "run", "--bundle", str(made), "c2"], oci.env, b"in\n", size=(20, 70))
    assert (code, b"20 70\n" in said, said.endswith(b"got in\n")) == (4, True, True), said
    oci.create(bundle(tmp_path, "sleep", "1000"), "c3", tmp_path / "out")
    oci("start", "c3")
    code, said = on_terminal([*oci.argv, "exec", "--tty", "c3", *script], oci.env, b"in\n", size=(21, 71))
    assert (code, b"21 71\n" in said, said.endswith(b"got in\n")) == (4, True, True), said


def test_a_root_that_only_the_caller_has_mounted(oci: KindRuntime, tmp_path: Path) -> None:
    """In a mount namespace of its own, as containerd and Podman may be."""
    made = bundle(tmp_path, "cat", "/note", "/mnt/more", mounts=[
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/mnt", "type": "bind", "source": str(tmp_path / "more"), "options": ["bind", "ro"]},
    ])  # fmt: skip
    (made / "rootfs").rename(tmp_path / "hidden")
    (made / "rootfs").mkdir()
    (tmp_path / "more").mkdir()
    (tmp_path / "hidden/note").write_text("root\n")
    mounts = f"mount --bind {tmp_path}/hidden {made}/rootfs; mount -t tmpfs none {tmp_path}/more"
    oci.argv = [
        "unshare", "--mount", "sh", "-c", f'{mounts}; echo bind > {tmp_path}/more/more; exec "$@"', "sh", *oci.argv
    ]  # fmt: skip
    assert oci("run", "--bundle", made, "c1").stdout == "root\nbind\n"


def test_the_network_is_the_stand_ins(oci: KindRuntime, tmp_path: Path) -> None:
    """Docker's hook fills it between create and start."""
    made = bundle(tmp_path, "ip", "addr")
    pid = oci.create(made, "c1", tmp_path / "out")
    inside = ["nsenter", "--target", str(pid), "--net"]
    for words in (
        ("link", "add", "eth9", "type", "veth", "peer", "name", "peer9"),
        ("addr", "add", "10.9.8.7/24", "dev", "eth9"),
        ("link", "set", "eth9", "up"),
    ):
        subprocess.run([*inside, "ip", *words], check=True)
    oci("start", "c1")
    wait_until(lambda: oci.state("c1")["status"] == "stopped", what="the end")
    assert "10.9.8.7/24" in (tmp_path / "out").read_text()


def test_containers_outlive_the_daemon(fresh_daemon: Daemon, tmp_path: Path) -> None:
    """What stands for them is told of their end by the next one."""
    needs_program("runsc", "crun")
    oci = bundles.of_kind("gvisor", fresh_daemon, tmp_path / "state")
    made = bundle(tmp_path, "sh", "-c", "echo up; trap 'exit 7' TERM; while :; do sleep 0.05; done")
    argv = [*map(str, oci.argv), "run", "--bundle", str(made), "c1"]
    with subprocess.Popen(argv, env=oci.env, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None and running.stdout.readline() == b"up\n"
        later = oci.create(bundle(tmp_path / "later", "echo", "late"), "c2", tmp_path / "out")
        fresh_daemon.kill()
        try:
            assert oci.state("c1")["status"] == "running"  # answered by a daemon that drupe-oci has started
            assert oci.state("c2")["pid"] == later
            oci("start", "c2")
            wait_until(lambda: (tmp_path / "out").read_text() == "late\n", what="what was created before")
            assert oci("exec", "c1", "echo", "on").stdout == "on\n"
            running.terminate()
            assert running.wait(20) == 7
            oci("delete", "--force", "c2")
            assert oci("list", "--quiet").stdout == ""
        finally:
            with fresh_daemon.client() as client:
                client.call("system.shutdown", Empty(), timeout_s=20)
            wait_until(lambda: not (fresh_daemon.run / "drupe.sock").exists(), what="the end of the second daemon")


def test_features_are_those_of_the_kind(oci: KindRuntime) -> None:
    document = json.loads(oci("features").stdout)
    assert "startContainer" not in document["hooks"] and "poststop" in document["hooks"]
    assert not {"user", "time"} & {*document["linux"]["namespaces"]} and "network" in document["linux"]["namespaces"]
    assert "rslave" not in document["mountOptions"] and "ro" in document["mountOptions"]


def test_nothing_is_left_of_what_cannot_be(oci: KindRuntime, daemon: Daemon, tmp_path: Path) -> None:
    """Not of the bundle, nor of its stand-in."""
    for process in ({"args": ["/nope"]}, {"args": ["/etc/passwd"]}):
        failed = oci("create", "--bundle", bundle(tmp_path, process=process), "c1", check=False)
        assert failed.returncode == 1 and "drupe-oci: " in failed.stderr
    made = bundle(tmp_path, "true", hooks={"createRuntime": [{"path": "/bin/false"}]})
    assert oci("create", "--bundle", made, "c1", check=False).returncode == 1
    for flag in ("--preserve-fds=2", "--console-socket=/x", "--pid-file=/nowhere/pid", f"--pid-file={tmp_path}"):
        assert oci("create", "--bundle", bundle(tmp_path, "true"), flag, "c1", check=False).returncode == 1
    assert oci("list", "--quiet").stdout == ""
    assert list((tmp_path / "state").glob("*/*")) == []
    assert daemon.command("pod", "ls", "--quiet").stdout == ""
