"""A container's config.json as the guest's runtime is to see it: the same, with paths of the guest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GUEST_SHARE = "/run/drupe/share"  # where the guest has the pod's shared directory
GUEST_SHM = "/run/drupe/shm"  # and the memory that its containers share
_GUEST_CGROUPS = "/drupe"
SHM = "/dev/shm"  # noqa: S108 the container's, not ours
_FILTER = "run.oci.seccomp_bpf_data"  # crun's annotation with the filter, compiled
# The machine is the pod: its containers share its network, IPC and host name by not having their own.
_OWN = ("pid", "mount", "cgroup")
_NOTHING = {"defaultAction": "SCMP_ACT_ERRNO"}  # what the container could do, were its filter not taken


def adapted(oci: Mapping[str, Any], *, guest: str, root: str, binds: Mapping[str, str]) -> dict[str, Any]:
    """guest: the container's id there. root: of its file system there. binds: source on the host to source there."""
    linux = dict(oci.get("linux", {}))
    linux["namespaces"] = [{"type": kind} for kind in _OWN]
    linux["cgroupsPath"] = f"{_GUEST_CGROUPS}/{guest}"
    for field in ("uidMappings", "gidMappings", "rootfsPropagation", "sysctl"):
        linux.pop(field, None)
    if _FILTER in oci.get("annotations", {}):
        linux["seccomp"] = _NOTHING  # crun would read some thousand words for nothing
    config = {key: value for key, value in oci.items() if key != "hostname"}
    config["linux"] = linux
    config["root"] = dict(oci.get("root", {})) | {"path": root}
    config["mounts"] = [_mount(mount, binds) for mount in oci.get("mounts", ())]
    return config


def _mount(mount: Mapping[str, Any], binds: Mapping[str, str]) -> dict[str, Any]:
    if not is_bind(mount):
        return dict(mount)
    if mount["destination"] == SHM and mount["source"] not in binds:
        return {**mount, "source": GUEST_SHM}
    return {**mount, "source": binds[mount["source"]]}


def brings(mount: Mapping[str, Any]) -> bool:
    """Whether a mount brings something of the host. Memory that containers share is the guest's."""
    return is_bind(mount) and mount["destination"] != SHM


def is_bind(mount: Mapping[str, Any]) -> bool:
    """Whether a mount shows something that is there."""
    return mount.get("type") == "bind" or bool({"bind", "rbind"} & set(mount.get("options", ())))
