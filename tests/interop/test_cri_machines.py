"""Machines through containerd's CRI: pods of `drupe-vm`. They take seconds each here, so `make test-interop` alone runs
these."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from drupe.rpc.cri import api_pb2 as api
from framework import machines
from framework.containerds import IMAGE
from framework.cri import container_config
from framework.cri_host import CriHost, opened
from framework.cri_streams import ERROR, RESIZE, STDERR, STDIN, STDOUT, exit_code
from framework.leaks import wait_until

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not os.environ.get("DRUPE_TEST_INTEROP"), reason="machines take seconds: make test-interop"),
]
HANDLER = "drupe-vm"
FOREVER = ("sleep", "100000")


@pytest.fixture(scope="module")
def host(generation: str, tmp_path_factory: pytest.TempPathFactory, busybox: Path) -> Iterator[CriHost]:
    machines.needs_machines()
    directory = tmp_path_factory.mktemp("m")
    guest = lambda place: machines.make_root(place.directory / "drupe")  # noqa: E731
    yield from opened(directory, generation, busybox, before=guest)


def test_a_pod_and_its_containers_from_start_to_end(cri: CriHost, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    (tmp_path / "data").write_text("from the host\n")
    pod = cri.pod("life", HANDLER, hostname="machine", dns_config={"servers": ["10.9.8.7"]})
    status = cri.cri.PodSandboxStatus(pod_sandbox_id=pod[0], verbose=True)
    assert status.status.state == api.SANDBOX_READY and status.status.network.ip.startswith("10.88.")
    assert json.loads(status.info["info"])["drupe"]["sandbox"] == "vm"
    script = "trap 'echo bye; exit 7' TERM; echo out; echo err >&2; while :; do sleep 0.05; done"
    limits = {"memory_limit_in_bytes": 64 << 20, "cpu_period": 100000, "cpu_quota": 50000, "cpu_shares": 512}
    container = cri.run(
        pod, "main", "sh", "-c", script, env={"NAME": "value"},
        mounts=[{"container_path": "/mnt", "host_path": str(tmp_path), "readonly": True}],
        linux={"resources": limits},
    )  # fmt: skip
    wait_until(lambda: sorted(cri.log("life", "main")) == ["err", "out"], what="its output")
    assert cri.cri.exec(container, "uname", "-r").strip() != os.uname().release
    assert cri.cri.exec(container, "hostname") == "machine\n"
    assert "10.9.8.7" in cri.cri.exec(container, "cat", "/etc/resolv.conf")
    assert cri.cri.exec(container, "sh", "-c", "echo $NAME; cat /mnt/data") == "value\nfrom the host\n"
    refused = cri.cri.ExecSync(container_id=container, cmd=["touch", "/mnt/x"], timeout=20)
    assert refused.exit_code == 1 and b"Read-only file system" in refused.stderr
    done = cri.cri.ExecSync(container_id=container, cmd=["sh", "-c", "echo 1; echo 2 >&2; exit 3"], timeout=20)
    assert (done.stdout, done.stderr, done.exit_code) == (b"1\n", b"2\n", 3)
    cri.cri.UpdateContainerResources(container_id=container, linux=limits | {"memory_limit_in_bytes": 96 << 20})
    shown = cri.cri.ContainerStatus(container_id=container).status.resources.linux
    assert shown.memory_limit_in_bytes == 96 << 20
    target = {"namespace_options": {"pid": api.TARGET, "target_id": container}}
    with pytest.raises(grpc.RpcError) as failure:
        cri.run(pod, "target", *FOREVER, linux={"security_context": target})
    assert "cannot share one container's process table" in failure.value.details()  # type: ignore[attr-defined]
    neighbour = cri.run(pod, "neighbour", "sh", "-c", "nc -l -p 9000 -e cat; sleep 100000")
    wait_until(lambda: "9000" in cri.cri.exec(container, "netstat", "-ltn"), what="its neighbour listens")
    with cri.stream(cri.cri.PortForward(pod_sandbox_id=pod[0], port=[9000]).url) as channels:
        channels.send(0, b"there and back\n")
        assert b"there and back\n" in channels.read_until(b"back\n", channel=0)
    stats = cri.cri.ContainerStats(container_id=container).stats
    assert stats.memory.usage_bytes.value > 0
    whole = cri.cri.PodSandboxStats(pod_sandbox_id=pod[0]).stats.linux
    assert whole.cpu.usage_core_nano_seconds.value > 0
    assert {"main", "neighbour"} <= {one.attributes.metadata.name for one in whole.containers}
    cri.cri.StopContainer(container_id=container, timeout=10)
    assert cri.cri.wait_exited(container).exit_code == 7 and cri.log("life", "main")[-1] == "bye"
    cri.cri.RemoveContainer(container_id=container)
    assert cri.cri.exec(neighbour, "echo", "fine") == "fine\n"
    cri.cri.StopPodSandbox(pod_sandbox_id=pod[0])
    assert cri.cri.pod_state(pod[0]) == "NOTREADY"
    cri.cri.RemovePodSandbox(pod_sandbox_id=pod[0])
    assert not cri.cri.ListPodSandbox().items


def test_streams_and_what_goes_wrong(cri: CriHost) -> None:
    pod = cri.pod("streams", HANDLER)
    wrong = cri.cri.create(pod[0], container_config("wrong", "/no/such", image=IMAGE), pod[1])
    with pytest.raises(grpc.RpcError) as failure:
        cri.cri.StartContainer(container_id=wrong)
    assert "/no/such" in failure.value.details()  # type: ignore[attr-defined]
    container = cri.run(pod, "main", "sh", "-c", "echo ready; read word; echo got $word; exec sleep 1000", stdin=True)
    with pytest.raises(grpc.RpcError):
        cri.cri.exec(container, "/no/such")
    asked = {"container_id": container, "stdout": True}
    url = cri.cri.Exec(**asked, cmd=["sh", "-c", "cat; echo err >&2; exit 3"], stdin=True, stderr=True).url
    with cri.stream(url) as channels:
        channels.send(STDIN, b"some words\n")
        assert channels.read_until(b"words\n") == b"some words\n"
    url = cri.cri.Exec(**asked, cmd=["sh", "-c", "echo out; echo err >&2; exit 3"], stderr=True).url
    with cri.stream(url) as channels:
        got = channels.read_all()
    assert (got[STDOUT], got[STDERR], exit_code(got[ERROR])) == (b"out\n", b"err\n", 3)
    url = cri.cri.Attach(**asked, stdin=True, stderr=True).url
    with cri.stream(url) as channels:
        channels.send(STDIN, b"word\n")
        channels.read_until(b"got word\n")
    wait_until(lambda: cri.log("streams", "main") == ["ready", "got word"], what="the log")
    url = cri.cri.Exec(container_id=container, cmd=["sh"], tty=True, stdin=True, stdout=True).url
    with cri.stream(url) as channels:
        channels.send(RESIZE, json.dumps({"Width": 91, "Height": 37}).encode())
        channels.send(STDIN, b"test -t 0 && echo ter''minal; until stty size | grep '37 91'; do sleep 0.1; done\n")
        channels.read_until(b"terminal\r\n")
        channels.read_until(b"37 91")
        channels.send(STDIN, b"exit 5\n")
        assert exit_code(channels.read_all()[ERROR]) == 5


def test_what_a_machine_cannot(cri: CriHost) -> None:
    """Refused by name, before anything is made."""
    with pytest.raises(grpc.RpcError) as failure:
        cri.pod("host", HANDLER, host_network=True, hostname="")
    assert failure.value.code() == grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]
    assert "vm sandboxes cannot use the host's network namespace" in failure.value.details()  # type: ignore[attr-defined]
