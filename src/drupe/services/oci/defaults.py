"""The documents of `spec` and `features`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drupe import __version__
from drupe.oci.build import MASKED_PATHS, READ_ONLY_PATHS
from drupe.oci.capabilities import ALL
from drupe.oci.carried import TRAVELLING
from drupe.oci.honoured import FIELDS, Version, dotted, first_version
from drupe.oci.mounts import default_mounts
from drupe.oci.runtime_spec import SPEC_VERSION

_SHM_BYTES = 65536 * 1024
_CAPABILITIES = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
_NAMESPACES = ("cgroup", "ipc", "mount", "network", "pid", "user", "uts")
_MOUNT_OPTIONS = (  # noqa: SIM905 mount(8), and the specification's propagation and recursion words
    "async atime bind defaults dev diratime dirsync exec iversion lazytime loud mand noatime nodev nodiratime noexec "
    "noiversion nolazytime nomand norelatime nostrictatime nosuid nosymfollow private rbind relatime remount ro "
    "rprivate rshared rslave runbindable rw shared silent slave strictatime suid symfollow sync tmpcopyup unbindable"
).split()


def spec_document(*, rootless: bool, cgroup_version: int) -> dict[str, Any]:
    """A container that runs sh, to be edited: `runc spec`, which has a cgroup namespace where cgroups are v2."""
    namespaces = ["pid", "ipc", "uts", "mount", *(["user"] if rootless else ["network"])]
    namespaces += ["cgroup"] if cgroup_version == 2 else []
    linux: dict[str, Any] = {
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        "namespaces": [{"type": name} for name in namespaces],
        "maskedPaths": list(MASKED_PATHS),
        "readonlyPaths": list(READ_ONLY_PATHS),
    }
    if rootless:
        import os

        one = {"containerID": 0, "size": 1}
        linux |= {"uidMappings": [one | {"hostID": os.geteuid()}], "gidMappings": [one | {"hostID": os.getegid()}]}
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": [_PATH, "TERM=xterm"],
            "cwd": "/",
            "capabilities": {name: _CAPABILITIES for name in ("bounding", "effective", "permitted")},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "drupe",
        "mounts": default_mounts(shm_size_bytes=_SHM_BYTES, privileged=False, tty_gid=not rootless, bind_sys=rootless),
        "linux": linux,
    }


def features_document(program: str, version: Version, *, checkpoints: bool) -> dict[str, Any]:
    """What this program carries out. checkpoints: whether it can write containers down here."""
    can = {field.path: (since := first_version(field, program)) is not None and version >= since for field in FIELDS}
    idmap = can["mounts[].uidMappings"]
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC_VERSION,
        "hooks": list(_HOOKS),
        "mountOptions": sorted([*_MOUNT_OPTIONS, *(["idmap", "ridmap"] if can["mounts[].options idmap"] else [])]),
        "linux": {
            "namespaces": sorted([*_NAMESPACES, *(["time"] if can["linux.namespaces time"] else [])]),
            "capabilities": list(ALL),
            "cgroup": {
                "v1": True,
                "v2": True,
                "systemd": True,
                "systemdUser": True,
                "rdma": can["linux.resources.rdma"],
            },
            "seccomp": {"enabled": True},
            "apparmor": {"enabled": True},
            "selinux": {"enabled": True},
            "intelRdt": {"enabled": can["linux.intelRdt"]},
            "mountExtensions": {"idmap": {"enabled": idmap}},
        },
        "annotations": {
            "org.drupe.version": __version__,
            "org.drupe.oci.program": f"{program} {dotted(version)}",
            "run.oci.crun.checkpoint.enabled": str(checkpoints).lower(),
        },
    }


def without_uncarried(document: dict[str, Any], able: Mapping[str, str]) -> dict[str, Any]:
    """The same where the program only makes a stand-in: what `oci/carried.py` refuses is left out. able: what the kind
    can do."""
    travelling = () if not able["mount-propagation"].startswith("no") else TRAVELLING
    linux = document["linux"]
    return document | {
        "hooks": [name for name in document["hooks"] if name != "startContainer"],
        "mountOptions": [one for one in document["mountOptions"] if one not in ("idmap", "ridmap", *travelling)],
        "linux": linux
        | {
            "namespaces": [name for name in linux["namespaces"] if name not in ("user", "time")],
            "cgroup": linux["cgroup"] | {"rdma": False},
            "seccomp": {"enabled": not able["seccomp"].startswith("no")},
            "intelRdt": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": False}},
        },
    }
