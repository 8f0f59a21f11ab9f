"""Pods' namespaces, some of them made ahead: making them is half of the time that a cached start takes.

A set made ahead lies in `<run>/wasm/ns/N`, pinned by the keeper like any other; a pod that takes it has `ns` as a link
to it. Only what no guest can see the difference of is made ahead: WASI has no way to ask for the host name, so that
stays as it was made; pods with sysctls or a user namespace get sets of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Collection
from pathlib import Path

from drupe.errors import DrupeError
from drupe.keeper.client import Keeper
from drupe.sandboxers.contract import SandboxConfig, SandboxInfo
from drupe.sandboxers.kept.namespaces import drop_namespaces, make_namespaces, namespace_types

SPARES = 2
REFILL_AFTER_S = 0.05
_TYPES = ["net", "ipc", "uts"]
_OCI_NAME = {"net": "network", "ipc": "ipc", "uts": "uts"}


class Spaces:
    """Makes, hands out and drops them. directory: where those made ahead are."""

    def __init__(self, keeper: Keeper, directory: Path) -> None:
        self._keeper = keeper
        self._directory = directory
        self._spares: deque[Path] = deque()
        self._refill: asyncio.TimerHandle | None = None
        self._work: asyncio.Future[None] | None = None
        self._count = 0
        keeper.on_lost(self._spares.clear)

    async def make(self, config: SandboxConfig) -> SandboxInfo:
        """Those of a pod."""
        types = namespace_types(config.spec)
        if types != _TYPES or config.spec.sysctls or config.held:
            return await make_namespaces(self._keeper, config, types)
        link = config.dir / "ns"
        while self._spares:
            found = self._spares.popleft()
            link.symlink_to(os.path.relpath(found, config.dir))
            self._refill_later()
            return SandboxInfo(
                netns=str(link / "net"), namespaces={_OCI_NAME[kind]: str(link / kind) for kind in types}
            )
        self._refill_later()
        return await make_namespaces(self._keeper, config, types)

    async def drop(self, config: SandboxConfig) -> None:
        """Unpin a pod's; they end with their last process. Idempotent."""
        link = config.dir / "ns"
        if not link.is_symlink():
            await drop_namespaces(self._keeper, config)
            return
        await self._keeper.release(link.resolve())
        link.unlink(missing_ok=True)

    async def recover(self, configs: Collection[SandboxConfig]) -> None:
        """Drop those that an earlier daemon made ahead, or for a pod that is gone."""
        used = {(config.dir / "ns").resolve() for config in configs}
        for found in self._directory.glob("*"):
            self._count = max(self._count, int(found.name))
            if found not in used:
                await self._keeper.release(found)

    def close(self) -> None:
        """Make no more. What is pinned goes with the keeper, or when the next daemon looks."""
        if self._refill is not None:
            self._refill.cancel()
        if self._work is not None:
            self._work.cancel()

    def _refill_later(self) -> None:
        if self._refill is not None:
            self._refill.cancel()
        self._refill = asyncio.get_running_loop().call_later(REFILL_AFTER_S, self._begin)

    def _begin(self) -> None:
        if self._work is None or self._work.done():
            self._work = asyncio.ensure_future(self._fill())

    async def _fill(self) -> None:
        with contextlib.suppress(DrupeError):  # a pod that finds none makes its own, and says what is wrong
            while len(self._spares) < SPARES:
                self._count += 1
                made = self._directory / str(self._count)
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                await self._keeper.create_namespaces(made, _TYPES)
                self._spares.append(made)
