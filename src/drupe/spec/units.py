"""Sizes and shares as people write them."""

from __future__ import annotations

import re

from drupe.errors import InvalidArgument

_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([kmgtp]?)(?:i?b)?$", re.IGNORECASE)
_PERCENT = re.compile(r"^(\d+(?:\.\d+)?)\s*%$")


def parse_size(value: str | int) -> int:
    """Bytes of 512, "512", "64k", "1.5g", "32MiB" (powers of 1024, as Docker counts memory). Raises InvalidArgument."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.match(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise InvalidArgument(f"bad size {value!r}", hint="write it like 512, 64k, 32m or 1.5g")
    return int(float(match[1]) * 1024 ** " kmgtp".index(match[2].lower() or " "))


def parse_cpus(value: str | float) -> float:
    """Processors' worth of time of 1.5, "1.5" or "150%". Raises InvalidArgument."""
    percent = _PERCENT.match(value.strip()) if isinstance(value, str) else None
    try:
        cpus = float(percent[1]) / 100 if percent else float(value)
    except (TypeError, ValueError):
        cpus = 0.0
    if not 0 < cpus < 1_000_000:
        raise InvalidArgument(f"bad number of processors {value!r}", hint='write it like 2, 0.5 or "50%"')
    return cpus
