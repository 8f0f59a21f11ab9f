"""The mounts of a container: Docker's default file systems, then the pod's and the user's, as OCI mounts.

Form and options: runtime-spec, config.md, Mounts; mount(8).
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from drupe.errors import InvalidArgument
from drupe.oci.seccomp import host_kernel
from drupe.spec import Mount

OciMount = dict[str, Any]

FILESYSTEMS = ("ext4", "erofs")  # of block mounts: those that a guest image has modules for
_FLAGS = frozenset(
    (  # noqa: SIM905 - a table reads best as words
        "ro rw suid nosuid dev nodev exec noexec sync async atime noatime diratime nodiratime relatime norelatime "
        "strictatime nostrictatime bind rbind"
    ).split()
)
_TMPFS_KEYS = frozenset(("size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "huge", "mpol"))
_OPPOSITE = {"exec": "noexec", "suid": "nosuid", "dev": "nodev", "rw": "ro"}
_OPPOSITE |= {negative: positive for positive, negative in _OPPOSITE.items()}
# What lxcfs and its like may cover; anything else below /proc would let a mount forge what the kernel says of itself.
_PROC_ALLOWED = frozenset(
    f"/proc/{name}"
    for name in ("cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg", "slabinfo", "net/dev")
)


def bind_mount(
    source: str,
    target: str,
    *,
    read_only: bool = False,
    propagation: str = "rprivate",
    options: Iterable[str] = (),
) -> OciMount:
    """A recursive bind of host path `source`; read-only reaches the mounts below it too where the kernel can (5.12).

    A file has nothing below it, and crun before 1.9 opens the target of an `rro` mount as a directory: plain `ro` then.
    """
    flags = ["rbind", propagation]
    if read_only:
        whole = host_kernel() >= (5, 12) and os.path.isdir(source)  # noqa: PTH112 - one stat, by name
        flags.append("rro" if whole else "ro")
    return {"destination": target, "type": "bind", "source": source, "options": _with(flags, options)}


def tmpfs_mount(mount: Mount) -> OciMount:
    """A tmpfs with Docker's options: nosuid, nodev, noexec and mode 1777 unless the mount says otherwise."""
    flags = ["nosuid", "nodev", "noexec"]
    if mount.size_bytes is not None:
        flags.append(f"size={mount.size_bytes}")
    flags.append(f"mode={mount.mode if mount.mode is not None else 0o1777:o}")
    if mount.read_only:
        flags.append("ro")
    return {
        "destination": clean_target(mount.target),
        "type": "tmpfs",
        "source": "tmpfs",
        "options": _with(flags, mount.options),
    }


def default_mounts(
    *, shm_size_bytes: int, privileged: bool, tty_gid: bool = True, bind_sys: bool = False
) -> list[OciMount]:
    """Docker's own mounts in Docker's order. tty_gid: gid 5 exists. bind_sys: sysfs can't be mounted afresh."""
    devpts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
    read_only = [] if privileged else ["ro"]
    sys = _mount("/sys", "sysfs", "sysfs", ["nosuid", "noexec", "nodev", *read_only])
    if bind_sys:
        sys = bind_mount("/sys", "/sys", read_only=True, propagation="rslave")
    return [
        _mount("/proc", "proc", "proc", ["nosuid", "noexec", "nodev"]),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount("/dev/pts", "devpts", "devpts", [*devpts, "gid=5"] if tty_gid else devpts),
        sys,
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", [*read_only, "nosuid", "noexec", "nodev"]),
        _mount("/dev/mqueue", "mqueue", "mqueue", ["nosuid", "noexec", "nodev"]),
        _mount(
            "/dev/shm",  # noqa: S108 - the container's own, not a file of ours
            "tmpfs",
            "shm",
            ["nosuid", "noexec", "nodev", "mode=1777", f"size={shm_size_bytes}"],
        ),
    ]


