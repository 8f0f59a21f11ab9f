"""What an archive of a stranger may cost us at most."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds against archive bombs.

    max_entries: members of one archive. max_unpacked_bytes: data of one archive, unpacked, holes not counted.
    max_file_bytes: apparent size of one file, holes counted. max_path_bytes: PATH_MAX. max_metadata_bytes: extended
    headers of one member. max_ratio: unpacked to packed bytes, looked at beyond `ratio_floor_bytes`.
    """

    max_entries: int = 2_000_000
    max_unpacked_bytes: int = 64 * GIB
    max_file_bytes: int = 1024 * GIB
    max_path_bytes: int = 4096
    max_component_bytes: int = 255
    max_metadata_bytes: int = 1 * MIB
    max_ratio: int = 200
    ratio_floor_bytes: int = 1 * GIB


DEFAULT_LIMITS = Limits()
