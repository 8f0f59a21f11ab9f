"""What a kernel counts, in our words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drupe.spec.status import ProcessInfo


def process_info(one: Mapping[str, Any]) -> ProcessInfo:
    """One line of `top`; pids are the kernel's."""
    return ProcessInfo(
        pid=one["pid"],
        ppid=one["ppid"],
        uid=one["uid"],
        user=str(one["uid"]),
        state=one["state"],
        cpu_s=one["cpu_ns"] / 1e9,
        rss_bytes=one["rss_bytes"],
        started_at=one["started_at"],
        command=one["command"],
    )
