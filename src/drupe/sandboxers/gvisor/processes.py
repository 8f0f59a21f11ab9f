"""Processes as a sentry lists them."""

from __future__ import annotations

import re
import time
from typing import Any

from drupe.spec.status import ProcessInfo

_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_SPAN = re.compile(r"([\d.]+)(h|ms|m|s|us|µs|ns)")


def process_infos(listed: list[dict[str, Any]]) -> list[ProcessInfo]:
    """In our words. The sentry does not say how much memory each has, and the time of a start to the minute only."""
    return [_info(entry) for entry in sorted(listed, key=lambda entry: entry["pid"])]


def family(listed: list[dict[str, Any]], pid: int) -> list[int]:
    """Pids of all that descend from a process."""
    found = [pid]
    for parent in found:
        found += [entry["pid"] for entry in listed if entry["ppid"] == parent]
    return found[1:]


def _info(entry: dict[str, Any]) -> ProcessInfo:
    return ProcessInfo(
        pid=entry["pid"],
        ppid=entry["ppid"],
        uid=entry["uid"],
        user=str(entry["uid"]),
        state="S",
        cpu_s=_seconds(entry.get("time", "")),
        rss_bytes=0,
        started_at=_started(entry.get("stime", "")),
        command=entry["cmd"],
    )


def _seconds(span: str) -> float:
    """A duration as Go writes it: "1m2.5s"."""
    return sum(float(number) * _UNITS_S[unit] for number, unit in _SPAN.findall(span))


def _started(clock: str) -> float:
    """Unix time of "15:04" today (in UTC), or of yesterday when that is to come; 0 for another form."""
    try:
        hours, minutes = map(int, clock.split(":"))
    except ValueError:
        return 0.0
    now = time.time()
    at = now - now % 86400 + hours * 3600 + minutes * 60
    return at if at <= now + 60 else at - 86400
