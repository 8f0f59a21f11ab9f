"""Which platform kernels get: what runs guest code under them (docs/appkernel.md, "Platforms")."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Wanted = Literal["trap", "kvm", "auto"]

VARIABLE = "DRUPE_APPKERNEL_PLATFORM"
_PROBE_WITHIN_S = 10.0


@dataclass(frozen=True, slots=True)
class KvmVerdict:
    """Whether the host's KVM is worth having for application kernels. why: figures, or what is missing."""

    fast: bool
    why: str


def probe_kvm(program: Path) -> KvmVerdict:
    """Run a guest that does nothing but call, for a fifth of a second at most. That /dev/kvm is there says nothing."""
    try:
        done = subprocess.run(
            [str(program), "probe-kvm"], capture_output=True, text=True, timeout=_PROBE_WITHIN_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return KvmVerdict(fast=False, why=str(error))
    if done.returncode != 0:
        return KvmVerdict(fast=False, why=done.stderr.strip().removeprefix("drupe-appkernel: "))
    figures = json.loads(done.stdout)
    speed = "fast" if figures["fast"] else "slow"
    call, limit = figures["call_ns"] / 1000, figures["limit_ns"] / 1000
    return KvmVerdict(fast=figures["fast"], why=f"{speed}, {call:.1f} µs a call (limit {limit:g})")


class PlatformChoice:
    """The platform of this node's kernels, found out once. wanted: as the node is configured; the environment's word,
    for tests, goes first."""

    def __init__(self, program: Path, wanted: Wanted) -> None:
        self._program = program
        self._name: str = os.environ.get(VARIABLE) or wanted
        self._finding = asyncio.Lock()

    async def name(self) -> str:
        """`trap` or `kvm`. One that was named is not probed: a kernel that cannot have it says why."""
        async with self._finding:
            if self._name == "auto":
                verdict = await asyncio.to_thread(probe_kvm, self._program)
                self._name = "kvm" if verdict.fast else "trap"
        return self._name
