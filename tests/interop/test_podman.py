"""Podman (and conmon) with `--runtime drupe-oci`: what a user does with containers, seen through Podman."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework import criu, guests, machines, probes
from framework.bundles import COMMAND
from framework.leaks import CGROUP_PARENT, wait_until
from framework.podman import IMAGE, ULIMITS, Podman
from framework.probes import needs_program, needs_root

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
SLOW = pytest.mark.skipif(not os.environ.get("DRUPE_TEST_INTEROP"), reason="what shows the least: make test-interop")
VERSIONS = {"gvisor": "Linux version 4.4.0", "appkernel": "Linux version 6.1.0-drupe"}


@pytest.fixture
def podman(tmp_path: Path) -> Iterator[Podman]:
    yield from a_podman(tmp_path, COMMAND)


@pytest.fixture(params=["gvisor", pytest.param("appkernel", marks=SLOW)])
def own_kernel(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Podman]:
    """By the name of each kind whose sandboxes have a kernel of their own."""
    if request.param == "gvisor":
        needs_program("runsc")
    yield from a_podman(tmp_path, COMMAND.with_name(f"drupe-oci-{request.param}"))


@pytest.fixture
def wasm(tmp_path: Path) -> Iterator[Podman]:
    pytest.importorskip("wasmtime")
    guests.make_rootfs(tmp_path / "rootfs")
    yield from a_podman(tmp_path, COMMAND.with_name("drupe-oci-wasm"))


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Podman]:
    machines.needs_machines()
    (tmp_path / "drupe").mkdir()
    machines.make_root(tmp_path / "drupe")
    for podman in a_podman(tmp_path, COMMAND.with_name("drupe-oci-vm")):
        assert podman.drupe("template", "create").returncode == 0
        yield podman


def a_podman(tmp_path: Path, runtime: Path) -> Iterator[Podman]:
    """Podman with an image and this runtime."""
    needs_root()
    needs_program("podman", "conmon", "crun", "unshare", "nsenter")
    place = Podman(tmp_path)
    place.runtime = runtime
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


def test_under_a_kernel_of_its_own(own_kernel: Podman, tmp_path: Path) -> None:
    """The same, by the kind's name: none of what Podman sends always is refused."""
    podman, kind = own_kernel, own_kernel.runtime.name.removeprefix("drupe-oci-")
    assert VERSIONS[kind] in podman.run("cat", "/proc/version").stdout
    assert podman.run("sh", "-c", "exit 5", check=False).returncode == 5
    assert podman.run("cat", flags=["-i"], input="piped").stdout == "piped"
    assert podman.run("sh", "-c", "echo on a terminal", flags=["-t"]).stdout.split() == ["on", "a", "terminal"]
    assert podman.run("/nope", check=False).returncode == 127
    assert podman.run("/etc/passwd", check=False).returncode == 126
    (tmp_path / "volume").mkdir()
    flags = ["--user", "7:8", "--hostname", "named", "-v", f"{tmp_path}/volume:/v", "--memory", "256m"]
    (tmp_path / "volume").chmod(0o777)
    assert podman.run("sh", "-c", "id -u; hostname; echo text > /v/file", flags=flags).stdout.split() == ["7", "named"]
    assert (tmp_path / "volume/file").read_text() == "text\n"
    refused = podman.run("true", flags=["--device", "/dev/kmsg"], check=False)
    assert refused.returncode == 126 and "linux.devices" in refused.stderr
    assert f"is not carried out by {kind} sandboxes" in refused.stderr
    podman.run("sh", "-c", "echo in the log; exec sleep 1000", flags=["-d", "--name", "c", "--memory", "256m"])
    assert podman("logs", "c").stdout == "in the log\n"
    assert podman("exec", "--env", "A=b", "--workdir", "/tmp", "c", "sh", "-c", "pwd; echo $A").stdout == "/tmp\nb\n"
    assert podman("exec", "c", "sh", "-c", "exit 3", check=False).returncode == 3
    assert podman("exec", "-i", "c", "cat", input="to exec").stdout == "to exec"
    podman("exec", "-d", "c", "touch", "/tmp/detached")
    wait_until(lambda: podman("exec", "c", "ls", "/tmp").stdout == "detached\n", what="the detached exec")
    inspected = json.loads(podman("inspect", "c").stdout)[0]
    assert inspected["OCIRuntime"].endswith(f"drupe-oci-{kind}") and inspected["State"]["Running"]
    assert memory_limit(int(inspected["State"]["Pid"])) == 256 << 20
    # what Podman does by itself, in the namespaces of the pid that it was given
    (tmp_path / "file").write_text("copied")
    podman("cp", str(tmp_path / "file"), "c:/tmp/file")
    assert podman("exec", "c", "cat", "/tmp/file").stdout == "copied"
    podman("pause", "c")
    assert podman("inspect", "--format", "{{.State.Status}}", "c").stdout == "paused\n"
    podman("unpause", "c")
    podman("stop", "--time", "0", "c")
    podman("start", "c")
    podman("kill", "c")
    assert podman("wait", "c").stdout == "137\n"
    podman("rm", "c")
    assert podman("ps", "--all", "--quiet").stdout == ""
    assert podman.drupe("pod", "ls", "--quiet").stdout == ""


