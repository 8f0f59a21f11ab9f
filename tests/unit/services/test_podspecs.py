"""The CRI's words for a pod in ours: honoured, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from drupe.errors import InvalidArgument, Unsupported
from drupe.rpc.containerd import sandbox_pb2
from drupe.rpc.cri import api_pb2 as cri
from drupe.services.containerd.handlers import kind_asked
from drupe.services.containerd.podspecs import cgroup_path, pod_spec
from drupe.spec.pod import IdMap, PodSpec, UserNamespace


def spec_of(netns: str = "/run/netns/x", **fields: object) -> PodSpec:
    config = cri.PodSandboxConfig(metadata={"name": "a", "namespace": "b", "uid": "c"}, **fields)  # type: ignore[arg-type]
    return pod_spec("f" * 64, config, owner="containerd", namespace="k8s.io", netns=netns, kind="runc")


def test_networks_and_namespaces() -> None:
    assert spec_of().network.netns_path == "/run/netns/x" and spec_of().namespaces.pid == "pod"
    node = {"security_context": {"namespace_options": {"network": cri.NODE, "pid": cri.CONTAINER, "ipc": cri.NODE}}}
    host = spec_of("", linux=node)
    assert host.network.mode == "host" and (host.namespaces.uts, host.namespaces.ipc) == ("host", "host")
    assert host.namespaces.pid == "container" and spec_of("").network.mode == "none"
    with pytest.raises(InvalidArgument, match="process table"):
        spec_of(linux={"security_context": {"namespace_options": {"pid": cri.TARGET}}})


def test_limits_are_the_kubelets_below_a_cgroup_parent() -> None:
    resources = {"memory_limit_in_bytes": 1 << 20, "cpu_quota": 1000}
    overhead = {"memory_limit_in_bytes": 1 << 10}
    alone = spec_of(linux={"resources": resources, "overhead": overhead}).resources
    assert alone.memory_bytes == (1 << 20) + (1 << 10) and alone.cpu_quota_us == 1000
    below = spec_of(linux={"resources": resources, "cgroup_parent": "kubepods-pod1.slice"})
    assert below.resources.memory_bytes is None and below.cgroup_parent == "/kubepods.slice/kubepods-pod1.slice"
    assert cgroup_path("/kubepods/pod1") == "/kubepods/pod1"
    with pytest.raises(InvalidArgument, match="cgroup parent"):
        cgroup_path("a--b.slice")


def test_a_user_namespace() -> None:
    ids = [{"host_id": 1000, "container_id": 0, "length": 10}]

    def users(**options: Any) -> UserNamespace | None:
        options = {"namespace_options": {"userns_options": options}}
        return spec_of(linux={"security_context": options}).namespaces.user

    own = (IdMap(inside=0, outside=1000, count=10),)
    assert users(mode=cri.POD, uids=ids, gids=ids) == UserNamespace(uids=own, gids=own)
    assert users(mode=cri.NODE) is users(mode=cri.POD) is None
    with pytest.raises(InvalidArgument, match="both uids and gids"):
        users(mode=cri.POD, uids=ids)


def test_what_is_refused() -> None:
    with pytest.raises(Unsupported, match="Windows"):
        spec_of(windows={})


def test_who_says_the_kind() -> None:
    def sandbox(handler: str, runtime: str = "io.containerd.drupe.v2") -> sandbox_pb2.Sandbox:
        made = sandbox_pb2.Sandbox(runtime={"name": runtime})
        made.extensions["metadata"].value = f'{{"Metadata": {{"RuntimeHandler": "{handler}"}}}}'.encode()
        return made

    assert kind_asked(sandbox("drupe"), {"drupe.kind": "wasm"}) == ""  # the choice reads the annotation itself
    assert kind_asked(sandbox("drupe-gvisor"), {}) == kind_asked(sandbox("x", "io.containerd.drupe-gvisor.v2"), {})
    with pytest.raises(InvalidArgument, match="not clear"):
        kind_asked(sandbox("drupe-gvisor"), {"drupe.kind": "runc"})
    with pytest.raises(InvalidArgument, match="unknown sandbox kind"):
        kind_asked(sandbox("drupe-none"), {})
    options = sandbox("drupe")
    options.runtime.options.type_url = "runtimeoptions.v1.Options"
    options.runtime.options.value = b"\x1a\x0dkind = 'wasm'"
    assert kind_asked(options, {}) == "wasm"
