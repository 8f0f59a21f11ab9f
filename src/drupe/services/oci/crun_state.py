"""What runc does with a container's state and cgroup, and crun leaves to us: in a frozen one it would wait for ever."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Sequence
from typing import Any

from drupe.errors import DrupeError, InvalidArgument, InvalidState, NotFound, Unsupported
from drupe.oci.runtime_spec import RuntimeConfig
from drupe.sandboxers.bundles import BundleProgram
from drupe.services.oci.asked import Asked
from drupe.services.oci.births import cgroup_of
from drupe.spec.resources import Resources

PAUSED = "cannot exec in a paused container"  # runc's words, but for a flag that only runc has


def status(asked: Asked, program: BundleProgram, name: str) -> dict[str, object]:
    """What crun has written of a container of its; {} where it has not yet."""
    try:
        found = json.loads(asked.files.read(f"{asked.root}/{program.home}/{name}/status", "status"))
    except (DrupeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def cgroup(asked: Asked, program: BundleProgram) -> str:
    """Of a container that was made; "" where it is not known."""
    return str(status(asked, program, asked.id).get("cgroup-path") or "")


def has_ended(asked: Asked, program: BundleProgram) -> bool:
    """Whether no process of a container is left."""
    path = cgroup(asked, program)
    try:
        return bool(path) and not asked.node.cgroups.pids(path)
    except NotFound:
        return True


def check_new(asked: Asked, config: RuntimeConfig) -> str:
    """A warning where the cgroup that the container is to have has processes, or "". Raises InvalidState where it is
    frozen: nothing could begin there."""
    if not (config.linux and config.linux.cgroups_path):
        return ""
    path, cgroups = cgroup_of(asked, config), asked.node.cgroups
    try:
        if cgroups.is_frozen(path):
            raise InvalidState(f"container's cgroup unexpectedly frozen: {path}", hint="thaw it, or name another one")
        found = len(cgroups.pids(path))
    except NotFound:
        return ""
    return f"container's cgroup is not empty: {found} process(es) found" if found else ""


def check_running(asked: Asked, program: BundleProgram) -> None:
    """Raise InvalidState where a container is paused: a further process would stop before it begins."""
    path = cgroup(asked, program)
    try:
        if path and asked.node.cgroups.is_frozen(path):
            raise InvalidState(PAUSED)
    except NotFound:
        return


def take_limits_off(asked: Asked, program: BundleProgram, resources: dict[str, Any]) -> bool:
    """Where a limit is to be none (-1) crun writes a number that the kernel refuses: these are taken out and done.
    Returns whether anything is left for crun. Raises as `Cgroups.apply`."""
    off: dict[str, Any] = {}
    for part, key, name in (("cpu", "quota", "cpu_quota_us"), ("pids", "limit", "pids")):
        section = resources.get(part) or {}
        if (section.get(key) or 0) < 0:
            off[name] = -1
            resources[part] = {other: value for other, value in section.items() if other != key}
    path = cgroup(asked, program)
    if off and path:
        asked.node.cgroups.apply(path, Resources(**off))
    return not off or any(resources.values())


def check_below(asked: Asked, program: BundleProgram, paths: Sequence[str]) -> None:
    """Raise unless each is a cgroup below the container's, or its own: crun would also go up."""
    for path in paths:
        if ":" in path:
            raise Unsupported(f"exec --cgroup {path}: crun knows no controllers", feature="--cgroup CONTROLLER:PATH")
        below = posixpath.normpath(f"/{path}")[1:]
        if ".." in path.split("/"):
            raise InvalidArgument(f"{path} is not a sub cgroup path")
        whole = f"{cgroup(asked, program)}/{below}".rstrip("/")
        if not asked.node.cgroups.exists(whole):
            raise NotFound(f"cgroup {whole} does not exist")
