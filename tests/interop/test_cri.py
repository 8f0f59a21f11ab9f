"""The Container Runtime Interface, as containerd 2.1 serves it: what its own runc handler does is what ours must do.
`make test-interop` holds it to each case, too, and our other kinds to the whole list."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from drupe.rpc.containerd.sandbox_controller_pb2 import ControllerCreateRequest
from drupe.rpc.cri import api_pb2 as api
from framework.containerds import IMAGE, SOCKET
from framework.cri import container_config, pod_config
from framework.cri_host import CGROUP, CriHost, needs_handler
from framework.cri_streams import ERROR, RESIZE, STDERR, STDIN, STDOUT, exit_code
from framework.leaks import wait_until
from framework.probes import needs_program

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
FOREVER = ("sleep", "100000")
FULL = bool(os.environ.get("DRUPE_TEST_INTEROP"))
APPKERNEL = "drupe-appkernel"
NATIVE = FULL * ["runc"] + ["drupe-runc"]  # containerd's own is the oracle
SHARING = NATIVE + FULL * ["drupe-gvisor"]
LINUX = SHARING + FULL * [APPKERNEL]
STREAMING = NATIVE + ["streaming-drupe"] + FULL * [APPKERNEL]


@pytest.fixture(params=LINUX)
def handler(request: pytest.FixtureRequest) -> str:
    """Each handler that runs Linux programs, the oracle first."""
    return needs_handler(request.param)


@pytest.fixture(params=SHARING)
def sharing(request: pytest.FixtureRequest) -> str:
    """Those that share the node's network, and one container's process table with another, too."""
    return needs_handler(request.param)


@pytest.fixture(params=["drupe-runc", "drupe-gvisor", APPKERNEL, "drupe-wasm"])
def ours(request: pytest.FixtureRequest) -> str:
    """Our handlers."""
    return needs_handler(request.param)


@pytest.fixture(params=NATIVE)
def native(request: pytest.FixtureRequest) -> str:
    """Those whose programs the host's kernel runs."""
    return str(request.param)


@pytest.mark.parametrize("handler", ["runc", "drupe-runc", "drupe-by-shim", APPKERNEL])
def test_a_pod_and_a_container_from_start_to_end(cri: CriHost, handler: str) -> None:
    pod = cri.pod("life", handler, labels={"a": "b"}, annotations={"note": "x"})
    status = cri.cri.PodSandboxStatus(pod_sandbox_id=pod[0]).status
    assert status.state == api.SANDBOX_READY and status.network.ip.startswith("10.88.")
    assert dict(status.labels) == {"a": "b"} and status.runtime_handler == handler
    script = "trap 'echo bye; exit 7' TERM; echo out; echo err >&2; while :; do sleep 0.05; done"
    container = cri.cri.create(pod[0], container_config("main", "sh", "-c", script, image=IMAGE), pod[1])
    assert cri.cri.state(container) == "CREATED"
    cri.cri.StartContainer(container_id=container)
    assert cri.cri.state(container) == "RUNNING"
    wait_until(lambda: sorted(cri.log("life", "main")) == ["err", "out"], what="its output")
    done = cri.cri.ExecSync(container_id=container, cmd=["sh", "-c", "echo 1; echo 2 >&2; exit 3"], timeout=20)
    assert (done.stdout, done.stderr, done.exit_code) == (b"1\n", b"2\n", 3)
    cri.cri.StopContainer(container_id=container, timeout=10)
    ended = cri.cri.wait_exited(container)
    assert ended.exit_code == 7 and ended.reason == "Error" and ended.finished_at >= ended.started_at > 0
    wait_until(lambda: cri.log("life", "main")[-1] == "bye", what="its last word")
    cri.cri.RemoveContainer(container_id=container)
    assert not cri.cri.ListContainers().containers
    cri.cri.StopPodSandbox(pod_sandbox_id=pod[0])
    cri.cri.StopPodSandbox(pod_sandbox_id=pod[0])
    assert cri.cri.pod_state(pod[0]) == "NOTREADY"
    cri.cri.RemovePodSandbox(pod_sandbox_id=pod[0])
    assert not cri.cri.ListPodSandbox().items


