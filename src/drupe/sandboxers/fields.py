"""Which feature each field of a spec asks for: the table that `needed` walks, so that no field can be forgotten.

A rule is a feature's name (asked for when the field differs from its default), a function from the field's value to
features, `INSIDE` (the field holds structs that have rows of their own), or `Everywhere` with the reason why every kind
honours the field. tests/unit/sandboxers proves that each field has its rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec

from drupe.spec import container, network, pod, resources
from drupe.spec.base import Spec


@dataclass(frozen=True, slots=True)
class Everywhere:
    """Every kind honours the field, because of `why`."""

    why: str


@dataclass(frozen=True, slots=True)
class Inside:
    """The field holds a struct, or a tuple of them."""


INSIDE = Inside()
Rule = str | Callable[[Any], Iterable[str]] | Everywhere | Inside

RUNTIME = Everywhere("done by the runtime, outside of the sandbox")
PROGRAM = Everywhere("what a program is started with; every kind passes it on")
NETNS = Everywhere("the endpoint is made in the pod's network namespace, whatever runs in it")
KEEPER = Everywhere("output goes through the keeper")


def _mount(type_: str) -> Iterable[str]:
    words = {"bind": "bind-mounts", "volume": "volumes", "tmpfs": "tmpfs", "image": "image-mounts"}
    return (words.get(type_, "block-mounts"),)


def _devices(devices: tuple[container.Device, ...]) -> Iterable[str]:
    return {"host-hardware" if one.path.startswith(container.VFIO) else "devices" for one in devices}


def _seccomp(profile: str) -> Iterable[str]:
    if profile == "default":
        return ()
    return ("seccomp-unconfined",) if profile == "unconfined" else ("seccomp",)


def _network(mode: str) -> Iterable[str]:
    if mode == "none":
        return ()
    return ("host-network",) if mode == "host" else ("network",)


def _pid(mode: str) -> Iterable[str]:
    return {"container": (), "pod": ("shared-pid",), "host": ("host-pid",)}[mode]


def _annotations(annotations: dict[str, str]) -> Iterable[str]:
    return ("idle",) if annotations.get(container.IDLE) == "true" else ()


def _containers(containers: tuple[container.ContainerSpec, ...]) -> Iterator[str]:
    for one in containers:
        yield from asked(one)
    if len(containers) > 1:
        yield "multi-container"
        if any(one.resources != resources.Resources() for one in containers):
            yield "container-limits"


RULES: dict[type, dict[str, Rule]] = {
    pod.PodSpec: {
        "name": RUNTIME, "id": RUNTIME, "namespace": RUNTIME, "labels": RUNTIME, "annotations": RUNTIME,
        "owner": RUNTIME,
        "sandbox": Everywhere("the choice of the kind itself"),
        "hostname": "hostname",
        "network": INSIDE,
        "dns": "names",
        "hosts": "names",
        "ports": "ports",
        "sysctls": "sysctls",
        "namespaces": INSIDE,
        "cgroup_parent": Everywhere("the runtime makes the pod's cgroup there; all that a kind starts runs below it"),
        "cgroup": Everywhere("the runtime makes the pod's cgroup; all that a kind starts runs below it"),
        "resources": INSIDE,
        "hooks": "hooks",
        "containers": _containers,
        "remove": RUNTIME,
        "timeout_s": Everywhere("the runtime kills the pod; every kind can kill"),
    },
    pod.Namespaces: {
        "ipc": lambda mode: ("host-ipc",) if mode == "host" else (),
        "uts": lambda mode: ("host-uts",) if mode == "host" else (),
        "pid": _pid,
        "user": "user-namespace",
    },
    network.NetworkSpec: {
        "mode": _network,
        "attachments": NETNS, "cni_config": NETNS, "cni_config_dir": NETNS, "cni_bin_dirs": NETNS, "netns_path": NETNS,
        "policy": "egress-policy",
    },
    container.ContainerSpec: {
        "name": RUNTIME, "id": RUNTIME, "labels": RUNTIME, "annotations": _annotations,
        "image": Everywhere("its platform asks for linux-programs or wasm-modules; see `for_platform`"),
        "rootfs": "rootfs",
        "bundle": lambda bundle: ("rootfs", *bundle.features) if bundle else (),
        "entrypoint": PROGRAM, "argv": PROGRAM, "env": PROGRAM,
        "cwd": "cwd",
        "user": "user",
        "groups": "user",
        "tty": "tty",
        "stdin": KEEPER,
        "read_only": "read-only-root",
        "init": "init",
        "mounts": INSIDE,
        "secrets": "secrets",
        "devices": _devices,
        "rlimits": "rlimits",
        "hooks": "hooks",
        "resources": INSIDE,
        "security": INSIDE,
        "restart": RUNTIME,
        "health": "exec",
        "log": KEEPER,
        "stop_signal": "signals",
        "stop_grace_s": RUNTIME,
        "shm_size_bytes": "shm-size",
        "oom_score_adj": "oom-score",
    },
    container.Mount: {
        "target": Everywhere("part of every mount"), "source": Everywhere("part of every mount"),
        "type": _mount,
        "read_only": "read-only-mounts",
        "propagation": "mount-propagation",
        "options": "mount-options",
        "size_bytes": "tmpfs",
        "mode": "tmpfs",
        "create": RUNTIME,
        "filesystem": Everywhere("part of a block mount"),
        "ids": "user-namespace",
    },
    container.SecuritySpec: {
        "cap_add": "add-capabilities",
        "cap_drop": "drop-capabilities",
        "seccomp": _seccomp,
        "no_new_privileges": "new-privileges",
        "masked_paths": "masked-paths",
        "read_only_paths": "masked-paths",
        "privileged": "privileged",
    },
    container.ExecSpec: {
        "argv": lambda _: ("exec",),
        "env": PROGRAM,
        "cwd": "cwd",
        "user": "user",
        "tty": "tty",
        "rows": Everywhere("part of a terminal"), "cols": Everywhere("part of a terminal"),
        "privileged": "privileged",
        "cap_add": "add-capabilities",
        "no_new_privileges": "new-privileges",
        "timeout_s": Everywhere("the runtime kills the process; every kind can kill"),
    },
    resources.Resources: {
        "cpus": "cpu-limits", "cpu_quota_us": "cpu-limits", "cpu_period_us": "cpu-limits", "cpu_shares": "cpu-limits",
        "cpuset_cpus": "cpu-sets", "cpuset_mems": "cpu-sets",
        "memory_bytes": "memory-limit",
        "memory_swap_bytes": "memory-tuning", "memory_reservation_bytes": "memory-tuning",
        "memory_swappiness": "memory-tuning", "oom_kill_disable": "memory-tuning",
        "pids": "pids-limit",
        "io_weight": "io-limits", "io": "io-limits",
        "hugepages": "huge-pages",
        "unified": "cgroup-files",
    },
}  # fmt: skip

# structs that are asked for as a whole, by the field that holds them
WHOLE: dict[type, str] = {
    pod.IdMap: "user-namespace",
    pod.UserNamespace: "user-namespace",
    network.PortMapping: "ports",
    network.EgressRule: "egress-policy",
    network.EgressPolicy: "egress-policy",
    network.DnsSpec: "names",
    container.Secret: "secrets",
    container.Device: "devices",
    container.Rlimit: "rlimits",
    container.Hook: "hooks",
    container.Hooks: "hooks",
    container.HealthCheck: "exec",
    resources.IoLimit: "io-limits",
}
# and those that no kind sees
UNSEEN: dict[type, str] = {
    network.Attachment: "the endpoint is made in the pod's network namespace, whatever runs in it",
    container.Bundle: "`features` says what it asks for",
    container.RootMount: "the runtime mounts it",
    container.RestartPolicy: "done by the runtime, outside of the sandbox",
    container.LogSpec: "output goes through the keeper",
}


def asked(spec: Spec) -> Iterator[str]:
    """The features that a struct with a row in RULES asks for; some more than once."""
    for name, default, rule in _rows(type(spec)):
        value = getattr(spec, name)
        if callable(rule):
            yield from rule(value)
        elif isinstance(rule, Inside):
            for inner in value if isinstance(value, tuple) else (value,):
                yield from asked(inner)
        elif isinstance(rule, str) and value != default:
            yield rule


@cache
def _rows(kind: type[Spec]) -> list[tuple[str, Any, Rule]]:
    defaults = {field.name: _default(field) for field in msgspec.structs.fields(kind)}
    rules = next(RULES[base] for base in kind.__mro__ if base in RULES).items()  # drupe.Network is a NetworkSpec
    return [(name, defaults[name], rule) for name, rule in rules if not isinstance(rule, Everywhere)]


def _default(field: msgspec.structs.FieldInfo) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default
