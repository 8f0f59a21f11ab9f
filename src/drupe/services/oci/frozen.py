"""What runc looks for in a container's cgroup, and crun does not: in a frozen one it would wait for ever."""

from __future__ import annotations

import contextlib
import json

from drupe.errors import InvalidState, NotFound
from drupe.oci.runtime_spec import RuntimeConfig
from drupe.sandboxers.bundles import BundleProgram
from drupe.services.oci.asked import Asked
from drupe.services.oci.births import cgroup_of

PAUSED = "cannot exec in a paused container"  # runc's words, but for a flag that only runc has


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
    """Raise InvalidState where a container of crun's is paused: a process of its would stop before it begins."""
    with contextlib.suppress(NotFound, ValueError, LookupError, TypeError):
        status = json.loads(asked.files.read(f"{asked.root}/{program.home}/{asked.id}/status", "status"))
        if asked.node.cgroups.is_frozen(str(status["cgroup-path"])):
            raise InvalidState(PAUSED)