@pytest.mark.parametrize("handler", STREAMING)
def test_streams(cri: CriHost, handler: str) -> None:
    pod = cri.pod("streams", handler)
    script = "echo ready; read word; echo got $word; exec sleep 100000"
    container = cri.run(pod, "main", "sh", "-c", script, stdin=True)
    asked = {"container_id": container, "stdout": True}
    url = cri.cri.Exec(**asked, cmd=["sh", "-c", "cat; echo err >&2; exit 3"], stdin=True, stderr=True).url
    with cri.stream(url) as channels:
        channels.send(STDIN, b"some words\n")
        assert channels.read_until(b"words\n") == b"some words\n"
    url = cri.cri.Exec(**asked, cmd=["sh", "-c", "echo out; echo err >&2; exit 3"], stderr=True).url
    with cri.stream(url) as channels:
        got = channels.read_all()
    assert (got[STDOUT], got[STDERR], exit_code(got[ERROR])) == (b"out\n", b"err\n", 3)
    url = cri.cri.Exec(**asked, cmd=["seq", "100000"], stderr=True).url
    with cri.stream(url) as channels:
        assert channels.read_all()[STDOUT].split() == [b"%d" % number for number in range(1, 100001)]
    url = cri.cri.Attach(**asked, stdin=True, stderr=True).url
    with cri.stream(url) as channels:
        channels.send(STDIN, b"word\n")
        channels.read_until(b"got word\n")
    wait_until(lambda: cri.log("streams", "main") == ["ready", "got word"], what="the log")


@pytest.mark.parametrize("handler", STREAMING)
def test_terminals(cri: CriHost, handler: str) -> None:
    pod = cri.pod("terminal", handler)
    container = cri.run(pod, "main", *FOREVER)
    url = cri.cri.Exec(container_id=container, cmd=["sh"], tty=True, stdin=True, stdout=True).url
    with cri.stream(url) as channels:
        channels.send(RESIZE, json.dumps({"Width": 91, "Height": 37}).encode())
        channels.send(STDIN, b"test -t 0 && echo ter''minal; until stty size | grep '37 91'; do sleep 0.1; done\n")
        channels.read_until(b"terminal\r\n")
        channels.read_until(b"37 91")
        channels.send(STDIN, b"exit 5\n")
        got = channels.read_all()
    assert exit_code(got[ERROR]) == 5


def test_port_forward(cri: CriHost, handler: str) -> None:
    pod = cri.pod("ports", handler)
    server = "while :; do echo served | nc -l -p 8080; done"
    container = cri.run(pod, "server", "sh", "-c", server)
    wait_until(lambda: "8080" in cri.cri.exec(container, "netstat", "-ltn"), what="it listens")
    with cri.stream(cri.cri.PortForward(pod_sandbox_id=pod[0], port=[8080]).url) as channels:
        assert b"served\n" in channels.read_until(b"served\n", channel=0)


def test_what_containers_of_a_pod_share(cri: CriHost, handler: str) -> None:
    pod = cri.pod("shared", handler, hostname="the-pod")
    first = cri.run(pod, "first", *FOREVER)
    second = cri.run(pod, "second", "sh", "-c", "nc -l -p 9000 -e cat; sleep 100000")
    assert cri.cri.exec(first, "hostname") == cri.cri.exec(second, "cat", "/etc/hostname") == "the-pod\n"
    wait_until(lambda: "9000" in cri.cri.exec(first, "netstat", "-ltn"), what="it listens, for its neighbour too")
    cri.cri.exec(first, "sh", "-c", "echo here >/dev/shm/file")
    assert cri.cri.exec(second, "cat", "/dev/shm/file") == "here\n"
    assert cri.cri.exec(first, "sh", "-c", "cat /proc/1/cmdline | tr '\\0' ' '") == "sleep 100000 "
    assert "sleep" not in cri.cri.exec(second, "sh", "-c", "cat /proc/1/comm")
    cri.cri.StopContainer(container_id=first, timeout=0)
    cri.cri.RemoveContainer(container_id=first)
    assert cri.cri.exec(second, "hostname") == "the-pod\n"


