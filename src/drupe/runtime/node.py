"""What every pod and container of one runtime shares."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from drupe.errors import DrupeError, InvalidState, Unsupported
from drupe.resources.cgroups import Cgroups
from drupe.runtime.events import EventBus
from drupe.runtime.paths import Paths
from drupe.sandboxers.contract import Sandboxer
from drupe.sandboxers.kinds import KINDS, Kind
from drupe.spec.node import NodeConfig
from drupe.spec.status import ExitStatus
from drupe.state.journal import Journal

if TYPE_CHECKING:
    from drupe.resources.network.manager import NetworkManager
    from drupe.runtime.storage import Storage


KEPT_ENDS = 1024


def _open_none(kind: str) -> Sandboxer:
    raise Unsupported(f"sandbox kind {kind!r} is not available on this host", kind=kind)


async def _probe_none(kind: str) -> str:
    return ""


@dataclass
class Node:
    """The means of one runtime. kinds: all there are, strongest first. sandboxers: those in use. open_kind: makes the
    sandboxer of another one, or raises DrupeError. probe: why a kind cannot run here, "" when it can. config: what the
    operator decided. closed: why nothing new may be made (a configuration that cannot be read). notes: what recovery
    and limits had to say."""

    paths: Paths
    journal: Journal
    events: EventBus
    cgroups: Cgroups
    storage: Storage
    network: NetworkManager
    config: NodeConfig = NodeConfig()  # noqa: RUF009 it is immutable
    closed: DrupeError | None = None
    kinds: Mapping[str, Kind] = field(default_factory=lambda: KINDS)
    sandboxers: dict[str, Sandboxer] = field(default_factory=dict)
    open_kind: Callable[[str], Sandboxer] = _open_none
    probe: Callable[[str], Awaitable[str]] = _probe_none
    notes: list[str] = field(default_factory=list)
    _ends: dict[str, ExitStatus] = field(default_factory=dict)
    _background: set[asyncio.Task[Any]] = field(default_factory=set)

    def sandboxer(self, kind: str) -> Sandboxer:
        """The kind's sandboxer, made when it is first asked for. Raises InvalidArgument for a name that is no kind,
        Unsupported for one that this host does not have."""
        if kind not in self.sandboxers:
            self.sandboxers[kind] = self.open_kind(kind)
        return self.sandboxers[kind]

    def keep_end(self, container_id: str, end: ExitStatus) -> None:
        """Remember how a container ended that is removed now; the newest few."""
        self._ends[container_id] = end
        while len(self._ends) > KEPT_ENDS:
            del self._ends[next(iter(self._ends))]

    def end_of_removed(self, container_id: str) -> ExitStatus | None:
        """How a container ended that was removed a short while ago: whoever ran it may ask a moment too late."""
        return self._ends.get(container_id)

    def require_open(self) -> None:
        """Raise InvalidState while the configuration cannot be read: what it would forbid is not known."""
        if self.closed is not None:
            raise InvalidState(
                "nothing new can be made: the node's configuration was changed and cannot be read",
                cause=str(self.closed),
                hint="mend it, then send the daemon SIGHUP",
            )

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
