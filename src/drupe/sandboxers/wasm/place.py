"""From an OCI config to where a Wasm process lives: namespaces, root, mounts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drupe.sandboxers.wasm.job import Bind, Place

_KINDS = {"network": "net", "ipc": "ipc", "uts": "uts", "user": "user"}
_OF_LINUX = ("proc", "sysfs", "cgroup", "devpts", "mqueue")  # what a guest has no use for
_DATA = ("size", "mode", "uid", "gid", "nr_inodes")


def place_of(oci: Mapping[str, Any]) -> Place:
    """A container's: its own root and mounts. Namespaces that the config would have made anew are the zygote's."""
    root = oci.get("root", {})
    binds = tuple(_bind(mount) for mount in oci.get("mounts", ()) if _is_for_guests(mount))
    return Place(
        namespaces=_namespaces(oci),
        root=root.get("path", ""),
        root_read_only=bool(root.get("readonly")),
        binds=binds,
        preopens=(("/", "/", True),) if root.get("path") or binds else (),
    )


def place_of_exec(oci: Mapping[str, Any], pid: int) -> Place:
    """The same for a further process: it joins the files of the first one, `pid`."""
    own = place_of(oci)
    spaces = own.namespaces | ({"mnt": f"/proc/{pid}/ns/mnt"} if own.preopens else {})
    return Place(namespaces=spaces, preopens=own.preopens)


def _namespaces(oci: Mapping[str, Any]) -> dict[str, str]:
    listed = oci.get("linux", {}).get("namespaces", ())
    return {_KINDS[each["type"]]: each["path"] for each in listed if each.get("path") and each["type"] in _KINDS}


def _is_for_guests(mount: Mapping[str, Any]) -> bool:
    if mount.get("type") in _OF_LINUX:
        return False
    return not (mount["destination"] == "/dev" and mount.get("type") == "tmpfs")


def _bind(mount: Mapping[str, Any]) -> Bind:
    options = mount.get("options", ())
    read_only = "ro" in options or "rro" in options
    if mount.get("type") == "tmpfs":
        data = ",".join(option for option in options if option.partition("=")[0] in _DATA)
        return Bind(mount["destination"], read_only=read_only, data=data)
    return Bind(mount["destination"], source=mount["source"], read_only=read_only)