def test_one_process_table_for_the_pod(cri: CriHost, handler: str) -> None:
    options = {"namespace_options": {"network": api.POD, "pid": api.POD, "ipc": api.POD}}
    pod = cri.pod("pids", handler, linux={"security_context": options})
    first = cri.run(pod, "first", *FOREVER, linux={"security_context": options})
    second = cri.run(pod, "second", "sleep", "99999", linux={"security_context": options})
    for container in (first, second):
        cri.wait_seen(container, "sleep 100000", "sleep 99999")


def test_the_process_table_of_another_container(cri: CriHost, sharing: str) -> None:
    """As `kubectl debug --target` asks for it."""
    pod = cri.pod("target", sharing)
    first = cri.run(pod, "first", *FOREVER)
    options = {"namespace_options": {"pid": api.TARGET, "target_id": first}}
    second = cri.run(pod, "second", "sleep", "99999", linux={"security_context": options})
    cri.wait_seen(second, "sleep 100000")


def test_names(cri: CriHost, handler: str) -> None:
    dns = {"servers": ["10.9.8.7"], "searches": ["one.test", "two.test"], "options": ["ndots:3"]}
    pod = cri.pod("names", handler, dns_config=dns)
    container = cri.run(pod, "main", *FOREVER)
    resolv = cri.cri.exec(container, "cat", "/etc/resolv.conf").split("\n")
    assert resolv[:3] == ["search one.test two.test", "nameserver 10.9.8.7", "options ndots:3"] or resolv[:3] == [
        "nameserver 10.9.8.7",
        "search one.test two.test",
        "options ndots:3",
    ]
    assert "localhost" in cri.cri.exec(container, "cat", "/etc/hosts")


def test_host_network(cri: CriHost, sharing: str) -> None:
    pod = cri.pod("host", sharing, host_network=True, hostname="")
    options = {"security_context": {"namespace_options": {"network": api.NODE, "pid": api.CONTAINER}}}
    server = "while :; do echo served | nc -l -p 9123; done"
    container = cri.run(pod, "main", "sh", "-c", server, linux=options)
    wait_until(lambda: _said_at(cri, 9123) == b"served\n", what="the node's loopback reaches it")
    assert cri.cri.exec(container, "hostname").strip() == os.uname().nodename
    assert cri.cri.PodSandboxStatus(pod_sandbox_id=pod[0]).status.network.ip == ""


def test_what_the_application_kernel_refuses(cri: CriHost) -> None:
    """By name, before anything is made."""
    with pytest.raises(grpc.RpcError) as failure:
        cri.pod("host", APPKERNEL, host_network=True, hostname="")
    assert failure.value.code() == grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]
    assert "appkernel sandboxes cannot use the host's network" in failure.value.details()  # type: ignore[attr-defined]
    assert not cri.pods_of_drupe()
    pod = cri.pod("target", APPKERNEL)
    first = cri.run(pod, "first", *FOREVER)
    options = {"namespace_options": {"pid": api.TARGET, "target_id": first}}
    with pytest.raises(grpc.RpcError) as failure:
        cri.run(pod, "second", *FOREVER, linux={"security_context": options})
    assert "cannot share one container's process table" in failure.value.details()  # type: ignore[attr-defined]


def _said_at(cri: CriHost, port: int) -> bytes:
    """What a server on the node's loopback says; nothing while nobody listens."""
    with contextlib.suppress(OSError), cri.connect("127.0.0.1", port) as connection:
        return connection.recv(100)
    return b""


def test_sysctls(cri: CriHost, native: str) -> None:
    sysctls = {"net.ipv4.ip_unprivileged_port_start": "80", "kernel.shm_rmid_forced": "1"}
    pod = cri.pod("sysctls", native, linux={"sysctls": sysctls})
    container = cri.run(pod, "main", *FOREVER)
    for name, value in sysctls.items():
        assert cri.cri.exec(container, "cat", f"/proc/sys/{name.replace('.', '/')}") == f"{value}\n"


