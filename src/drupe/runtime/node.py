"""What every pod and container of one runtime shares."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from drupe.errors import NotFound
from drupe.resources.cgroups import Cgroups
from drupe.runtime.events import EventBus
from drupe.runtime.paths import Paths
from drupe.sandboxers.contract import Sandboxer
from drupe.state.journal import Journal

if TYPE_CHECKING:
    from drupe.resources.network.manager import NetworkManager
    from drupe.runtime.storage import Storage


@dataclass
class Node:
    """The means of one runtime. notes: what recovery and limits had to say. tasks: background work, owned here."""

    paths: Paths
    journal: Journal
    events: EventBus
    cgroups: Cgroups
    storage: Storage
    network: NetworkManager
    sandboxers: dict[str, Sandboxer] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _background: set[asyncio.Task[Any]] = field(default_factory=set)

    def sandboxer(self, kind: str) -> Sandboxer:
        try:
            return self.sandboxers[kind]
        except KeyError:
            have = ", ".join(sorted(self.sandboxers)) or "none"
            raise NotFound(f"no sandboxer of kind {kind!r} here", hint=f"available: {have}; see drupe doctor") from None

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run `work` in the background, owned by the node: kept until done, cancelled at close, its failure noted."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.note(f"{task.get_name()}: {task.exception()}")

    def note(self, text: str) -> None:
        """Remember something an operator should know; the newest hundred are kept (drupe system info)."""
        self.notes.append(text)
        del self.notes[:-100]

    async def close(self) -> None:
        """Cancel background work and wait for its end."""
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
