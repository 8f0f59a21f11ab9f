"""A container's config.json in the words of its kernel (docs/appkernel.md).

What the kernel has by itself, or has no need of, is left out here, where the capability table (`able`) has refused it
to those who asked for it: cgroup file systems, namespaces.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from drupe.errors import Unsupported
from drupe.oci.carried import DEFAULT_DEVICES
from drupe.oci.mount_options import flag_of
from drupe.sandboxers.appkernel.filters import instructions
from drupe.sandboxers.runc.entering import process_fields

_FLAGS = ("ro", "nosuid", "nodev", "noexec", "noatime")
_LEFT_OUT = ("cgroup", "cgroup2", "mqueue")
_DEVICES = tuple((1, minor) for minor in (3, 5, 7, 8, 9))  # null, zero, full, random, urandom: its own
_SHM = "/dev/shm"  # noqa: S108 the container's
_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


@dataclass(frozen=True, slots=True)
class Bind:
    """What a container is given of the host. name: of its place in the pod's shared directory. source: as the keeper
    sees it."""

    name: str
    source: str
    read_only: bool


def process_config(process: Mapping[str, Any]) -> dict[str, Any]:
    """A runtime-spec `process`."""
    fields = process_fields(dict(process))
    capabilities = _executed(fields["capabilities"], fields["uid"])
    size = process.get("consoleSize") or {}
    return {
        "args": fields["argv"],
        "env": fields["env"],
        "cwd": fields["cwd"],
        "uid": fields["uid"],
        "gid": fields["gid"],
        "groups": fields["groups"],
        **{name: capabilities[name] for name in ("effective", "permitted", "inheritable", "bounding")},
        "no_new_privileges": fields["no_new_privileges"],
        "rlimits": fields["rlimits"],
        "umask": (process.get("user") or {}).get("umask"),
        "oom_score_adj": fields["oom_score_adj"],
        "terminal": bool(process.get("terminal")),
        "rows": size.get("height", 0),
        "cols": size.get("width", 0),
    }


def _executed(capabilities: Mapping[str, int], uid: int) -> Mapping[str, int]:
    """Masks as execve(2) leaves them for the program: to who is not root, the ambient ones alone (capabilities(7))."""
    if uid == 0:
        return capabilities
    kept = capabilities["ambient"] & capabilities["permitted"] & capabilities["inheritable"]
    return {**capabilities, "effective": kept, "permitted": kept}


def container_config(oci: Mapping[str, Any], *, task: str, shm_bytes: int) -> tuple[dict[str, Any], list[Bind]]:
    """The kernel's config of a container, but for its root, and what it is to be given. shm_bytes: of the memory that
    the pod's containers share."""
    mounts: list[dict[str, Any]] = []
    binds: list[Bind] = []
    for mount in oci.get("mounts", ()):
        if mount.get("type") not in _LEFT_OUT:
            mounts.append(_mount(mount, task, binds, shm_bytes))
    config = process_config(oci["process"])
    config["mounts"] = mounts
    linux = oci.get("linux") or {}
    config["masked_paths"] = linux.get("maskedPaths") or []
    config["read_only_paths"] = linux.get("readonlyPaths") or []
    if program := instructions(oci):
        config["seccomp"] = program
    config["devices"] = _devices(oci)
    config["read_only"] = bool(oci["root"].get("readonly"))
    return config, binds


def _devices(oci: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Nodes of devices that the kernel has itself. Raises Unsupported for others."""
    found = []
    for device in (oci.get("linux") or {}).get("devices") or ():
        number = (device.get("major"), device.get("minor"))
        if (device["path"], device.get("type"), *number) in DEFAULT_DEVICES:
            continue
        if device.get("type") not in ("c", "u") or number not in _DEVICES:
            raise Unsupported(
                f"config.json: linux.devices {device['path']} is not carried out by appkernel sandboxes",
                kind="appkernel", feature="devices", cause="its kernel shows no device of the host",
                hint="null, zero, full, random and urandom are its own, by any name",
            )  # fmt: skip
        mode = {"mode": device["fileMode"]} if device.get("fileMode") else {}
        owner = {name: device.get(name) or 0 for name in ("uid", "gid")}
        found.append({"path": device["path"], "major": number[0], "minor": number[1], **mode, **owner})
    return found


def _mount(mount: Mapping[str, Any], task: str, binds: list[Bind], shm_bytes: int) -> dict[str, Any]:
    target, options = mount["destination"], mount.get("options") or ()
    made = {"target": target, "flags": sorted({*map(flag_of, options)} & {*_FLAGS})}
    if target == _SHM:
        return made | {"type": "shm", "size_bytes": shm_bytes}
    if _is_bind(mount):
        name = f"bind{len(binds)}"
        binds.append(Bind(name, mount["source"], read_only="ro" in made["flags"]))
        return made | {"type": "bind", "source": f"{task}/{name}"}
    kind = mount.get("type")
    if kind == "tmpfs":
        return made | _tmpfs(target, options)
    if kind in ("proc", "sysfs", "devpts"):
        return made | {"type": kind}
    raise Unsupported(f"the application kernel has no file system {kind!r} for {target}", kind="appkernel")


def _tmpfs(target: str, options: Any) -> dict[str, Any]:
    if target == "/dev":
        return {"type": "devices"}
    given = dict(option.split("=", 1) for option in options if "=" in option)
    made: dict[str, Any] = {"type": "tmpfs", "mode": int(given.get("mode", "1777"), 8)}
    made |= {name: int(given[name]) for name in ("uid", "gid") if name in given}
    return made | ({"size_bytes": _size(given["size"])} if "size" in given else {})


def _size(text: str) -> int:
    """A size as mount(8) takes it: bytes, or with k, m, g."""
    unit = _UNITS.get(text[-1:].lower(), 1)
    return int(text[:-1] if unit > 1 else text) * unit


def _is_bind(mount: Mapping[str, Any]) -> bool:
    return mount.get("type") == "bind" or bool({"bind", "rbind"} & set(mount.get("options") or ()))