def test_what_a_container_is_given(cri: CriHost, handler: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    (tmp_path / "data").write_text("from the host\n")
    pod = cri.pod("given", handler)
    security = {"run_as_user": {"value": 33}, "run_as_group": {"value": 34}, "readonly_rootfs": True}
    container = cri.run(
        pod, "main", *FOREVER,
        env={"NAME": "value"}, working_dir="/tmp",
        mounts=[{"container_path": "/mnt", "host_path": str(tmp_path), "readonly": True}],
        linux={"security_context": security},
    )  # fmt: skip
    assert cri.cri.exec(container, "sh", "-c", "echo $(id -u):$(id -g) $NAME $PWD") == "33:34 value /tmp\n"
    assert cri.cri.exec(container, "cat", "/mnt/data") == "from the host\n"
    for place in ("/mnt/x", "/tmp/x"):  # where the user might write; elsewhere gVisor names that reason first
        done = cri.cri.ExecSync(container_id=container, cmd=["touch", place], timeout=20)
        assert done.exit_code == 1 and b"Read-only file system" in done.stderr, place


@pytest.mark.parametrize("handler", [*NATIVE, "drupe-gvisor", APPKERNEL])
def test_what_a_container_may_not(cri: CriHost, handler: str, tmp_path: Path) -> None:
    """Its filter of system calls holds in sandboxes made before it was known; paths are hidden, or refused. (runsc has
    no filter for what is executed in a container.)"""
    needs_handler(handler)
    profile = tmp_path / "profile.json"
    rule = {"names": ["chmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO"}
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    filtered = {"profile_type": api.SecurityProfile.Localhost, "localhost_ref": str(profile)}
    pod = cri.pod("may-not", handler)
    volume = [{"host_path": str(tmp_path), "container_path": "/tmp/below"}]
    script = ("sh", "-c", "chmod 700 /tmp || echo refused; sleep 100000")
    container = cri.run(pod, "main", *script, linux={"security_context": {"seccomp": filtered}}, mounts=volume)
    wait_until(lambda: "refused" in cri.log("may-not", "main"), what="chmod is refused")
    if handler != "drupe-gvisor":
        assert cri.cri.ExecSync(container_id=container, cmd=["chmod", "700", "/tmp"], timeout=20).exit_code
    assert cri.cri.exec(container, "ls", "/tmp/below") == "profile.json\n"
    hidden = {"security_context": {"masked_paths": ["/etc/passwd"], "readonly_paths": ["/etc"]}}
    if handler == "drupe-gvisor":
        with pytest.raises(grpc.RpcError, match="cannot choose which paths are masked and read-only"):
            cri.run(pod, "hidden", *FOREVER, linux=hidden)
    else:
        other = cri.run(pod, "hidden", *FOREVER, linux=hidden)
        assert cri.cri.exec(other, "sh", "-c", "cat /etc/passwd; touch /etc/new || echo read-only") == "read-only\n"


def test_a_privileged_container(cri: CriHost, native: str, tmp_path: Path) -> None:
    """It may use all devices, mount, and show its mounts to the host where it is asked to."""
    cri.inside("mount", "--bind", "--make-rshared", str(tmp_path), str(tmp_path))
    try:
        (tmp_path / "ours").mkdir()
        (tmp_path / "theirs").mkdir()
        pod = cri.pod("privileged", native, linux={"security_context": {"privileged": True}})
        linux = {"security_context": {"privileged": True, "namespace_options": {"pid": api.CONTAINER}}}
        mounts = [{"host_path": str(tmp_path), "container_path": "/v", "propagation": api.PROPAGATION_BIDIRECTIONAL}]
        container = cri.run(pod, "main", *FOREVER, linux=linux, mounts=mounts)
        devices = {path.name for path in Path("/dev").iterdir() if path.is_char_device() or path.is_block_device()}
        assert devices - {"tty", "console", "ptmx"} <= set(cri.cri.exec(container, "ls", "/dev").split())
        assert "Seccomp:\t0" in cri.cri.exec(container, "grep", "Seccomp:", "/proc/self/status")
        cri.cri.exec(container, "sh", "-c", "mount -t tmpfs none /v/ours && touch /v/ours/seen && echo >/dev/kmsg")
        assert "seen" in cri.inside("ls", str(tmp_path / "ours")).stdout
        cri.inside("mount", "-t", "tmpfs", "none", str(tmp_path / "theirs"))
        cri.inside("touch", str(tmp_path / "theirs/seen"))
        assert cri.cri.exec(container, "ls", "/v/theirs") == "seen\n"
        cri.cri.remove_pod(pod[0])
    finally:
        cri.inside("umount", "--recursive", str(tmp_path))


@pytest.mark.parametrize("handler", ["drupe-gvisor"] + FULL * [APPKERNEL])
def test_limits_of_containers_that_share_a_kernel(cri: CriHost, handler: str) -> None:
    """The pod has the sums, which Status tells; one without a limit lifts it, as the kubelet has it."""
    if handler == "drupe-gvisor":
        needs_program("runsc")
    pod = cri.pod("sums", handler)
    small = {"memory_limit_in_bytes": 100 << 20, "cpu_period": 100000, "cpu_quota": 20000, "cpu_shares": 100}
    first = cri.run(pod, "first", *FOREVER, linux={"resources": small})
    assert _limits(first) == {"memory": 100 << 20, "quota": 20000, "shares": 100}
    second = cri.run(pod, "second", *FOREVER, linux={"resources": small | {"cpu_period": 50000}})
    assert _limits(second) == {"memory": 200 << 20, "quota": 60000, "shares": 200}
    cri.cri.UpdateContainerResources(container_id=second, linux=small | {"memory_limit_in_bytes": 150 << 20})
    told = json.loads(cri.cri.PodSandboxStatus(pod_sandbox_id=pod[0], verbose=True).info["info"])["drupe"]
    assert told["limits"] == "pod" and told["resources"]["memory_bytes"] == 250 << 20
    cri.cri.StopContainer(container_id=first, timeout=0)
    again = cri.run(pod, "again", *FOREVER, linux={"resources": small})
    assert _limits(again)["memory"] == 250 << 20
    cri.run(pod, "free", *FOREVER)
    told = json.loads(cri.cri.PodSandboxStatus(pod_sandbox_id=pod[0], verbose=True).info["info"])["drupe"]
    assert told["resources"]["memory_bytes"] == told["resources"]["cpu_quota_us"] == -1
    with pytest.raises(grpc.RpcError) as failure:
        cri.run(pod, "set", *FOREVER, linux={"resources": {"cpuset_cpus": "0"}})
    refusal = f"cpuset_cpus of a container is not carried out by {handler.removeprefix('drupe-')}"
    assert refusal in failure.value.details()  # type: ignore[attr-defined]


def test_limits_and_their_update(cri: CriHost, handler: str) -> None:
    pod = cri.pod("limits", handler)
    resources = {"memory_limit_in_bytes": 64 << 20, "cpu_period": 100000, "cpu_quota": 50000, "cpu_shares": 512}
    container = cri.run(pod, "main", *FOREVER, linux={"resources": resources})
    assert _limits(container) == {"memory": 64 << 20, "quota": 50000, "shares": 512}
    cri.cri.UpdateContainerResources(container_id=container, linux=resources | {"memory_limit_in_bytes": 96 << 20})
    assert _limits(container)["memory"] == 96 << 20
    shown = cri.cri.ContainerStatus(container_id=container).status.resources.linux
    assert shown.memory_limit_in_bytes == 96 << 20


def _limits(container: str) -> dict[str, int]:
    """What the kernel holds a container to, below the pod's cgroup."""
    files = {"memory": "memory.limit_in_bytes", "quota": "cpu.cfs_quota_us", "shares": "cpu.shares"}
    tree = Path("/sys/fs/cgroup")
    found = {}
    for name, file in files.items():
        places = [*(tree / file.partition(".")[0]).glob(f"{CGROUP[1:]}/**/{file}")]
        limited = {int(place.read_text()) for place in places} - {
            -1,
            2,
            1024,
            9223372036854771712,
        }  # a pause container's are 2
        assert len(limited) == 1, (container, places)
        found[name] = limited.pop()
    return found


def test_memory_that_runs_out(cri: CriHost, native: str) -> None:
    pod = cri.pod("oom", native)
    container = cri.run(
        pod, "main", "sh", "-c", "dd if=/dev/zero of=/dev/null bs=100M count=100",
        linux={"resources": {"memory_limit_in_bytes": 16 << 20, "memory_swap_limit_in_bytes": 16 << 20}},
    )  # fmt: skip
    ended = cri.cri.wait_exited(container)
    assert ended.exit_code == 137
    wait_until(lambda: cri.cri.ContainerStatus(container_id=container).status.reason == "OOMKilled", what="the reason")


def test_statistics(cri: CriHost, handler: str) -> None:
    pod = cri.pod("stats", handler)
    container = cri.run(pod, "main", "sh", "-c", "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done; sleep 100000")
    wait_until(lambda: _cpu(cri, container) > 10_000_000, what="it has used a processor", timeout_s=20.0)
    stats = cri.cri.ContainerStats(container_id=container).stats
    assert stats.memory.usage_bytes.value >= stats.memory.working_set_bytes.value > 0
    whole = cri.cri.PodSandboxStats(pod_sandbox_id=pod[0]).stats.linux
    assert whole.cpu.usage_core_nano_seconds.value >= stats.cpu.usage_core_nano_seconds.value
    assert whole.network.default_interface.name == "eth0" and len(whole.containers) == 1


def _cpu(cri: CriHost, container: str) -> int:
    return int(cri.cri.ContainerStats(container_id=container).stats.cpu.usage_core_nano_seconds.value)


def test_a_program_that_is_not_there(cri: CriHost, handler: str) -> None:
    pod = cri.pod("wrong", handler)
    container = cri.cri.create(pod[0], container_config("main", "/no/such", image=IMAGE), pod[1])
    with pytest.raises(grpc.RpcError) as failure:
        cri.cri.StartContainer(container_id=container)
    assert "/no/such" in failure.value.details()  # type: ignore[attr-defined]
    ended = cri.cri.wait_exited(container)
    assert ended.reason == "StartError" and ended.exit_code == 128
    other = cri.run(pod, "other", *FOREVER)  # the pod is none the worse
    with pytest.raises(grpc.RpcError):
        cri.cri.exec(other, "/no/such")
    assert cri.cri.exec(other, "echo", "fine") == "fine\n"


def test_an_exec_that_takes_too_long(cri: CriHost, handler: str) -> None:
    pod = cri.pod("long", handler)
    container = cri.run(pod, "main", *FOREVER)
    with pytest.raises(grpc.RpcError) as failure:
        cri.cri.ExecSync(container_id=container, cmd=["sleep", "54321"], timeout=1)
    assert failure.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[attr-defined]
    wait_until(lambda: "54321" not in cri.cri.exec(container, "ps", "-o", "args"), what="it is killed")


def test_logs_are_rotated(cri: CriHost, handler: str) -> None:
    pod = cri.pod("logs", handler)
    container = cri.run(pod, "main", "sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done")
    log = cri.logs / "logs/main.log"
    wait_until(lambda: log.exists() and log.stat().st_size > 0, what="a line")
    log.rename(log.with_suffix(".1"))
    cri.cri.ReopenContainerLog(container_id=container)
    wait_until(lambda: log.exists() and log.stat().st_size > 0, what="a line in the new file")
    cri.cri.StopContainer(container_id=container, timeout=0)
    text = log.with_suffix(".1").read_text() + log.read_text()
    numbers = [int(line.split(" ", 3)[3]) for line in text.splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_sandbox_of_each_kind(cri: CriHost, ours: str) -> None:
    pod = cri.pod("sandbox", ours, labels={"a": "b"})
    status = cri.cri.PodSandboxStatus(pod_sandbox_id=pod[0], verbose=True)
    info = json.loads(status.info["info"])
    assert status.status.state == api.SANDBOX_READY and info["runtimeHandler"] == ours
    assert info["drupe"]["sandbox"] == ours.removeprefix("drupe-") and info["config"]["labels"] == {"a": "b"}
    assert cri.cri.PodSandboxStats(pod_sandbox_id=pod[0]).stats.linux.network.default_interface.name == "eth0"
    inside = cri.inside("nsenter", "--net", f"--target={info['pid']}", "ip", "-o", "addr").stdout
    assert status.status.network.ip in inside or ours == "drupe-gvisor"  # whose sentry has taken the address
    cri.cri.StopPodSandbox(pod_sandbox_id=pod[0])
    assert cri.cri.pod_state(pod[0]) == "NOTREADY"
    cri.cri.RemovePodSandbox(pod_sandbox_id=pod[0])
    assert not Path(f"/proc/{info['pid']}").exists()


def test_a_handler_decides(cri: CriHost) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        cri.pod("torn", "drupe-runc", annotations={"drupe.kind": "wasm"})
    assert "handler drupe-runc asks for runc" in failure.value.details()  # type: ignore[attr-defined]
    assert not cri.cri.ListPodSandbox().items
    pod = cri.pod("by-annotation", "drupe", annotations={"drupe.kind": "wasm"})
    info = json.loads(cri.cri.PodSandboxStatus(pod_sandbox_id=pod[0], verbose=True).info["info"])
    assert info["drupe"]["sandbox"] == "wasm"


def test_a_sandbox_that_the_shim_serves(cri: CriHost) -> None:
    """`sandboxer = "shim"`: the same pods by another service."""
    pod = cri.pod("by-shim", "drupe-by-shim", labels={"a": "b"})
    info = json.loads(cri.cri.PodSandboxStatus(pod_sandbox_id=pod[0], verbose=True).info["info"])
    assert info["drupe"]["sandbox"] == "runc" and info["config"]["labels"] == {"a": "b"}
    first, second = (cri.run(pod, name, *FOREVER) for name in ("first", "second"))
    assert cri.cri.exec(first, "hostname") == cri.cri.exec(second, "hostname") == "by-shim\n"
    space = ("readlink", "/proc/self/ns/net")
    assert cri.cri.exec(first, *space) == cri.cri.exec(second, *space)
    assert cri.cri.PodSandboxStats(pod_sandbox_id=pod[0]).stats.linux.network.default_interface.name == "eth0"
    cri.cri.StopPodSandbox(pod_sandbox_id=pod[0])
    assert cri.cri.state(first) == "EXITED" and cri.cri.pod_state(pod[0]) == "NOTREADY"
    cri.cri.RemovePodSandbox(pod_sandbox_id=pod[0])
    assert not Path(f"/proc/{info['pid']}").exists()
    with pytest.raises(grpc.RpcError) as failure:
        cri.pod("torn-by-shim", "drupe-by-shim", annotations={"drupe.kind": "wasm"})
    assert "its shim is that of runc" in failure.value.details()  # type: ignore[attr-defined]


def test_the_sandboxer_refuses_what_is_wrong(cri: CriHost) -> None:
    with grpc.insecure_channel(f"unix://{cri.path('/run/drupe/sandboxer.sock')}") as channel:

        def status(method: str, request: bytes) -> str:
            stub = channel.unary_unary(f"/containerd.services.sandbox.v1.Controller/{method}")
            try:
                stub(request, timeout=20)
            except grpc.RpcError as error:
                assert "\n" not in error.details()  # type: ignore[attr-defined]
                return str(error.code().name)  # type: ignore[attr-defined]
            return "OK"

        config = AnyMessage(type_url="runtime.v1.PodSandboxConfig")
        garbage = AnyMessage(type_url="runtime.v1.PodSandboxConfig", value=b"\xff\xff")
        for options in (AnyMessage(type_url="x"), garbage):
            assert status("Create", create_request("a", options)) == "INVALID_ARGUMENT"
        for name in ("", "a/b", "../x", "a\0", "x" * 5000):
            assert status("Create", create_request(name, config)) == "INVALID_ARGUMENT", name
        below = pod_config("gone", cri.logs / "gone", cgroup_parent=CGROUP).SerializeToString()
        config = AnyMessage(type_url="runtime.v1.PodSandboxConfig", value=below)
        gone = create_request("gone", config, netns_path="/no/such")
        assert status("Create", gone) in ("OK", "NOT_FOUND", "INVALID_ARGUMENT")
        assert status("Start", create_request("gone", AnyMessage())) in ("NOT_FOUND", "INVALID_ARGUMENT")
        for method in ("Start", "Stop", "Wait", "Status", "Platform", "Metrics"):
            assert status(method, create_request("nobody", AnyMessage())) == "NOT_FOUND", method
        assert status("Shutdown", create_request("nobody", AnyMessage())) == "OK"
        assert status("Nope", b"") == "UNIMPLEMENTED"
        assert status("Create", b"\xff" * 100) == "INVALID_ARGUMENT"
        assert status("Create", bytes(5 << 20)) == "RESOURCE_EXHAUSTED"
    assert not cri.pods_of_drupe()


def create_request(name: str, options: AnyMessage, **fields: str) -> bytes:
    """Its first field is the sandbox's id, as in every other request."""
    return ControllerCreateRequest(sandbox_id=name, options=options, **fields).SerializeToString()


@pytest.mark.parametrize("handler", ["drupe-runc", "drupe-by-shim"])
def test_sandboxes_outlive_a_restart_of_containerd(own_host: CriHost, handler: str) -> None:
    cri = own_host
    pod = cri.pod("outlives", handler)
    cri.kill()
    cri.inside("rm", SOCKET)  # it would look as if somebody answered
    cri.start()
    wait_until(cri.ready, what="the CRI is ready", timeout_s=30.0)
    wait_until(lambda: cri.cri.pod_state(pod[0]) == "READY", what="the pod is known again", timeout_s=30.0)


@pytest.mark.parametrize("handler", ["drupe-runc"] + FULL * [APPKERNEL])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_pods_outlive_the_daemon(own_host: CriHost, number: signal.Signals, handler: str) -> None:
    cri = own_host
    pod = cri.pod("outlives", handler)
    script = "trap 'echo bye; exit 7' TERM; echo begun; while :; do sleep 0.05; done"
    lives = cri.run(pod, "lives", "sh", "-c", script)
    ends = cri.run(pod, "ends", "sh", "-c", "echo begun; sleep 3; echo done; exit 5")
    wait_until(lambda: cri.log("outlives", "ends") == cri.log("outlives", "lives") == ["begun"], what="both run")
    cri.end_daemon(number)
    wait_until(lambda: cri.log("outlives", "ends") == ["begun", "done"], what="one ends while there is no daemon")
    cri.start_daemon()
    assert cri.cri.wait_exited(ends).exit_code == 5
    wait_until(lambda: cri.answers(pod[0]), what="containerd has found the sandboxer again", timeout_s=30.0)
    assert cri.cri.state(lives) == "RUNNING" and cri.cri.pod_state(pod[0]) == "READY"
    assert cri.cri.exec(lives, "echo", "in exec") == "in exec\n"
    assert cri.cri.exec(cri.run(pod, "later", *FOREVER), "hostname") == cri.cri.exec(lives, "hostname")
    assert cri.cri.PodSandboxStats(pod_sandbox_id=pod[0]).stats.linux.network.default_interface.name == "eth0"
    cri.cri.StopContainer(container_id=lives, timeout=10)
    assert cri.cri.wait_exited(lives).exit_code == 7 and cri.log("outlives", "lives")[-1] == "bye"
    cri.cri.StopPodSandbox(pod_sandbox_id=pod[0])
    assert cri.cri.pod_state(pod[0]) == "NOTREADY"


def test_a_containerd_that_vanishes_in_the_middle_of_a_call(own_host: CriHost) -> None:
    """What it had asked for is either known to it when it is back, or not there."""
    cri = own_host
    for number, wait_s in enumerate((0.02, 0.06, 0.12)):
        name = f"vanishes-{number}"
        asked = pod_config(name, cri.logs / name, cgroup_parent=CGROUP, host_network=number == 1)
        call = cri.cri.later("RunPodSandbox", config=asked, runtime_handler="drupe-runc")
        time.sleep(wait_s)
        cri.kill()
        with contextlib.suppress(grpc.RpcError, grpc.FutureTimeoutError):
            call.result(timeout=1)
        call.cancel()
        cri.inside("rm", SOCKET)  # it would look as if somebody answered
        cri.start()
        wait_until(cri.ready, what="the CRI is ready", timeout_s=30.0)
    known = {pod.id for pod in cri.cri.ListPodSandbox().items}
    assert {pod.id for pod in cri.pods_of_drupe()} <= known
    cri.cri.remove_all()
    assert not cri.pods_of_drupe()
    pod = cri.pod("afterwards", "drupe-runc")
    assert cri.cri.exec(cri.run(pod, "main", *FOREVER), "echo", "fine") == "fine\n"
