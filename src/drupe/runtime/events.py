"""Events: kept in the journal for replay, and handed to whoever listens."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator

from drupe.errors import DrupeError
from drupe.spec.base import decode, plain
from drupe.spec.status import Event
from drupe.state.journal import Journal

BACKLOG = 10_000  # events a slow listener may lag behind before the oldest are dropped for it


class EventBus:
    """Publish is synchronous and never fails the work it tells of."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._listeners: set[asyncio.Queue[Event]] = set()

    def publish(self, type_: str, action: str, id_: str, **attributes: str) -> None:
        """type: "pod", "container", "image"…; action: Docker's word for it; attributes: text."""
        event = Event(at=time.time(), type=type_, action=action, id=id_, attributes=attributes)
        with contextlib.suppress(DrupeError):  # a full disk must not stop a pod from stopping; listeners still hear
            self._journal.add_event(event.at, plain(event))
        for queue in self._listeners:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(event)

    def past(self, since: float, until: float | None) -> list[Event]:
        """Kept events between two times (Unix seconds)."""
        return [decode(Event, data, where="event") for data in self._journal.events(since=since, until=until)]

    @contextlib.contextmanager
    def listen(self) -> Iterator[asyncio.Queue[Event]]:
        """Events from this very moment on: what `past` told before any other task could run is not among them."""
        queue: asyncio.Queue[Event] = asyncio.Queue(BACKLOG)
        self._listeners.add(queue)
        try:
            yield queue
        finally:
            self._listeners.discard(queue)
