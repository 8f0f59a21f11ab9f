"""Cgroups of pods and containers, v1 and v2 behind one contract: `detect()` gives the tree of this host."""

from drupe.resources.cgroups.contract import CgroupEvent, Cgroups, Watcher
from drupe.resources.cgroups.detect import detect

__all__ = ["CgroupEvent", "Cgroups", "Watcher", "detect"]
