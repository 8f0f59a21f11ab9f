"""Docker with drupe by containerd's shim (28) and by OCI (20.10 and 28): what a user does with containers.

What runc does is what ours must do. `make test-interop` runs every case; without it those that show the least are left
out.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from framework.docker import GENERATIONS, IMAGE, Docker, needs_docker
from framework.leaks import wait_until
from framework.probes import only_interop

# Docker, and its runtime: ours after runc, which is the oracle wherever that is asked for
CASES = [("28", "drupe"), ("20.10", "drupe")]
if os.environ.get("DRUPE_TEST_INTEROP"):
    CASES = [("28", "runc"), ("20.10", "runc"), *CASES]
    CASES += [("28", "drupe-by-oci"), ("28", "drupe-appkernel"), ("20.10", "drupe-appkernel")]

SHOWN = {"": "sleep 1000", "appkernel": "drupe-appkernel"}  # by `docker top`
pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


class Side:
    """Docker with one of its runtimes."""

    def __init__(self, docker: Docker, runtime: str) -> None:
        self.docker = docker
        self.runtime = runtime
        self.by_oci = runtime == "drupe-by-oci" or (runtime != "runc" and not docker.generation.shims)
        self.kind = "appkernel" if runtime == "drupe-appkernel" else ""

    def __call__(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """`docker WORDS`."""
        return self.docker(*words, **options)

    def run(self, *flags: str, argv: tuple[str, ...], **options: Any) -> subprocess.CompletedProcess[str]:
        """`docker run`, without a network and removed at its end, unless the flags say otherwise."""
        own = [] if {"-d", "--restart"} & {*flags} else ["--rm"]
        network = [] if "--network" in flags else ["--network", "none"]
        return self("run", *own, *network, "--runtime", self.runtime, *flags, IMAGE, *argv, **options)

    def inspect(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("inspect", name).stdout)[0]
        return found

    def wait_exited(self, name: str) -> dict[str, Any]:
        """Its state, once it has ended."""
        wait_until(lambda: not self.inspect(name)["State"]["Running"], what=f"the end of {name}", timeout_s=30.0)
        state: dict[str, Any] = self.inspect(name)["State"]
        return state


@pytest.fixture(scope="module", params=CASES, ids=["-".join(case) for case in CASES])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, busybox: Path) -> Iterator[Side]:
    name, runtime = request.param
    needs_docker(GENERATIONS[name])
    docker = Docker(tmp_path_factory.mktemp("k"), GENERATIONS[name], busybox)
    try:
        docker.open()
        yield Side(docker, runtime)
    finally:
        docker.close()


@pytest.fixture
def side(case: Side) -> Iterator[Side]:
    """Docker with a runtime, for a test; its containers go with it."""
    yield case
    if found := case("ps", "--all", "--quiet").stdout.split():
        case("rm", "--force", "--volumes", *found)
    assert case.docker.drupe("ps", "--all", "--quiet").stdout == ""


def test_one_command(side: Side, tmp_path: Path) -> None:
    assert side.run(argv=("echo", "hello")).stdout == "hello\n"
    failed = side.run(argv=("sh", "-c", "echo out; echo err >&2; exit 5"), check=False)
    assert (failed.stdout, failed.stderr, failed.returncode) == ("out\n", "err\n", 5)
    assert side.run("-i", argv=("cat",), input="piped").stdout == "piped"
    many = "\n".join(map(str, range(50000)))  # more than pipes hold, of somebody who goes before it is read
    counted = side.run("-i", argv=("sh", "-c", "sleep 0.5; wc -c"), input=many)
    assert int(counted.stdout) == len(many)
    assert len(side.run(argv=("seq", "100000")).stdout) == 588895  # no byte is lost at the end
    assert side.run("-t", argv=("tty",)).stdout == "/dev/pts/0\n"
    for program, code in (("/nope", 127), ("/etc/passwd", 126)):
        refused = side.run(argv=(program,), check=False)
        # the client reads the code in runc's words: with crun's, as by OCI for the runc kind, it is its own failure's
        assert refused.returncode == (125 if side.by_oci and not side.kind else code), refused.stderr
    flags = ("--user", "7:8", "--hostname", "named", "--workdir", "/tmp", "--env", "A=b", "--oom-score-adj", "300")
    script = "id -u; id -g; hostname; pwd; echo $A; cat /proc/self/oom_score_adj"
    assert side.run(*flags, argv=("sh", "-c", script)).stdout.split() == ["7", "8", "named", "/tmp", "b", "300"]
    assert side("ps", "--all", "--quiet").stdout == ""


def test_files(side: Side, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    side.run("-v", f"{tmp_path}/data:/v", argv=("sh", "-c", "echo text >/v/file"))
    assert (tmp_path / "data/file").read_text() == "text\n"
    read_only = side.run("-v", f"{tmp_path}/data:/v:ro", argv=("sh", "-c", "cat /v/file; echo x >/v/file"), check=False)
    assert read_only.stdout == "text\n" and "Read-only" in read_only.stderr
    side.run("-v", "named:/v", argv=("sh", "-c", "echo kept >/v/file"))
    assert side.run("-v", "named:/v", argv=("cat", "/v/file")).stdout == "kept\n"
    side("volume", "rm", "named")
    sealed = side.run(
        "--read-only", "--tmpfs", "/run:size=1m", argv=("sh", "-c", "touch /run/a && touch /b"), check=False
    )
    assert "/b: Read-only" in sealed.stderr
    side.run("-d", "--name", "copied", argv=("sleep", "1000"))
    side("cp", f"{tmp_path}/data/file", "copied:/tmp/file")
    assert side("exec", "copied", "cat", "/tmp/file").stdout == "text\n"


def test_one_that_stays(side: Side) -> None:
    limits = ("--memory", "64m", "--cpus", "0.5", "--pids-limit", "50")
    side.run("-d", "--name", "stays", *limits, argv=("sh", "-c", "echo in the log; exec sleep 1000"))
    wait_until(lambda: side("logs", "stays").stdout == "in the log\n", what="its log")
    assert side("exec", "stays", "echo", "in exec").stdout == "in exec\n"
    flags = ("--user", "1000", "--env", "A=b", "--workdir", "/tmp")
    assert side("exec", *flags, "stays", "sh", "-c", "id -u; pwd; echo $A").stdout.split() == ["1000", "/tmp", "b"]
    assert side("exec", "stays", "sh", "-c", "exit 3", check=False).returncode == 3
    assert side("exec", "-t", "stays", "tty").stdout.startswith("/dev/pts/")
    side("exec", "-d", "stays", "touch", "/tmp/detached")
    wait_until(lambda: side("exec", "stays", "ls", "/tmp").stdout == "detached\n", what="the detached exec")
    found = side.inspect("stays")
    assert found["State"]["Running"] and found["HostConfig"]["Runtime"] == side.runtime
    limits = limits_of(found["State"]["Pid"])
    if side.kind:  # which counts its own tasks; the host's bound is for all that it is made of
        limits["pids"] = 50
    assert limits == {"memory": 64 << 20, "cpu": 50000, "pids": 50}
    side("update", "--memory", "96m", "--memory-swap", "192m", "stays")
    assert limits_of(found["State"]["Pid"])["memory"] == 96 << 20
    stats = json.loads(
        side(
            "stats", "--no-stream", "--format", "json" if side.docker.generation.shims else "{{json .}}", "stays"
        ).stdout
    )
    # by OCI Docker reads the cgroup: the kernel and what it is made of are in it, too
    assert stats["PIDs"] == "1" or (side.kind and side.by_oci), stats
    assert stats["MemUsage"].endswith("/ 96MiB") and not stats["MemUsage"].startswith("0B")
    # with a kernel of its own the host has one process for it to show, or what stands for it
    shown = SHOWN[side.kind] if not (side.kind and side.by_oci) else "stand-in"
    assert shown in side("top", "stays").stdout
    side("pause", "stays")
    assert side.inspect("stays")["State"]["Status"] == "paused"
    side("unpause", "stays")
    side("kill", "stays")
    assert side("wait", "stays").stdout == "137\n"
    side("start", "stays")
    side("restart", "--time", "0", "stays")
    assert side("exec", "stays", "echo", "again").stdout == "again\n"
    side("stop", "--time", "1", "stays")
    assert side.inspect("stays")["State"]["Status"] == "exited"
    side("rm", "stays")


def test_attach_and_its_input(side: Side) -> None:
    side.run(
        "-d", "-i", "--name", "attached", argv=("sh", "-c", "read word; sleep 0.5; echo got $word; sleep 0.2; exit 4")
    )
    with side.docker.client("attach", "attached") as client:  # which writes no more once its input has ended
        assert client.stdin is not None and client.stdout is not None
        client.stdin.write(b"word\n")
        client.stdin.flush()
        assert client.stdout.read() == b"got word\n"
    assert client.returncode == 4
    assert side("logs", "attached").stdout == "got word\n"


def test_ends(side: Side) -> None:
    side.run(
        "-d",
        "--name",
        "trapped",
        argv=("sh", "-c", "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.05; done"),
    )
    wait_until(lambda: side("logs", "trapped").stdout == "up\n", what="it is up")
    side("stop", "trapped")
    assert side.inspect("trapped")["State"]["ExitCode"] == 7
    assert side("logs", "trapped").stdout == "up\nbye\n"
    flags = ("--memory", "16m", "--memory-swap", "16m")
    side.run("-d", "--name", "greedy", *flags, argv=("sh", "-c", "dd if=/dev/zero of=/dev/null bs=100M count=100"))
    state = side.wait_exited("greedy")
    assert state["ExitCode"] == 137
    if not (side.kind and side.by_oci):  # there Docker looks at the host's cgroup, and the kernel keeps within it
        wait_until(lambda: bool(side.inspect("greedy")["State"]["OOMKilled"]), what="the reason")
    side.run("--restart", "on-failure:2", "-d", "--name", "again", argv=("sh", "-c", "exit 1"))
    wait_until(lambda: side.inspect("again")["RestartCount"] == 2, what="it is started again", timeout_s=30.0)
    assert side.wait_exited("again")["ExitCode"] == 1


def test_events(side: Side) -> None:
    """Docker waits for them: a task whose events come in another order is taken for one that hangs."""
    since = str(int(float(side.docker.inside("date", "+%s").stdout)))
    side.run("--name", "eventful", argv=("true",))
    until = str(int(float(side.docker.inside("date", "+%s").stdout)) + 1)
    asked = ("events", "--since", since, "--until", until, "--filter", "container=eventful", "--format", "{{.Action}}")
    assert side(*asked).stdout.split() == ["create", "attach", "start", "die", "destroy"]


def test_a_pair_with_a_network_of_its_own(side: Side) -> None:
    """As Compose makes them: a network, a server that its neighbours know by name, and a client."""
    side("network", "create", "pair")
    try:
        script = "while :; do echo served | nc -l -p 8080; done"
        own = ("--network", "pair", "--network-alias", "web", "-p", "127.0.0.1:18080:8080")
        side.run("-d", "--name", "server", *own, argv=("busybox", "sh", "-c", script))
        ask = ("busybox", "sh", "-c", "until nc web 8080 </dev/null | grep served; do sleep 0.1; done")
        assert side.run("--network", "pair", argv=ask).stdout == "served\n"
        space = ("readlink", "/proc/self/ns/net")
        joined = side.run("--network", "container:server", argv=space).stdout
        assert joined == side("exec", "server", *space).stdout
        address = side.inspect("server")["NetworkSettings"]["Networks"]["pair"]["IPAddress"]
        assert f"inet {address}/" in side("exec", "server", "ip", "addr").stdout
        side("rm", "--force", "server")
    finally:
        side("network", "rm", "pair", check=False)


@only_interop("another Docker")
def test_gvisor_has_the_network_that_docker_makes(tmp_path_factory: pytest.TempPathFactory, busybox: Path) -> None:
    """By the process of a task that is only created: there has to be one."""
    needs_docker(GENERATIONS["28"])
    docker = Docker(tmp_path_factory.mktemp("k"), GENERATIONS["28"], busybox)
    try:
        docker.open()
        side = Side(docker, "drupe-gvisor")
        assert side.run(argv=("echo", "hello")).stdout == "hello\n"
        assert side.run("-i", argv=("cat",), input="piped").stdout == "piped"  # which has ended before the start
    finally:
        docker.close()


def limits_of(pid: int) -> dict[str, int]:
    """What the kernel holds a process to (cgroup v1)."""
    files = {"memory": "memory.limit_in_bytes", "cpu": "cpu.cfs_quota_us", "pids": "pids.max"}
    found = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, name, path = line.split(":", 2)
        if name in files:
            text = Path(f"/sys/fs/cgroup/{name}{path}/{files[name]}").read_text().strip()
            found[name] = -1 if text == "max" else int(text)
    return found
