"""What a client may not say of a pod: fields by which the daemon's other faces make pods for their callers."""

from __future__ import annotations

from drupe.errors import InvalidArgument
from drupe.spec.container import ContainerSpec
from drupe.spec.pod import PodSpec


def client_pod(spec: PodSpec) -> PodSpec:
    """The spec, if a client may ask for it. A pod with an owner would be hidden from its own maker, and a cgroup that
    is not ours would be removed with the pod. Raises InvalidArgument."""
    for field in ("owner", "cgroup"):
        if getattr(spec, field):
            raise _reserved(f"the pod's `{field}`")
    for container in spec.containers:
        client_container(container)
    return spec


def client_container(spec: ContainerSpec) -> ContainerSpec:
    """The same of a container. A bundle's `features` are taken as true, and the node's policy rests on them. Raises
    InvalidArgument."""
    if spec.bundle is not None:
        raise _reserved("the container's `bundle`")
    return spec


def _reserved(what: str) -> InvalidArgument:
    return InvalidArgument(
        f"{what} is not for clients", hint="bundles are run by drupe-oci and by containerd's shim, see docs/oci.md"
    )
