"""The fake kind: the whole Sandboxer contract acted out in memory, for tests of everything above it.

It isolates nothing and starts no process. What it promises it keeps (descriptors, signals, exits, pauses are real to
their caller); what it does not, it refuses. It is never chosen unless a test puts it into a runtime.
"""

from drupe.sandboxers.fake.faults import Faults, Killed
from drupe.sandboxers.fake.sandboxer import FakeSandboxer
from drupe.sandboxers.fake.world import FakeWorld

__all__ = ["FakeSandboxer", "FakeWorld", "Faults", "Killed"]
