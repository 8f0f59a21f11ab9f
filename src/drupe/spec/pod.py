"""What a pod is asked to be: the unit of isolation, sharing network, IPC, UTS and (if asked) PID namespaces."""

from __future__ import annotations

from typing import Literal

from drupe.spec.base import Spec
from drupe.spec.container import ContainerSpec, Hooks
from drupe.spec.network import DnsSpec, NetworkSpec, PortMapping
from drupe.spec.resources import Resources


class IdMap(Spec):
    """One range of a user namespace (user_namespaces(7)): ids inside, ids on the host, how many."""

    inside: int
    outside: int
    count: int


class UserNamespace(Spec):
    """Run the pod under its own user namespace. Empty maps: a free range of 65536 host ids is chosen."""

    uids: tuple[IdMap, ...] = ()
    gids: tuple[IdMap, ...] = ()


class Namespaces(Spec):
    """Which namespaces the pod's containers share. pid "container": each its own; "pod": one for all; "host"."""

    ipc: Literal["pod", "host"] = "pod"
    uts: Literal["pod", "host"] = "pod"
    pid: Literal["container", "pod", "host"] = "container"
    user: UserNamespace | None = None


class PodSpec(Spec):
    """A pod (CRI PodSandboxConfig; virtcontainers PodConfig).

    owner: who made it and looks after it ("containerd-…"); "" is whoever uses drupe itself, and only such pods obey its
    verbs. sandbox: a kind ("runc", "gvisor", "wasm"…), "auto" for the strongest that works here, or "" where nobody
    asks: then annotation, image and node decide (docs/choosing.md). cgroup: exactly its own, instead of one below
    cgroup_parent. resources: limits of the pod as a whole. remove: delete when
    its last container ends. timeout_s: kill the pod after so long.
    """

    name: str | None = None
    id: str | None = None
    namespace: str = "default"
    owner: str = ""
    sandbox: str = ""
    hostname: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    network: NetworkSpec = NetworkSpec()
    dns: DnsSpec = DnsSpec()
    hosts: dict[str, str] = {}
    ports: tuple[PortMapping, ...] = ()
    sysctls: dict[str, str] = {}
    namespaces: Namespaces = Namespaces()
    cgroup_parent: str | None = None
    cgroup: str | None = None
    resources: Resources = Resources()
    hooks: Hooks = Hooks()
    containers: tuple[ContainerSpec, ...] = ()
    remove: bool = False
    timeout_s: float | None = None


def root_ids(spec: PodSpec) -> tuple[int, int]:
    """Host uid and gid that are 0 inside the pod."""
    user = spec.namespaces.user
    if user is None:
        return 0, 0
    uid = next((m.outside - m.inside for m in user.uids if m.inside == 0), 0)
    gid = next((m.outside - m.inside for m in user.gids if m.inside == 0), 0)
    return uid, gid
