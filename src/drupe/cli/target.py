"""What a Docker-style verb acts on: a container, and with it the pod that `drupe run` or `create` made for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from drupe.errors import NotFound
from drupe.spec.control import Ref
from drupe.spec.status import ContainerStatus, PodStatus

if TYPE_CHECKING:
    from drupe.rpc.client import Client

SINGLE = "io.drupe.single"
MARK = {SINGLE: "true"}  # ties a container and its pod together


class Target(NamedTuple):
    """A container and whether its pod exists only for it."""

    container: ContainerStatus
    single: bool

    @property
    def name(self) -> str:
        return self.container.name or self.container.id


def find(client: Client, ref: str) -> Target:
    """The container called `ref`; a pod of one container answers for it too. Raises NotFound."""
    try:
        status: ContainerStatus = client.call("container.status", Ref(ref=ref))
    except NotFound as error:
        return _of_pod(client, ref, error)
    return Target(status, status.annotations.get(SINGLE) == "true")


def _of_pod(client: Client, ref: str, missing: NotFound) -> Target:
    try:
        pod: PodStatus = client.call("pod.status", Ref(ref=ref))
    except NotFound:
        raise missing from None
    if len(pod.containers) != 1:
        raise NotFound(f"no container {ref}", hint=f"{ref} is a pod: use drupe pod …, or name one of its containers")
    return Target(pod.containers[0], pod.annotations.get(SINGLE) == "true")