@SLOW
@pytest.mark.timeout(900)
def test_in_a_machine(machine: Podman, tmp_path: Path) -> None:
    """As whoever tries it first would: run, a volume, a published port, exec, logs, a mistake, the end."""
    podman, kernel = machine, f"{os.uname().release}\n"
    assert podman.run("uname", "-r").stdout not in ("", kernel)
    assert podman.run("sh", "-c", "exit 5", check=False).returncode == 5
    assert podman.run("cat", flags=["-i"], input="piped").stdout == "piped"
    assert podman.run("sh", "-c", "echo on a terminal", flags=["-t"]).stdout.split() == ["on", "a", "terminal"]
    missing, refused = (
        podman.run("/nope", check=False),
        podman.run("true", flags=["--device", "/dev/kmsg"], check=False),
    )
    assert missing.returncode == 127 and refused.returncode == 126
    assert "/dev/kmsg is no block device" in refused.stderr
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume/given").write_text("given\n")
    volume = ["-v", f"{tmp_path}/volume:/v", "--user", "7:8", "--hostname", "named"]
    (tmp_path / "volume").chmod(0o777)
    said = podman.run("sh", "-c", "id -u; hostname; cat /v/given; echo text > /v/file", flags=volume).stdout
    assert said.split() == ["7", "named", "given"] and (tmp_path / "volume/file").read_text() == "text\n"
    podman("network", "create", "own")
    serve = "echo in the log; while :; do echo served | nc -l -p 8080; done"
    stays = ["-d", "--name", "c", "--network", "own", "-p", "18080:8080", "--pids-limit", "50"]
    podman.run("sh", "-c", serve, flags=stays)
    wait_until(lambda: podman("logs", "c").stdout == "in the log\n", what="its output in the log", timeout_s=60)
    ask = "import socket; print(socket.create_connection(('127.0.0.1', 18080), 5).recv(99).decode(), end='')"
    wait_until(
        lambda: podman.inside("python3", "-c", ask, check=False).stdout == "served\n", what="an answer", timeout_s=60
    )
    assert podman("exec", "--env", "A=b", "--workdir", "/tmp", "c", "sh", "-c", "pwd; echo $A").stdout == "/tmp\nb\n"
    assert podman("exec", "c", "sh", "-c", "exit 3", check=False).returncode == 3
    assert "nc -l" in podman("top", "c", "-ef").stdout
    podman("pause", "c")
    podman("unpause", "c")
    podman("stop", "--time", "1", "c")
    podman("start", "c")
    podman("kill", "c")
    assert podman("wait", "c").stdout == "137\n"
    podman("rm", "c")
    assert podman("ps", "--all", "--quiet").stdout == "" and podman.drupe("pod", "ls", "--quiet").stdout == ""


