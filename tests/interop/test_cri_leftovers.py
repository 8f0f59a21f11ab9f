"""Sandboxes that containerd knows nothing of, and those that it knows while our daemon looks for such."""

from __future__ import annotations

import os
import signal
import time

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from drupe.rpc.client import Client
from drupe.rpc.containerd.sandbox_controller_pb2 import ControllerCreateRequest
from drupe.rpc.containerd.sandbox_shim_pb2 import CreateSandboxRequest, StartSandboxRequest
from drupe.rpc.ttrpc.envelope import Code
from drupe.services.containerd.shimsandboxes import NAME
from drupe.spec.containerd import ShimStart
from framework.containerds import SOCKET
from framework.cri import pod_config
from framework.cri_host import CGROUP, CriHost
from framework.leaks import wait_until
from framework.raw_ttrpc import Raw

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
FOREVER = ("sleep", "100000")
FULL = bool(os.environ.get("DRUPE_TEST_INTEROP"))


@pytest.mark.parametrize("by", ["sandboxer"] + FULL * ["shim"])
def test_a_sandbox_that_containerd_does_not_know_goes(own_host: CriHost, by: str) -> None:
    """As it is left when the daemon dies before it has answered for it, or a shim before it could ask for its end."""
    cri = own_host
    pod = cri.pod("known", "drupe-runc" if by == "sandboxer" else "drupe-by-shim")
    main = cri.run(pod, "main", *FOREVER)
    config = pod_config("lost", cri.logs / "lost", cgroup_parent=CGROUP, host_network=True).SerializeToString()
    options = AnyMessage(type_url="runtime.v1.PodSandboxConfig", value=config)
    (make_by_sandboxer if by == "sandboxer" else make_by_shim)(cri, "lost", options)
    assert {each.id for each in cri.pods_of_drupe()} == {pod[0], "lost"}
    cri.end_daemon(signal.SIGKILL)
    cri.start_daemon()
    wait_until(lambda: cri.answers(pod[0]), what="containerd has found the daemon again", timeout_s=120.0)
    wait_until(
        lambda: {each.id for each in cri.pods_of_drupe()} == {pod[0]}, what="it is gone", timeout_s=120.0,
    )  # fmt: skip
    assert cri.cri.exec(main, "echo", "fine") == "fine\n"
    assert "knows nothing of it" in cri.drupe("system", "info").stdout


def test_a_daemon_that_looks_all_the_time_removes_nothing_that_containerd_knows(own_host: CriHost) -> None:
    """While pods are made, and while a containerd that was killed has not begun to wait for them again."""
    cri = own_host
    looks = "import sys; from drupe.cli.main import main; from drupe.services.containerd import leftovers; "
    looks += "leftovers.LOOK_EVERY_S = leftovers.FIRST_LOOK_S = 0.01; sys.exit(main())"
    pods = [cri.pod("known", "drupe-runc")]
    cri.program = ("-c", looks)
    cri.end_daemon(signal.SIGTERM)
    cri.start_daemon()
    wait_until(lambda: cri.answers(pods[0][0]), what="containerd has found the daemon again", timeout_s=120.0)
    pods += [cri.pod(f"by-{handler}", handler) for handler in ("drupe-runc", "drupe-by-shim")]
    mains = [cri.run(pod, "main", *FOREVER) for pod in pods]
    cri.cri.StopPodSandbox(pod_sandbox_id=pods[0][0])
    for _ in range(2):
        cri.kill()
        cri.inside("rm", SOCKET)  # it would look as if somebody answered
        time.sleep(0.5)
        cri.start()
        wait_until(cri.ready, what="the CRI is ready", timeout_s=120.0)
    for pod, main in list(zip(pods, mains, strict=True))[1:]:
        wait_until(lambda pod=pod: cri.answers(pod[0]), what="it is known again", timeout_s=120.0)  # type: ignore[misc]
        assert cri.cri.exec(main, "echo", "fine") == "fine\n"
    assert {each.id for each in cri.pods_of_drupe()} == {pod[0] for pod in pods}
    assert "knows nothing of it" not in cri.drupe("system", "info").stdout


def make_by_sandboxer(cri: CriHost, name: str, options: AnyMessage) -> None:
    """As containerd does it, but that it is not written down in its store."""
    with grpc.insecure_channel(f"unix://{cri.path('/run/drupe/sandboxer.sock')}") as channel:
        for method in ("Create", "Start"):
            call = channel.unary_unary(f"/containerd.services.sandbox.v1.Controller/{method}")
            request = ControllerCreateRequest(sandbox_id=name, options=options).SerializeToString()
            call(request, timeout=30, metadata=[("containerd-namespace", "k8s.io")])


def make_by_shim(cri: CriHost, name: str, options: AnyMessage) -> None:
    """The same at the door of a shim."""
    ask = ShimStart(
        name="containerd-shim-drupe-runc-v2", id=name, namespace="k8s.io", grpc=SOCKET, ttrpc=f"{SOCKET}.ttrpc"
    )
    with Client.connect(cri.path("/run/drupe/drupe.sock")) as client:
        address = client.call("containerd.start", ask, timeout_s=30).address.removeprefix("unix://")
    with Raw(cri.path(address)) as shim:
        for method, request in (("CreateSandbox", CreateSandboxRequest), ("StartSandbox", StartSandboxRequest)):
            fields = {"options": options} if request is CreateSandboxRequest else {}
            code, answer, _ = shim.call(method, request(sandbox_id=name, **fields), service=NAME)
            assert code == Code.OK, answer
