"""What this host lets a workload have: capabilities, hard resource limits, the lowest OOM score."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from drupe.oci.capabilities import host_capabilities

RLIMITS: dict[str, int] = {
    name.removeprefix("RLIMIT_").lower(): getattr(resource, name)
    for name in dir(resource)
    if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"
} | {"locks": 10}


@dataclass(frozen=True, kw_only=True)
class HostLimits:
    """capabilities: the bounding set. hard_rlimits: by short name, -1 unlimited. min_oom_score_adj: lowest allowed."""

    capabilities: frozenset[str]
    hard_rlimits: Mapping[str, int] = field(default_factory=dict)
    min_oom_score_adj: int = -1000

    @property
    def may_raise(self) -> bool:
        """Whether hard limits may be raised and OOM scores lowered (capabilities(7), CAP_SYS_RESOURCE)."""
        return "CAP_SYS_RESOURCE" in self.capabilities


@lru_cache(maxsize=1)
def host_limits() -> HostLimits:
    """The limits of this process, which what it starts inherits; read once."""
    return HostLimits(
        capabilities=host_capabilities(),
        hard_rlimits={name: _hard(number) for name, number in RLIMITS.items()},
        min_oom_score_adj=int(Path("/proc/self/oom_score_adj").read_text()),
    )


def _hard(number: int) -> int:
    return resource.getrlimit(number)[1]  # RLIM_INFINITY is -1
