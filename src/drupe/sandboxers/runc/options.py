"""Settings of the runc kind: `[kinds.runc]` in the node's configuration."""

from __future__ import annotations

from drupe.spec.base import Spec


class RuncOptions(Spec):
    """program: the OCI runtime, "crun" or "runc", by name or path."""

    program: str = "crun"
