"""What a bundle asks for as a pod, in the words of our own specs: for every face that makes pods of bundles."""

from __future__ import annotations

from typing import Literal

from drupe.errors import InvalidArgument
from drupe.oci.runtime_spec import IdMapping, Linux
from drupe.spec.network import NetworkSpec
from drupe.spec.pod import IdMap, Namespaces, UserNamespace


def network_of(linux: Linux) -> NetworkSpec:
    """The network that its namespaces are in."""
    spaces = {space.type: space.path for space in linux.namespaces or ()}
    if "network" not in spaces:
        return NetworkSpec(mode="host", attachments=())
    if path := spaces["network"]:
        return NetworkSpec(mode="path", netns_path=path, attachments=())
    return NetworkSpec(mode="none", attachments=())


def namespaces_of(linux: Linux) -> Namespaces:
    """The others: a pod's own, or the host's."""
    spaces = {space.type: space.path for space in linux.namespaces or ()}

    def own(name: str) -> Literal["pod", "host"]:
        return "pod" if name in spaces and not spaces[name] else "host"

    user = None
    if "user" in spaces and not spaces["user"]:
        user = UserNamespace(uids=ids_of(linux.uid_mappings), gids=ids_of(linux.gid_mappings))
    return Namespaces(ipc=own("ipc"), uts=own("uts"), pid="container" if "pid" in spaces else "host", user=user)


def ids_of(mappings: list[IdMapping] | None) -> tuple[IdMap, ...]:
    """Ranges in the words of a pod."""
    return tuple(IdMap(inside=one.container_id, outside=one.host_id, count=one.size) for one in mappings or ())


def cgroup_path(path: str) -> str:
    """`linux.cgroupsPath` as a path: systemd's form "slice:prefix:name" is where systemd would put it
    (systemd.slice(5)). Raises InvalidArgument."""
    parts = path.split(":")
    if len(parts) != 3:
        return f"/{path.strip('/')}" if path.strip("/") else ""
    slice_, prefix, name = parts
    unit = f"{prefix}-{name}.scope" if not name.endswith(".slice") else name
    return f"{slice_path(slice_ or 'system.slice')}/{unit}"


def slice_path(name: str) -> str:
    """Where a slice of systemd's is (systemd.slice(5)); "-.slice" is the root. Raises InvalidArgument."""
    if name == "-.slice":
        return ""
    words = name.removesuffix(".slice").split("-")
    if not name.endswith(".slice") or "/" in name or not all(words):
        raise InvalidArgument(f"bad cgroup parent {name!r}: no slice of systemd")
    return "".join(f"/{'-'.join(words[: depth + 1])}.slice" for depth in range(len(words)))
