"""What clients may not say of a pod is refused before anything is made."""

from __future__ import annotations

import pytest

from drupe.errors import InvalidArgument
from drupe.services.control.outside import client_container, client_pod
from drupe.spec.container import Bundle, ContainerSpec
from drupe.spec.pod import PodSpec

BUNDLED = ContainerSpec(bundle=Bundle(path="/b"))


@pytest.mark.parametrize(
    "spec", [PodSpec(owner="containerd-x"), PodSpec(cgroup="/other"), PodSpec(containers=(BUNDLED,))]
)
def test_what_other_faces_say_is_refused_from_clients(spec: PodSpec) -> None:
    with pytest.raises(InvalidArgument, match="not for clients"):
        client_pod(spec)


def test_a_bundle_is_refused_in_a_pod_that_is_there() -> None:
    with pytest.raises(InvalidArgument, match="bundle"):
        client_container(BUNDLED)


def test_what_clients_do_say_is_let_through() -> None:
    spec = PodSpec(namespace="n", cgroup_parent="/a", containers=(ContainerSpec(image="busybox"),))
    assert client_pod(spec) is spec
