"""Two economies of a short-lived process: a fifth of the time from the start of `drupe ps` to its first call."""

from __future__ import annotations

import gc
import sys

_OBJECTS_BETWEEN_COLLECTIONS = 100_000
_PYTHONS_OWN = gc.get_threshold()


def rest_collector() -> None:
    """Let the garbage collector run rarely: importing makes many objects and no garbage."""
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, *_PYTHONS_OWN[1:])


def wake_collector() -> None:
    """Python's own pace again, for a process that stays."""
    gc.set_threshold(*_PYTHONS_OWN)


def import_msgspec() -> None:
    """Import msgspec without typing_extensions, which it loads wherever it is there, and needs on old Pythons only."""
    if "msgspec" in sys.modules or "typing_extensions" in sys.modules:
        return
    sys.modules["typing_extensions"] = None  # type: ignore[assignment] # its import fails: msgspec takes typing's own
    try:
        import msgspec  # noqa: F401
    finally:
        del sys.modules["typing_extensions"]
