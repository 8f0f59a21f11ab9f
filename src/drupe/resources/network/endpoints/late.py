"""Namespaces that are filled later (Docker's way), and interfaces that come and go while a machine runs."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from drupe.linux.linkevents import LinkEvents
from drupe.resources.network.bridge import explained
from drupe.resources.network.endpoints.contract import Endpoint
from drupe.resources.network.endpoints.joining import find
from drupe.resources.network.records import Keeper
from drupe.rpc.timeouts import timeout

SETTLED_S = 0.05  # an interface, its addresses and its routes come one after the other


class LinkWatch:
    """Tells of changes in a namespace; nothing that happens after `open` is missed."""

    def __init__(self, events: LinkEvents) -> None:
        self._events = events
        self._changed = asyncio.Event()
        asyncio.get_running_loop().add_reader(events.fileno(), self._read)

    @classmethod
    async def open(cls, keeper: Keeper, netns: Path | str) -> LinkWatch:
        """Raises NotFound when the namespace is gone."""
        with explained(f"cannot open network namespace {netns}"):
            return cls(LinkEvents(await keeper.netns_socket(netns, socket.AF_NETLINK, socket.SOCK_RAW)))

    def _read(self) -> None:
        self._events.drain()
        self._changed.set()

    async def changed(self) -> None:
        """Return once something has changed since the last time, and then nothing for a moment."""
        await self._changed.wait()
        while self._changed.is_set():
            self._changed.clear()
            await asyncio.sleep(SETTLED_S)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._events.fileno())
        self._events.close()


async def await_endpoints(
    keeper: Keeper, netns: Path | str, *, timeout_s: float, vhost_user: Path | None = None
) -> list[Endpoint]:
    """The interfaces of a namespace that may be filled only now: as soon as one has an address, and nothing changes any
    more; [] when none has come in time. What is there already is answered at once."""
    watch = await LinkWatch.open(keeper, netns)
    try:
        async with timeout(timeout_s):
            while True:
                found = await find(keeper, netns, vhost_user=vhost_user)
                if any(endpoint.addresses for endpoint in found):
                    return found
                await watch.changed()
    except TimeoutError:
        return await find(keeper, netns, vhost_user=vhost_user)
    finally:
        watch.close()
