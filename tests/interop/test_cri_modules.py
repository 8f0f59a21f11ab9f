"""WebAssembly through containerd's CRI: an image whose entry is a module or a component, in pods of `drupe-wasm`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from drupe.rpc.cri import api_pb2 as api
from framework.cri import container_config
from framework.cri_host import MODULES, CriHost, opened
from framework.cri_streams import ERROR, STDIN, STDOUT, exit_code

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
HANDLER = "drupe-wasm"


@pytest.fixture(scope="module")
def host(generation: str, tmp_path_factory: pytest.TempPathFactory, busybox: Path) -> Iterator[CriHost]:
    pytest.importorskip("wasmtime")
    directory = tmp_path_factory.mktemp("w")
    for place in opened(directory, generation, busybox):
        place.load_modules()
        yield place


def test_a_pod_of_modules_from_start_to_end(cri: CriHost) -> None:
    pod = cri.pod("life", HANDLER)
    entry = cri.run(pod, "entry", image=MODULES)
    ended = cri.cri.wait_exited(entry)
    assert (ended.exit_code, ended.reason) == (0, "Completed") and cri.log("life", "entry") == ["the entry"]
    container = cri.run(pod, "main", "patient", image=MODULES)
    assert cri.cri.state(container) == "RUNNING"
    done = cri.cri.ExecSync(container_id=container, cmd=["exit", "3"], timeout=20)
    assert done.exit_code == 3
    assert cri.cri.exec(container, "echo", "in", "exec") == "in exec\n"
    with pytest.raises(grpc.RpcError):
        cri.cri.exec(container, "/no/such")
    url = cri.cri.Exec(container_id=container, cmd=["cat"], stdin=True, stdout=True, stderr=True).url
    with cri.stream(url) as channels:
        channels.send(STDIN, b"some words\n")
        assert channels.read_until(b"words\n") == b"some words\n"
    url = cri.cri.Exec(container_id=container, cmd=["seq", "100000"], stdout=True, stderr=True).url
    with cri.stream(url) as channels:
        got = channels.read_all()
    assert len(got[STDOUT]) == 588895 and exit_code(got[ERROR]) == 0
    stats = cri.cri.ContainerStats(container_id=container).stats
    assert stats.memory.usage_bytes.value > 0
    cri.cri.StopContainer(container_id=container, timeout=10)
    assert cri.cri.wait_exited(container).exit_code in (0, 137, 143)
    cri.cri.RemoveContainer(container_id=container)
    cri.cri.StopPodSandbox(pod_sandbox_id=pod[0])
    assert cri.cri.pod_state(pod[0]) == "NOTREADY"


def test_a_component(cri: CriHost) -> None:
    pod = cri.pod("component", HANDLER)
    container = cri.run(pod, "main", "/bin/component.wasm", image=MODULES)
    assert cri.cri.wait_exited(container).exit_code in range(128)


def test_what_a_module_is_given(cri: CriHost, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("from the host\n")
    pod = cri.pod("given", HANDLER)
    limits = {"memory_limit_in_bytes": 256 << 20, "cpu_period": 100000, "cpu_quota": 50000, "cpu_shares": 512}
    container = cri.run(
        pod, "main", "sleep", "1000", image=MODULES, env={"NAME": "value"},
        mounts=[{"container_path": "/mnt", "host_path": str(tmp_path), "readonly": True}],
        linux={"resources": limits},
    )  # fmt: skip
    assert cri.cri.exec(container, "printenv", "NAME") == "value\n"
    assert cri.cri.exec(container, "cat", "/mnt/data") == "from the host\n"
    cri.cri.UpdateContainerResources(container_id=container, linux=limits | {"memory_limit_in_bytes": 300 << 20})
    shown = cri.cri.ContainerStatus(container_id=container).status.resources.linux
    assert shown.memory_limit_in_bytes == 300 << 20


def test_programs_of_linux_are_none(cri: CriHost, tmp_path: Path) -> None:
    """An image without a module is refused in words, and the pod is none the worse."""
    pod = cri.pod("linux", HANDLER)
    container = cri.cri.create(pod[0], container_config("main", "/bin/plain-file", image=MODULES), pod[1])
    with pytest.raises(grpc.RpcError) as failure:
        cri.cri.StartContainer(container_id=container)
    assert "plain-file" in failure.value.details()  # type: ignore[attr-defined]
    assert cri.cri.exec(cri.run(pod, "other", "sleep", "1000", image=MODULES), "echo", "fine") == "fine\n"


def test_host_network(cri: CriHost) -> None:
    pod = cri.pod("host", HANDLER, host_network=True, hostname="")
    options = {"security_context": {"namespace_options": {"network": api.NODE, "pid": api.CONTAINER}}}
    container = cri.run(pod, "main", "sleep", "1000", image=MODULES, linux=options)
    assert cri.cri.exec(container, "echo", "fine") == "fine\n"
