"""A further process in a container, started by the keeper itself: what `crun exec` would do, without starting crun.

The keeper forks, joins the namespaces of the container's first process and takes the steps of crun in the same order
(native/keeper/src/exec.rs). This says what the process is to be, in the kernel's numbers.
"""

from __future__ import annotations

from typing import Any

from drupe.oci.capabilities import mask
from drupe.oci.host import RLIMITS

_SETS = ("bounding", "effective", "permitted", "inheritable", "ambient")


def process_fields(process: dict[str, Any]) -> dict[str, Any]:
    """What the keeper's op `exec` is told of an OCI process (docs/keeper.md)."""
    user, capabilities = process.get("user") or {}, process.get("capabilities") or {}
    return {
        "argv": process["args"],
        "env": process.get("env") or [],
        "cwd": process["cwd"],
        "uid": user.get("uid", 0),
        "gid": user.get("gid", 0),
        "groups": user.get("additionalGids") or [],
        "capabilities": {name: mask(capabilities.get(name) or ()) for name in _SETS},
        "no_new_privileges": bool(process.get("noNewPrivileges")),
        "rlimits": [_limit(limit) for limit in process.get("rlimits") or ()],
        "oom_score_adj": process.get("oomScoreAdj"),
    }


def _limit(limit: dict[str, Any]) -> list[int]:
    return [RLIMITS[limit["type"].removeprefix("RLIMIT_").lower()], limit["soft"], limit["hard"]]
