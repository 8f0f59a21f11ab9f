"""The CRI of containerd 1.6 and 1.7, which know no sandboxer: our shim is their runtime, and their pods have a first
container of their own. What runc's shim does is what ours must do."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from drupe.rpc.cri import api_pb2 as api
from framework import machines
from framework.containerds import IMAGE, SOCKET
from framework.cri import container_config
from framework.cri_host import MODULES, CriHost, needs_handler, opened
from framework.cri_streams import ERROR, STDERR, STDIN, STDOUT, exit_code
from framework.leaks import wait_until

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
FOREVER = ("sleep", "100000")
FULL = bool(os.environ.get("DRUPE_TEST_INTEROP"))
SHARING = ["runc", "drupe-runc", "drupe-gvisor"] if FULL else ["drupe-runc"]
HANDLERS = SHARING + FULL * ["drupe-appkernel"]


GENERATIONS = ["1.6", "1.7"] if FULL else ["1.6"]


@pytest.fixture(scope="module", params=GENERATIONS)
def generation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def host(generation: str, tmp_path_factory: pytest.TempPathFactory, busybox: Path) -> Iterator[CriHost]:
    """With guest images, where there are any."""
    guest = lambda place: machines.make_root(place.directory / "drupe") if machines.built().exists() else None  # noqa: E731
    yield from opened(tmp_path_factory.mktemp("g"), generation, busybox, before=guest)


@pytest.fixture(params=HANDLERS)
def handler(request: pytest.FixtureRequest) -> str:
    return needs_handler(request.param)


def test_a_pod_from_start_to_end(cri: CriHost, handler: str) -> None:
    pod = cri.pod("life", handler, labels={"a": "b"}, hostname="the-pod")
    status = cri.cri.PodSandboxStatus(pod_sandbox_id=pod[0]).status
    assert status.state == api.SANDBOX_READY and status.network.ip.startswith("10.88.")
    script = "trap 'echo bye; exit 7' TERM; echo out; echo err >&2; while :; do sleep 0.05; done"
    limits = {"memory_limit_in_bytes": 100 << 20, "cpu_period": 100000, "cpu_quota": 50000, "cpu_shares": 512}
    container = cri.run(pod, "main", "sh", "-c", script, linux={"resources": limits})
    wait_until(lambda: sorted(cri.log("life", "main")) == ["err", "out"], what="its output")
    done = cri.cri.ExecSync(container_id=container, cmd=["sh", "-c", "echo 1; echo 2 >&2; exit 3"], timeout=20)
    assert (done.stdout, done.stderr, done.exit_code) == (b"1\n", b"2\n", 3)
    other = cri.run(pod, "other", "sh", "-c", "nc -l -p 9000 -e cat; sleep 100000")
    assert cri.cri.exec(container, "hostname") == cri.cri.exec(other, "hostname") == "the-pod\n"
    wait_until(lambda: "9000" in cri.cri.exec(container, "netstat", "-ltn"), what="it listens, for its neighbour too")
    cri.cri.exec(container, "sh", "-c", "echo here >/dev/shm/file")
    assert cri.cri.exec(other, "cat", "/dev/shm/file") == "here\n"
    cri.cri.UpdateContainerResources(container_id=container, linux=limits | {"memory_limit_in_bytes": 120 << 20})
    stats = cri.cri.ContainerStats(container_id=container).stats
    assert stats.memory.working_set_bytes.value > 0
    wrong = cri.cri.create(pod[0], container_config("wrong", "/no/such", image=IMAGE), pod[1])
    with pytest.raises(grpc.RpcError) as failure:
        cri.cri.StartContainer(container_id=wrong)
    assert "/no/such" in failure.value.details()  # type: ignore[attr-defined]
    cri.cri.StopContainer(container_id=container, timeout=10)
    ended = cri.cri.wait_exited(container)
    assert ended.exit_code == 7 and ended.reason == "Error"
    wait_until(lambda: cri.log("life", "main")[-1] == "bye", what="its last word")
    cri.cri.RemoveContainer(container_id=container)
    cri.cri.StopPodSandbox(pod_sandbox_id=pod[0])
    assert cri.cri.pod_state(pod[0]) == "NOTREADY"
    cri.cri.RemovePodSandbox(pod_sandbox_id=pod[0])
    assert not cri.cri.ListPodSandbox().items


def test_streams(cri: CriHost, handler: str) -> None:
    pod = cri.pod("streams", handler)
    container = cri.run(pod, "main", "sh", "-c", "echo ready; read word; echo got $word; exec sleep 100000", stdin=True)
    asked = {"container_id": container, "stdout": True, "stderr": True}
    url = cri.cri.Exec(**asked, cmd=["sh", "-c", "cat; echo err >&2; exit 3"], stdin=True).url
    with cri.stream(url) as channels:
        channels.send(STDIN, b"some words\n")
        assert channels.read_until(b"words\n") == b"some words\n"
    url = cri.cri.Exec(**asked, cmd=["sh", "-c", "echo out; echo err >&2; exit 3"]).url
    with cri.stream(url) as channels:
        got = channels.read_all()
    assert (got[STDOUT], got[STDERR], exit_code(got[ERROR])) == (b"out\n", b"err\n", 3)
    with cri.stream(cri.cri.Attach(**asked, stdin=True).url) as channels:
        channels.send(STDIN, b"word\n")
        channels.read_until(b"got word\n")
    url = cri.cri.Exec(container_id=container, cmd=["sh"], tty=True, stdin=True, stdout=True).url
    with cri.stream(url) as channels:
        channels.send(STDIN, b"test -t 0 && echo ter''minal; exit 5\n")
        channels.read_until(b"terminal\r\n")
        assert exit_code(channels.read_all()[ERROR]) == 5


@pytest.mark.parametrize("handler", SHARING)  # a pause container's table is joined as any other container's
def test_one_process_table_for_the_pod(cri: CriHost, handler: str) -> None:
    options = {"namespace_options": {"network": api.POD, "pid": api.POD, "ipc": api.POD}}
    pod = cri.pod("pids", handler, linux={"security_context": options})
    first = cri.run(pod, "first", *FOREVER, linux={"security_context": options})
    second = cri.run(pod, "second", "sleep", "99999", linux={"security_context": options})
    for container in (first, second):
        cri.wait_seen(container, "sleep 100000", "sleep 99999")


@pytest.mark.parametrize("handler", SHARING)
def test_on_the_nodes_network(cri: CriHost, handler: str) -> None:
    pod = cri.pod("host", handler, host_network=True, hostname="")
    options = {"security_context": {"namespace_options": {"network": api.NODE, "pid": api.CONTAINER}}}
    container = cri.run(pod, "main", *FOREVER, linux=options)
    assert cri.cri.exec(container, "hostname").strip() == os.uname().nodename
    info = json.loads(cri.cri.PodSandboxStatus(pod_sandbox_id=pod[0], verbose=True).info["info"])
    assert info["pid"] > 0


@pytest.mark.skipif(not FULL, reason="each has a host of its own: make test-interop")
def test_pods_outlive_restarts_of_both(own_host: CriHost, handler: str) -> None:
    cri = own_host
    pod = cri.pod("outlives", handler)
    lives = cri.run(pod, "lives", "sh", "-c", "trap 'exit 7' TERM; echo begun; while :; do sleep 0.05; done")
    ends = cri.run(pod, "ends", "sh", "-c", "echo begun; sleep 2; echo done; exit 5")
    wait_until(lambda: cri.log("outlives", "ends") == cri.log("outlives", "lives") == ["begun"], what="both run")
    cri.kill()
    cri.inside("rm", SOCKET)  # it would look as if somebody answered
    cri.start()
    wait_until(cri.ready, what="the CRI is ready", timeout_s=30.0)
    assert cri.cri.state(lives) == "RUNNING" and cri.cri.pod_state(pod[0]) == "READY"
    cri.end_daemon(signal.SIGKILL)
    cri.start_daemon()
    assert cri.cri.exec(lives, "echo", "in exec") == "in exec\n"
    server = cri.run(pod, "server", "sh", "-c", "while :; do echo served | nc -l -p 8080; done")
    wait_until(lambda: "8080" in cri.cri.exec(server, "netstat", "-ltn"), what="it listens")
    with cri.stream(cri.cri.PortForward(pod_sandbox_id=pod[0], port=[8080]).url) as channels:
        assert b"served\n" in channels.read_until(b"served\n", channel=0)
    assert cri.cri.wait_exited(ends).exit_code == 5 and cri.log("outlives", "ends") == ["begun", "done"]
    cri.cri.StopContainer(container_id=lives, timeout=10)
    assert cri.cri.wait_exited(lives).exit_code == 7


@pytest.mark.skipif(not FULL, reason="what shows the least: make test-interop")
def test_modules(cri: CriHost) -> None:
    """Their pod's first container, containerd's own of Linux, is something that does nothing."""
    needs_handler("drupe-wasm")
    cri.load_modules()
    pod = cri.pod("modules", "drupe-wasm")
    entry = cri.run(pod, "entry", image=MODULES)
    assert cri.cri.wait_exited(entry).exit_code == 0 and cri.log("modules", "entry") == ["the entry"]
    container = cri.run(pod, "main", "sleep", "1000", image=MODULES, env={"NAME": "value"})
    assert cri.cri.exec(container, "printenv", "NAME") == "value\n"
    assert cri.cri.ExecSync(container_id=container, cmd=["exit", "3"], timeout=20).exit_code == 3
    url = cri.cri.Exec(container_id=container, cmd=["cat"], stdin=True, stdout=True, stderr=True).url
    with cri.stream(url) as channels:
        channels.send(STDIN, b"some words\n")
        assert channels.read_until(b"words\n") == b"some words\n"
    assert cri.cri.ContainerStats(container_id=container).stats.memory.working_set_bytes.value > 0
    cri.cri.StopContainer(container_id=container, timeout=0)
    cri.cri.remove_pod(pod[0])
    assert not cri.cri.ListPodSandbox().items


@pytest.mark.skipif(not FULL, reason="machines take seconds: make test-interop")
def test_a_machine(cri: CriHost) -> None:
    """The pod's first container runs in it, and ends with it."""
    machines.needs_machines()
    pod = cri.pod("machine", "drupe-vm", hostname="machine")
    script = "trap 'echo bye; exit 7' TERM; echo out; while :; do sleep 0.05; done"
    container = cri.run(pod, "main", "sh", "-c", script)
    wait_until(lambda: cri.log("machine", "main") == ["out"], what="its output", timeout_s=60.0)
    assert cri.cri.exec(container, "uname", "-r", timeout=60).strip() != os.uname().release
    other = cri.run(pod, "other", *FOREVER)
    assert cri.cri.exec(other, "hostname", timeout=60) == cri.cri.exec(container, "hostname", timeout=60) == "machine\n"
    assert cri.cri.ContainerStats(container_id=container).stats.memory.working_set_bytes.value > 0
    cri.cri.StopContainer(container_id=container, timeout=30)
    assert cri.cri.wait_exited(container).exit_code == 7
    wait_until(lambda: cri.log("machine", "main")[-1] == "bye", what="its last word", timeout_s=60.0)
    cri.cri.remove_pod(pod[0])
    assert not cri.pods_of_drupe()
