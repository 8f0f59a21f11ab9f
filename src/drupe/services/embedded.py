"""A runtime inside the caller's own process: no daemon, the same control service."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from drupe.rpc.call import Handler
from drupe.runtime.paths import Paths
from drupe.services.build import open_core
from drupe.services.control import ControlService


@contextlib.asynccontextmanager
async def open_embedded(root: Path, run: Path) -> AsyncIterator[Handler]:
    """The handler of a runtime over `root` and `run`.

    Pods still running at the end go on under their keeper, and are found again by whoever opens the same directories;
    without any, no process is left. Raises AlreadyExists when another process has them open.
    """
    async with open_core(Paths(root=root, run=run)) as core:
        yield ControlService(core).handle
