"""Device specs to OCI device entries and device cgroup rules (runtime-spec, config-linux.md, Devices)."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from drupe.errors import InvalidArgument, NotFound
from drupe.spec import Device

_MAX_NODES = 1024  # of one directory: /dev/dri or /dev/snd have a few, a mistake such as "/" has no end
_SKIPPED = frozenset(("pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev", "init"))


class ResolvedDevices(NamedTuple):
    """devices: `linux.devices`. rules: entries for `linux.resources.devices`, one a device."""

    devices: tuple[dict[str, Any], ...] = ()
    rules: tuple[dict[str, Any], ...] = ()


def resolve_devices(devices: Iterable[Device]) -> ResolvedDevices:
    """Look the devices up on the host; a directory stands for all nodes below it, links are followed.

    Raises NotFound for a missing one, InvalidArgument for what is no device, bad permissions, two at one target.
    """
    found: dict[str, dict[str, Any]] = {}
    rules: list[dict[str, Any]] = []
    for device in devices:
        _check(device)
        for path, target in _nodes(device):
            entry = _entry(path, target)
            if target in found:
                raise InvalidArgument(f"two devices at {target}")
            found[target] = entry
            rule = {name: entry[name] for name in ("type", "major", "minor")}
            rules.append({"allow": True, **rule, "access": device.permissions})
    return ResolvedDevices(tuple(found.values()), tuple(rules))


def host_devices() -> tuple[dict[str, Any], ...]:
    """Every device node of the host's /dev, for a privileged container."""
    paths = (path for path in _walk("/dev", skip=_SKIPPED) if path != "/dev/console")
    return tuple(entry for path in paths if (entry := _entry_or_none(path)))


def _check(device: Device) -> None:
    if not device.path.startswith("/") or not (device.target or "/").startswith("/"):
        raise InvalidArgument(f"device {device.path!r}: paths are absolute")
    letters = device.permissions
    if not letters or set(letters) - set("rwm") or len(set(letters)) != len(letters):
        raise InvalidArgument(f"device {device.path}: bad permissions {letters!r}", hint="any of r, w and m")


def _nodes(device: Device) -> Iterator[tuple[str, str]]:
    target = posixpath.normpath(device.target or device.path)
    try:
        mode = os.stat(device.path).st_mode  # noqa: PTH116 - a string, looked up once
    except OSError as error:
        raise NotFound(f"no device {device.path}", cause=error.strerror or "") from None
    if not stat.S_ISDIR(mode):
        yield device.path, target
        return
    nodes = [path for path in _walk(device.path) if _entry_or_none(path)]
    if not nodes:
        raise NotFound(f"no device in directory {device.path}")
    for path in nodes:
        yield path, target + path[len(device.path.rstrip("/")) :]


def _walk(directory: str, *, skip: frozenset[str] = frozenset()) -> Iterator[str]:
    """Paths of the nodes below a directory, sorted; links are left out so that no loop or host path sneaks in."""
    count = 0
    for base, subs, files in os.walk(directory):
        if base == directory:
            subs[:] = [sub for sub in subs if sub not in skip]
        subs.sort()
        for name in sorted(files):
            path = f"{base}/{name}"
            if name in skip or os.path.islink(path):  # noqa: PTH114 - as above
                continue
            count += 1
            if count > _MAX_NODES:
                raise InvalidArgument(f"more than {_MAX_NODES} nodes in directory {directory}")
            yield path


def _entry(path: str, target: str) -> dict[str, Any]:
    entry = _entry_or_none(path, target)
    if entry is None:
        raise InvalidArgument(f"{path} is not a device", hint="mount files and directories with a bind mount")
    return entry


def _entry_or_none(path: str, target: str = "") -> dict[str, Any] | None:
    try:
        info = os.stat(path)  # noqa: PTH116 - as above
    except OSError as error:
        raise NotFound(f"no device {path}", cause=error.strerror or "") from None
    kinds = {stat.S_IFCHR: "c", stat.S_IFBLK: "b"}
    kind = kinds.get(stat.S_IFMT(info.st_mode))
    if kind is None:
        return None
    return {
        "path": target or path,
        "type": kind,
        "major": os.major(info.st_rdev),
        "minor": os.minor(info.st_rdev),
        "fileMode": stat.S_IMODE(info.st_mode),
        "uid": info.st_uid,
        "gid": info.st_gid,
    }
