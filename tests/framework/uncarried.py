"""A part of a config.json for each field that some kind of sandbox refuses, where it has a stand-in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAPPING = {"containerID": 0, "hostID": 1, "size": 1}
ALL_SPACES = [{"type": name} for name in ("pid", "ipc", "uts", "network", "mount")]
LINUX = {"namespaces": ALL_SPACES}
PROCESS = {"cwd": "/", "args": ["x"]}
FILES = {"mount": "mnt"}  # in /proc/PID/ns


def without(name: str) -> dict[str, Any]:
    return {"linux": {"namespaces": [space for space in ALL_SPACES if space["type"] != name]}}


def linux(**fields: Any) -> dict[str, Any]:
    return {"linux": LINUX | fields}


def space(name: str, **more: str) -> dict[str, Any]:
    return linux(namespaces=[*(one for one in ALL_SPACES if one["type"] != name), {"type": name, **more}])


def mount(**fields: Any) -> dict[str, Any]:
    return {"mounts": [{"destination": "/m", "type": "bind", "source": "/", **fields}]}


def process(**fields: Any) -> dict[str, Any]:
    return {"process": PROCESS | fields}


USES: Mapping[str, dict[str, Any]] = {
    "domainname": {"domainname": "d"},
    "mounts[].type": mount(type="ext4"),
    "mounts[].options": mount(options=["bind", "rslave"]),
    "mounts[].options idmap": mount(options=["bind", "ridmap"]),
    "mounts[].uidMappings*": mount(uidMappings=[MAPPING]),
    "mounts[].gidMappings*": mount(gidMappings=[MAPPING]),
    "process.user.umask": process(user={"uid": 0, "gid": 0, "umask": 0o77}),
    "process.user.username": process(user={"uid": 0, "gid": 0, "username": "u"}),
    "process.commandLine": process(commandLine="x"),
    "process.scheduler*": process(scheduler={"policy": "SCHED_BATCH"}),
    "process.ioPriority*": process(ioPriority={"class": "IOPRIO_CLASS_BE", "priority": 1}),
    "process.execCPUAffinity*": process(execCPUAffinity={"initial": "0"}),
    "hooks.startContainer*": {"hooks": {"startContainer": [{"path": "/x"}]}},
    **{
        f"linux.namespaces[].path {name}": space(name, path=f"/proc/1/ns/{FILES.get(name, name)}")
        for name in ("pid", "ipc", "uts", "mount", "cgroup", "user", "time")
    },
    "linux.namespaces mount": without("mount"),
    "linux.namespaces pid": without("pid"),
    "linux.namespaces ipc": without("ipc"),
    "linux.namespaces uts": without("uts"),
    "linux.namespaces network": without("network"),
    "linux.namespaces user": space("user"),
    "linux.namespaces time": space("time"),
    "linux.uidMappings*": linux(uidMappings=[MAPPING]),
    "linux.gidMappings*": linux(gidMappings=[MAPPING]),
    "linux.timeOffsets*": linux(timeOffsets={"monotonic": {"secs": 1}}),
    "linux.devices*": linux(devices=[{"type": "c", "path": "/dev/x", "major": 1, "minor": 3}]),
    "linux.sysctl*": linux(sysctl={"kernel.msgmax": "1"}),
    "linux.rootfsPropagation": linux(rootfsPropagation="rshared"),
    "linux.maskedPaths elsewhere": linux(maskedPaths=["/proc/kcore", "/etc/secret"]),
    "linux.readonlyPaths elsewhere": linux(readonlyPaths=["/etc"]),
    "linux.seccomp.listenerPath": linux(seccomp={"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/s"}),
    "linux.seccomp.listenerMetadata": linux(seccomp={"defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "m"}),
    "linux.personality*": linux(personality={"domain": "LINUX32"}),
    "linux.intelRdt*": linux(intelRdt={"closID": "x"}),
    "linux.netDevices*": linux(netDevices={"eth0": {"name": "c0"}}),
    "linux.memoryPolicy*": linux(memoryPolicy={"mode": "MPOL_BIND"}),
    "linux.resources.hugepageLimits*": linux(resources={"hugepageLimits": [{"pageSize": "2MB", "limit": 9}]}),
    "linux.resources.unified*": linux(resources={"unified": {"memory.high": "1"}}),
    "vm*": {"vm": {"kernel": {"path": "/k"}}},
    "windows*": {"windows": {"layerFolders": []}},
    "solaris*": {"solaris": {"milestone": "m"}},
    "zos*": {"zos": {"namespaces": []}},
}  # fmt: skip
LIMITS: Mapping[str, dict[str, Any]] = {
    "cpu.burst": {"cpu": {"burst": 1}}, "cpu.idle": {"cpu": {"idle": 1}},
    "cpu.realtimeRuntime": {"cpu": {"realtimeRuntime": 1}}, "cpu.realtimePeriod": {"cpu": {"realtimePeriod": 1}},
    "memory.kernel": {"memory": {"kernel": 1}}, "memory.kernelTCP": {"memory": {"kernelTCP": 1}},
    "blockIO.leafWeight": {"blockIO": {"leafWeight": 10}},
    "blockIO.weightDevice": {"blockIO": {"weightDevice": [{"major": 1, "minor": 1, "weight": 10}]}},
    "network": {"network": {"classID": 1}}, "rdma": {"rdma": {"mlx5_1": {"hcaHandles": 3}}},
}  # fmt: skip


# Options of mounts, by the kinds whose file systems have none such.
_OWN = ("gvisor", "appkernel", "wasm")
OPTIONS: tuple[tuple[dict[str, Any], str, tuple[str, ...]], ...] = tuple(
    ({"destination": "/m", "type": kind, "source": "/", "options": [option, "ro"]}, option, kinds)
    for kind, option, kinds in (
        ("bind", "nosymfollow", _OWN), ("bind", "copy-symlink", _OWN), ("bind", "remount", _OWN),
        ("tmpfs", "huge=always", _OWN), ("tmpfs", "nr_inodes=9", ("gvisor", "appkernel")), ("tmpfs", "uid=7", ()),
        ("bind", "rnosuid", ()), ("bind", "noatime", ()), ("proc", "hidepid=2", _OWN), ("tmpfs", "size=1m", ()),
    )
)  # fmt: skip


def asked_of(path: str) -> str:
    """The field as it is named in a refusal."""
    return path.rstrip("*")
