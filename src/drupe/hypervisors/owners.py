"""Who a machine's program is on the host."""

from __future__ import annotations

import zlib

_UNPRIVILEGED_BASE, _UNPRIVILEGED_RANGE = 1_800_000_000, 100_000_000


def uid_of(machine_id: str) -> int:
    """The user id under which a machine runs: its own, and nobody else's on the host."""
    return _UNPRIVILEGED_BASE + zlib.crc32(machine_id.encode()) % _UNPRIVILEGED_RANGE