def user_mounts(mounts: Sequence[Mount], sources: Mapping[str, str]) -> list[OciMount]:
    """The container's own mounts. sources: target to host path, for volumes and images (and binds, if resolved).

    Raises InvalidArgument for a bad or doubled target, a relative source, an unknown option.
    """
    found: dict[str, OciMount] = {}
    for mount in mounts:
        target = clean_target(mount.target)
        if target in found:
            raise InvalidArgument(f"two mounts at {target}")
        found[target] = _user_mount(mount, target, sources)
    return list(found.values())


def merge(defaults: Sequence[OciMount], own: Sequence[OciMount], user: Sequence[OciMount]) -> list[OciMount]:
    """All mounts in the order in which they are made: a later one at the same place replaces, parents come first."""
    rest: dict[str, OciMount] = {mount["destination"]: mount for mount in [*own, *user]}
    kept = [m for m in defaults if m["destination"] not in rest]
    if "/dev" in rest:  # a whole /dev from the host brings its own pts, shm and mqueue
        kept = [m for m in kept if not m["destination"].startswith("/dev/")]
    return kept + sorted(rest.values(), key=lambda m: m["destination"].count("/"))


def _block_mount(mount: Mount, target: str) -> OciMount:
    """Without set-uid programs and device nodes, whoever made the disk."""
    filesystem = mount.filesystem or FILESYSTEMS[0]
    if filesystem not in FILESYSTEMS:
        hint = f"one of: {', '.join(FILESYSTEMS)}"
        raise InvalidArgument(f"mount at {target}: unknown file system {filesystem!r}", hint=hint)
    flags = ["nosuid", "nodev", *(["ro"] if mount.read_only else [])]
    return {"destination": target, "type": filesystem, "source": mount.source, "options": _with(flags, mount.options)}


def rootfs_propagation(mounts: Iterable[Mount]) -> str | None:
    """The propagation the root itself needs so that a shared or slave bind works (runtime-spec, rootfsPropagation)."""
    wanted = {mount.propagation.removeprefix("r") for mount in mounts if mount.type in ("bind", "volume")}
    if "shared" in wanted:
        return "shared"
    return "rslave" if "slave" in wanted else None


def clean_target(target: str) -> str:
    """The normal form of a mount target. Raises InvalidArgument if it is relative, the root, or inside /proc."""
    if not target.startswith("/") or "\0" in target:
        raise InvalidArgument(f"mount target {target!r} is not an absolute path")
    clean = "/" + posixpath.normpath(target).lstrip("/")
    if clean == "/":
        raise InvalidArgument("a mount cannot cover the root", hint="use `rootfs` to run from a directory")
    if clean == "/proc" or (clean.startswith("/proc/") and clean not in _PROC_ALLOWED):
        raise InvalidArgument(f"mount target {clean} is inside /proc")
    return clean


def _user_mount(mount: Mount, target: str, sources: Mapping[str, str]) -> OciMount:
    if mount.type == "tmpfs":
        return tmpfs_mount(mount)
    if mount.type == "block":
        return _block_mount(mount, target)
    source = sources.get(target) or (mount.source if mount.type == "bind" else "")
    if not source.startswith("/") or "\0" in source:
        raise InvalidArgument(
            f"mount at {target}: source {source or mount.source!r} is not an absolute path",
            hint="name a volume with type volume" if mount.type == "bind" else "",
        )
    read_only = mount.read_only or mount.type == "image"
    return bind_mount(source, target, read_only=read_only, propagation=mount.propagation, options=mount.options)


def _with(flags: list[str], options: Iterable[str]) -> list[str]:
    """`flags` overridden by the user's `options`; an unknown option is refused."""
    result = list(flags)
    for option in options:
        key = option.partition("=")[0]
        if "=" in option and key in _TMPFS_KEYS and "rbind" not in flags:
            result = [have for have in result if have.partition("=")[0] != key]
        elif option not in _FLAGS:
            raise InvalidArgument(f"unknown mount option {option!r}", hint="see mount(8) for the options of this type")
        elif option in ("bind", "rbind"):
            continue
        result = [have for have in result if have not in (option, _OPPOSITE.get(option))]
        result.append(option)
    return result


def _mount(target: str, kind: str, source: str, options: list[str]) -> OciMount:
    return {"destination": target, "type": kind, "source": source, "options": options}
