"""From the config.json that crun would get to the one that runsc gets.

What runsc would silently leave out is taken out here, where the capability table (`able`) has refused it to those who
asked for it; what it understands otherwise is put in its words.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drupe.oci.mount_options import flag_of
from drupe.sandboxers.contract import SandboxConfig
from drupe.sandboxers.gvisor.records import ROOT_ID, PodRecord

_TYPE = "io.kubernetes.cri.container-type"
_SANDBOX = "io.kubernetes.cri.sandbox-id"
_SHM = "/dev/shm"  # noqa: S108 the container's
TMP = "/tmp"  # noqa: S108 the container's
POD_SPACE = "pod"  # what a process table that is shared by all is called
# The sentry has its own, or the daemon does it: limits, devices, sysctls.
_LEFT_OUT = ("cgroupsPath", "resources", "devices", "sysctl", "maskedPaths", "readonlyPaths", "rootfsPropagation")
_OWN_TYPES = ("proc", "sysfs", "tmpfs", "devpts", "mqueue")


def adapted(
    oci: dict[str, Any], pod: PodRecord, *, first: bool, pid_space: str, own_tmp: bool = False
) -> dict[str, Any]:
    """The config of one container. first: it is the sandbox's first. pid_space: what its process table is called; those
    with the same share it. own_tmp: its root has a directory /tmp."""
    linux = {key: value for key, value in oci.get("linux", {}).items() if key not in _LEFT_OUT}
    linux["namespaces"] = _namespaces(pod, pid_space)
    if not pod.seccomp:
        linux.pop("seccomp", None)
    annotations = {_TYPE: "sandbox" if first else "container", _SANDBOX: ROOT_ID}
    mounts = [_mount(mount, pod) for mount in oci.get("mounts", ()) if mount.get("type") != "cgroup"]
    if own_tmp and not any(mount["destination"] == TMP for mount in mounts):
        mounts.insert(0, _tmp(oci["root"]))  # before those below it, which it would hide
    return {**oci, "mounts": mounts, "linux": linux, "annotations": annotations}


def holder(config: SandboxConfig, pod: PodRecord, rootfs: Path, init: str) -> dict[str, Any]:
    """The first container of a pod that has several, or none yet: it sleeps, and reaps."""
    oci = {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/catatonit", "-P"],
            "cwd": "/",
            "env": ["PATH=/"],
            "noNewPrivileges": True,
            "capabilities": {},
        },
        "root": {"path": str(rootfs), "readonly": True},
        "hostname": config.hostname,
        "mounts": [
            {"destination": "/catatonit", "source": init, "type": "bind", "options": ["bind", "ro"]},
            {"destination": "/proc", "type": "proc", "source": "proc"},
        ],
    }
    return adapted(oci, pod, first=True, pid_space=POD_SPACE if config.spec.namespaces.pid == "pod" else "")


def _namespaces(pod: PodRecord, pid_space: str) -> list[dict[str, str]]:
    """runsc compares the path of a process table, and opens nothing there."""
    pid = {"type": "pid", "path": f"/proc/drupe-{pid_space}/ns/pid"} if pid_space else {"type": "pid"}
    spaces = [pid, *({"type": kind} for kind in ("mount", "ipc", "uts"))]
    if pod.netns:
        spaces.append({"type": "network", "path": pod.netns})
    return spaces


def _tmp(root: dict[str, Any]) -> dict[str, Any]:
    """Where an image's /tmp is empty runsc mounts memory there by itself, which would hide files from outside and would
    not be in the container's layer: unless something is mounted there already."""
    options = ["bind", "ro" if root.get("readonly") else "rw"]
    return {"destination": TMP, "type": "bind", "source": f"{root['path']}{TMP}", "options": options}


def _mount(mount: dict[str, Any], pod: PodRecord) -> dict[str, Any]:
    """What is for mounts below it holds for all of it: the sentry has one. /dev/shm of a pod of one container is
    the sentry's own; several share the pod's directory on the host."""
    if mount["destination"] == _SHM and pod.sole:
        options = ["nosuid", "nodev", "mode=1777", f"size={pod.shm_bytes}"]
        options += ["noexec"] if "noexec" in (mount.get("options") or ()) else []
        return {"destination": _SHM, "type": "tmpfs", "source": "shm", "options": options}
    options = [flag_of(option) for option in mount.get("options", ())]
    return {**mount, "options": options}