@SLOW
@pytest.mark.parametrize("name", ["runc", "gvisor"])
def test_a_checkpoint(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Podman asks CRIU for its version, whoever makes the checkpoint."""
    found, why = criu.working_criu()
    if found is None:
        pytest.skip(why)
    needs_program("runsc", "runc")
    monkeypatch.setenv("PATH", f"{found.parent}:{os.environ['PATH']}")
    (tmp_path / "drupe.toml").write_text('[kinds.runc]\nprogram = "runc"\n')
    monkeypatch.setenv("DRUPE_CONFIG", str(tmp_path / "drupe.toml"))
    for podman in a_podman(tmp_path, COMMAND.with_name(f"drupe-oci-{name}")):
        begins = "n=0; while :; do n=$((n+1)); echo $n >/new; mv /new /told; sleep 0.1; done"
        podman.run("sh", "-c", begins, flags=["-d", "--name", "c"])
        wait_until(lambda: told(podman) > 3, what="it counts", timeout_s=60)  # noqa: B023
        podman("container", "checkpoint", "c")
        assert podman("inspect", "--format", "{{.State.Running}}", "c").stdout == "false\n"
        podman("container", "restore", "c")
        assert told(podman) > 3, "it counts from where it was"
        podman("container", "checkpoint", "--leave-running", "c")
        assert podman("inspect", "--format", "{{.State.Running}}", "c").stdout == "true\n"


def told(podman: Podman) -> int:
    """What a container that counts has come to."""
    return int(podman("exec", "c", "cat", "/told", check=False).stdout or 0)


def test_modules(wasm: Podman) -> None:
    assert wasm.run("echo", "from", "a", "module").stdout == "from a module\n"
    assert wasm.run("false", check=False).returncode == 1
    assert wasm.run("cat", flags=["-i"], input="piped").stdout == "piped"
    wasm.run("sleep", "1000", flags=["-d", "--name", "c"])
    assert wasm("exec", "--env", "A=b", "c", "printenv", "A").stdout == "b\n"
    wasm("stop", "--time", "0", "c")
    assert wasm("inspect", "--format", "{{.State.ExitCode}}", "c").stdout in ("137\n", "143\n")
    wasm("rm", "c")


@SLOW
@pytest.mark.parametrize("name", ["runc", "drupe-oci", "drupe-oci-gvisor", "drupe-oci-appkernel"])
def test_a_pair_on_a_network_and_who_attaches(tmp_path: Path, name: str) -> None:
    """As Compose makes them, but for names, for which Podman 4.3 needs a plug-in that Debian has not. runc is the
    oracle."""
    needs_program("runc", "runsc")
    runtime = Path(probes.program("runc")) if name == "runc" else COMMAND.with_name(name)
    for podman in a_podman(tmp_path, runtime):
        podman("network", "create", "pair")
        server = "while :; do echo served | nc -l -p 8080; done"
        podman.run("sh", "-c", server, flags=["-d", "--name", "server", "--network", "pair", "--memory", "256m"])
        address = podman("inspect", "--format", "{{.NetworkSettings.Networks.pair.IPAddress}}", "server").stdout.strip()
        ask = f"until nc {address} 8080 </dev/null | grep served; do sleep 0.1; done"
        assert podman.run("sh", "-c", ask, flags=["--network", "pair"]).stdout == "served\n"
        counted = json.loads(podman("stats", "--no-stream", "--format", "json", "server").stdout)[0]
        assert counted["name"] == "server" and "268.4MB" in counted["mem_usage"]
        podman("update", "--memory", "300m", "server", check=False)  # Podman 4.3 has the verb, and not each cgroup
        podman.run("sh", "-c", "read word; echo got $word; exit 4", flags=["-d", "-i", "--name", "attached"])
        attached = podman("attach", "attached", input="word\n", check=False)
        assert attached.stdout.strip() == "got word" and podman("wait", "attached").stdout == "4\n"
        assert podman("logs", "attached").stdout == "got word\n"
        podman("rm", "--force", "--time", "0", "--all")
        podman("network", "rm", "pair")
