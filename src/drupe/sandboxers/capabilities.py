"""The words of the capability table: every feature a kind may have, with what it means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from drupe.errors import Unsupported
from drupe.spec.container import Hooks
from drupe.spec.pod import PodSpec

FEATURES: dict[str, str] = {
    "exec": "run a further process in a container",
    "tty": "give a process a terminal, and resize it",
    "attach": "connect to a container's standard streams",
    "multi-container": "hold several containers in one pod",
    "pause": "pause and resume containers and pods",
    "update": "change limits of a running container",
    "stats": "count CPU, memory, I/O and processes",
    "signals": "deliver any signal",
    "host-network": "use the host's network namespace",
    "host-pid": "use the host's PID namespace",
    "host-ipc": "use the host's IPC namespace",
    "shared-pid": "share one PID namespace between the pod's containers",
    "user-namespace": "run under a user namespace of its own",
    "bind-mounts": "mount host directories",
    "devices": "use host devices",
    "hooks": "run OCI hooks",
    "seccomp": "filter system calls",
    "privileged": "run privileged containers",
    "sysctls": "set namespaced sysctls",
    "checkpoint": "checkpoint a container",
    "snapshot": "snapshot, restore and fork pods",
}


def needed(spec: PodSpec) -> set[str]:
    """The features that a pod's spec asks for."""
    return {feature for feature, asked in _asked(spec) if asked}


def _asked(spec: PodSpec) -> Iterable[tuple[str, bool]]:
    containers = spec.containers
    yield "multi-container", len(containers) > 1
    yield "host-network", spec.network.mode == "host"
    yield "host-pid", spec.namespaces.pid == "host"
    yield "shared-pid", spec.namespaces.pid == "pod"
    yield "host-ipc", spec.namespaces.ipc == "host"
    yield "user-namespace", spec.namespaces.user is not None
    yield "sysctls", bool(spec.sysctls)
    yield "tty", any(c.tty for c in containers)
    yield "bind-mounts", any(m.type == "bind" for c in containers for m in c.mounts)
    yield "devices", any(c.devices for c in containers)
    yield "hooks", spec.hooks != Hooks() or any(c.hooks != Hooks() for c in containers)
    yield "seccomp", any(c.security.seccomp not in ("default", "unconfined") for c in containers)
    yield "privileged", any(c.security.privileged for c in containers)


def refuse_unless_able(kind: str, able: Mapping[str, str], features: set[str]) -> None:
    """Raise Unsupported naming the first of `features` that the table denies."""
    for feature in sorted(features):
        said = able.get(feature, "no: not declared")
        if said.startswith("no"):
            raise Unsupported(
                f"{kind} sandboxes cannot {FEATURES[feature]}",
                kind=kind,
                feature=feature,
                cause=said.partition(": ")[2],
                hint="drupe system capabilities shows what each kind can do",
            )
