"""From what was asked to what will be made: every check that needs no making, done once, before anything exists."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from drupe.errors import AlreadyExists, InvalidArgument, NotFound
from drupe.oci.signals import parse_signal
from drupe.resources.cgroups.base import check_path
from drupe.runtime.names import new_id, new_name
from drupe.spec.base import check_id, check_name
from drupe.spec.container import ContainerSpec, Mount
from drupe.spec.network import PortMapping
from drupe.spec.pod import PodSpec

_RESERVED = ("hostname", "hosts", "ns", "pause", "shm")  # what a pod's directory holds beside its containers


def plan_pod(spec: PodSpec, *, taken: Callable[[str], bool]) -> PodSpec:
    """The spec with names and ids filled in. Raises InvalidArgument, NotFound, AlreadyExists."""
    name = free_name(spec.name, taken)
    check_timeout(spec.timeout_s)
    check_ports(spec.ports)
    _check_hostname(spec)
    if spec.cgroup_parent is not None and spec.cgroup_parent != "/":
        check_path(spec.cgroup_parent.rstrip("/"))
    if spec.cgroup is not None:
        check_path(spec.cgroup)
    spec = msgspec.structs.replace(spec, id=spec.id or new_id(), name=name)
    check_id(str(spec.id), "pod")
    check_name(spec.namespace, "namespace")
    containers: list[ContainerSpec] = []
    for container in spec.containers:
        only = len(spec.containers) == 1
        containers.append(plan_container(container, pod_name=name if only else "", others=containers))
    return msgspec.structs.replace(spec, containers=tuple(containers))


def plan_container(spec: ContainerSpec, *, pod_name: str, others: Iterable[ContainerSpec]) -> ContainerSpec:
    """A container's spec with name and id filled in; `others` are those of its pod."""
    if [bool(spec.image), bool(spec.rootfs), spec.bundle is not None].count(True) != 1:
        raise InvalidArgument("a container needs an image or a rootfs, and not both")
    if spec.rootfs and not Path(spec.rootfs).is_dir():
        raise NotFound(f"rootfs {spec.rootfs!r} is not a directory")
    used = {other.name for other in others}
    name = spec.name or pod_name or _unused_name(used)
    if check_name(name, "container") in used:
        raise AlreadyExists(f"the pod has a container named {name!r} already")
    _check_targets(spec)
    given = spec.bundle is not None and spec.bundle.given
    for mount in spec.mounts:
        _check_mount(mount, given=given)
    if spec.stop_signal is not None:
        parse_signal(spec.stop_signal)
    if spec.id in _RESERVED:
        raise InvalidArgument(f"container id {spec.id!r} is taken by the runtime itself", hint="choose another id")
    return msgspec.structs.replace(spec, id=check_id(spec.id or new_id(), "container"), name=name)


def check_timeout(timeout_s: float | None) -> None:
    """A time limit is more than no time, and less than for ever."""
    if timeout_s is not None and not 0 < timeout_s < math.inf:
        raise InvalidArgument(f"bad timeout {timeout_s:g} s", hint="give more than 0 seconds, or none for no limit")


def check_ports(ports: tuple[PortMapping, ...]) -> None:
    """Legal numbers, and no host port asked for twice."""
    seen: set[tuple[str, int, str]] = set()
    for port in ports:
        if not 1 <= port.container_port <= 65535 or not 0 <= port.host_port <= 65535:
            raise InvalidArgument(f"bad port {port.host_port}:{port.container_port}", hint="ports are 1 to 65535")
        key = (port.host_ip, port.host_port, port.protocol)
        if port.host_port and key in seen:
            raise InvalidArgument(f"host port {port.host_port}/{port.protocol} is published twice")
        seen.add(key)


def _check_targets(spec: ContainerSpec) -> None:
    seen: set[str] = set()
    for mount in spec.mounts:
        target = os.path.normpath(mount.target)
        if target in seen:
            raise InvalidArgument(f"two mounts at {target!r}")
        seen.add(target)


def _check_mount(mount: Mount, *, given: bool) -> None:
    if not mount.target.startswith("/"):
        raise InvalidArgument(f"mount target {mount.target!r} is not an absolute path")
    if os.path.normpath(mount.target) == "/":
        raise InvalidArgument("a mount may not cover the container's root")
    if mount.type == "bind" and not given:
        _check_bind(mount)
    elif mount.type == "volume" and mount.source:
        check_name(mount.source, "volume")
    elif mount.type == "block":
        if not mount.source.startswith("/"):
            raise InvalidArgument(f"block mount at {mount.target!r}: {mount.source!r} is not an absolute path")
        if not Path(mount.source).exists():
            raise NotFound(f"block mount at {mount.target!r}: {mount.source!r} does not exist")
    elif mount.type == "image" and not mount.source:
        raise InvalidArgument(f"image mount at {mount.target!r} names no image")


def _check_bind(mount: Mount) -> None:
    source = Path(mount.source)
    if not source.is_absolute():
        raise InvalidArgument(f"bind source {mount.source!r} is not an absolute path", hint="volumes have plain names")
    if source.exists():
        return
    if not mount.create:
        raise NotFound(f"bind source {mount.source!r} does not exist", hint="create it, or use a volume")


def _check_hostname(spec: PodSpec) -> None:
    name = spec.hostname
    if name is None:
        return
    labels = name.split(".")
    legal = all(part and part.replace("-", "a").isalnum() and part.isascii() for part in labels)
    if not legal or len(name) > 64:
        raise InvalidArgument(f"bad hostname {name!r}", hint="letters, digits, '-' and '.', at most 64 characters")


def joins_host_network(spec: PodSpec) -> bool:
    """Whether a pod that joins an existing network namespace joins the host's: then it is not isolated from it."""
    if spec.network.mode != "path":
        return False
    with suppress(OSError, ValueError):  # ValueError: a NUL in it
        return Path(spec.network.netns_path).samefile("/proc/self/ns/net")
    return False


def free_name(asked: str | None, taken: Callable[[str], bool]) -> str:
    """The name for a pod: the one asked for, or a new one. Raises InvalidArgument, AlreadyExists."""
    if asked is not None:
        if taken(check_name(asked, "pod")):
            raise AlreadyExists(f"a pod named {asked!r} exists", hint=f"remove it (drupe rm {asked}) or choose another")
        return asked
    name = new_name()
    while taken(name):
        name = f"{new_name()}_{new_id()[:4]}"
    return name


def _unused_name(used: set[str | None]) -> str:
    name = new_name()
    while name in used:
        name = new_name()
    return name
