"""drupe: a container runtime that runs every pod in the sandbox its workload needs."""

from __future__ import annotations

__version__ = "0.1.0"
