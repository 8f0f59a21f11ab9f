"""Which cgroup tree this host has (proc(5), mountinfo)."""

from __future__ import annotations

from pathlib import Path

from drupe.errors import Unsupported
from drupe.resources.cgroups.base import read_text
from drupe.resources.cgroups.contract import Cgroups
from drupe.resources.cgroups.v1 import CgroupsV1

_KNOWN = frozenset(
    ("cpuset", "cpu", "cpuacct", "blkio", "memory", "devices", "freezer", "net_cls", "perf_event", "net_prio",
     "hugetlb", "pids", "rdma", "misc")
)  # fmt: skip


def detect(mountinfo: str = "/proc/self/mountinfo") -> Cgroups:
    """The cgroup tree to work with: v2 if it is alone, v1 if any controller is mounted that way (also hybrid).

    Raises Unsupported when no cgroup file system is mounted.
    """
    roots: dict[str, str] = {}
    unified = ""
    for line in Path(mountinfo).read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        mount_point = left.split()[4].replace("\\040", " ")
        if kind == "cgroup2":
            unified = unified or mount_point
        elif kind == "cgroup":
            names = [o for o in options.split(",") if o in _KNOWN or o.startswith("name=")]
            roots |= {name: mount_point for name in names if name not in roots}
    return _tree(roots, unified)


def _tree(roots: dict[str, str], unified: str) -> Cgroups:
    if any(not name.startswith("name=") for name in roots):
        return CgroupsV1(roots)
    if unified:
        from drupe.resources.cgroups.v2 import CgroupsV2

        return CgroupsV2(unified, controllers=read_text(f"{unified}/cgroup.controllers").split())
    raise Unsupported(
        "no cgroup file system is mounted", feature="limit resources", hint="mount -t cgroup2 none /sys/fs/cgroup"
    )


def cgroup_of(pid: int) -> str:
    """The cgroup of a process (cgroups(7), /proc/PID/cgroup): where it is limited, "" when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return ""
    found = {name: path for _, names, path in (line.split(":", 2) for line in lines) for name in names.split(",")}
    return next((found[name] for name in ("memory", "pids", "cpu", "") if name in found), "")
