"""For each feature that a spec can ask for, a spec that does; and the features that are asked for in other ways."""

from __future__ import annotations

from typing import Any

from drupe.spec import (
    ContainerSpec,
    Device,
    DnsSpec,
    EgressPolicy,
    Hook,
    Hooks,
    IoLimit,
    Mount,
    Namespaces,
    NetworkSpec,
    PortMapping,
    Resources,
    Rlimit,
    Secret,
    SecuritySpec,
    UserNamespace,
)
from drupe.spec.container import IDLE


def _one(**fields: Any) -> dict[str, Any]:
    return {"containers": (ContainerSpec(**fields),)}


def _mount(**fields: Any) -> dict[str, Any]:
    return _one(mounts=(Mount(**{"target": "/a", "type": "tmpfs", **fields}),))


def _limits(**fields: Any) -> dict[str, Any]:
    return _one(resources=Resources(**fields))


def _security(**fields: Any) -> dict[str, Any]:
    return _one(security=SecuritySpec(**fields))


# fields of a PodSpec
SPECS: dict[str, dict[str, Any]] = {
    "rootfs": _one(rootfs="/r"),
    "multi-container": {"containers": (ContainerSpec(name="a"), ContainerSpec(name="b"))},
    "idle": _one(annotations={IDLE: "true"}),
    "init": _one(init=True),
    "tty": _one(tty=True),
    "signals": _one(stop_signal="USR1"),
    "cwd": _one(cwd="/tmp"),
    "user": _one(user="1000"),
    "rlimits": _one(rlimits=(Rlimit(name="nofile", soft=9, hard=9),)),
    "oom-score": _one(oom_score_adj=500),
    "read-only-root": _one(read_only=True),
    "bind-mounts": _mount(type="bind", source="/b"),
    "volumes": _mount(type="volume"),
    "tmpfs": _mount(),
    "image-mounts": _mount(type="image", source="x"),
    "block-mounts": _mount(type="block", source="/b"),
    "read-only-mounts": _mount(read_only=True),
    "mount-propagation": _mount(propagation="rslave"),
    "mount-options": _mount(options=("noexec",)),
    "secrets": _one(secrets=(Secret(name="a", value=b"x"),)),
    "shm-size": _one(shm_size_bytes=1 << 20),
    "devices": _one(devices=(Device(path="/dev/null"),)),
    "host-hardware": _one(devices=(Device(path="vfio=0000:3b:00.0"),)),
    "cpu-limits": _limits(cpus=0.5),
    "cpu-sets": _limits(cpuset_cpus="0"),
    "memory-limit": _limits(memory_bytes=64 << 20),
    "memory-tuning": _limits(memory_reservation_bytes=32 << 20),
    "pids-limit": _limits(pids=50),
    "io-limits": _limits(io=(IoLimit(path="/dev/vda", read_bps=1),)),
    "huge-pages": _limits(hugepages={"2MB": 0}),
    "cgroup-files": _limits(unified={"memory.high": "max"}),
    "container-limits": {"containers": (ContainerSpec(resources=Resources(pids=9)), ContainerSpec())},
    "network": {"network": NetworkSpec()},
    "host-network": {"network": NetworkSpec(mode="host")},
    "ports": {"ports": (PortMapping(container_port=80),)},
    "egress-policy": {"network": NetworkSpec(policy=EgressPolicy(default="deny"))},
    "names": {"dns": DnsSpec(servers=("10.0.0.1",))},
    "hostname": {"hostname": "web"},
    "host-pid": {"namespaces": Namespaces(pid="host")},
    "host-ipc": {"namespaces": Namespaces(ipc="host")},
    "host-uts": {"namespaces": Namespaces(uts="host")},
    "shared-pid": {"namespaces": Namespaces(pid="pod")},
    "user-namespace": {"namespaces": Namespaces(user=UserNamespace())},
    "sysctls": {"sysctls": {"net.ipv4.ip_forward": "1"}},
    "hooks": {"hooks": Hooks(prestart=(Hook(path="/bin/true"),))},
    "add-capabilities": _security(cap_add=("SYS_TIME",)),
    "drop-capabilities": _security(cap_drop=("ALL",)),
    "seccomp": _security(seccomp="/profile.json"),
    "seccomp-unconfined": _security(seccomp="unconfined"),
    "new-privileges": _security(no_new_privileges=False),
    "masked-paths": _security(masked_paths=()),
    "privileged": _security(privileged=True),
}
# features of calls on what runs, and of an image's platform
CALLS = ("exec", "attach", "pause", "update", "stats", "processes", "files", "checkpoint", "snapshot", "network-change")
PLATFORMS = {"linux-programs": "linux", "wasm-modules": "wasi"}
