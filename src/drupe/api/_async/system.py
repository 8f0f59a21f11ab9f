"""The runtime itself and its host."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from drupe.rpc.connection import AsyncConnection
from drupe.spec.control import (
    DiskUsage,
    DiskUsageList,
    Empty,
    Events,
    PodCreate,
    Prune,
    Pruned,
    SystemInfo,
)
from drupe.spec.host import CapabilityTable, Doctor, KindInfo, Probe, ProbeList
from drupe.spec.pod import PodSpec
from drupe.spec.status import Choice, Event


class AsyncSystem:
    """Questions about the runtime as a whole."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def info(self) -> SystemInfo:
        """Version, directories, host, counts, what recovery did."""
        info: SystemInfo = await self._connection.call("system.info", Empty())
        return info

    async def df(self) -> list[DiskUsage]:
        """Disk use of images, containers and volumes."""
        found: DiskUsageList = await self._connection.call("system.df", Empty())
        return found.items

    async def capabilities(self) -> dict[str, dict[str, str]]:
        """Sandbox kind → feature → "yes", "no: reason" or "limited: reason"."""
        table: CapabilityTable = await self._connection.call("system.capabilities", Empty())
        return table.kinds

    async def kinds(self) -> list[KindInfo]:
        """The kinds of sandbox, strongest first: how strong, what isolates, whether and why not they run here."""
        table: CapabilityTable = await self._connection.call("system.capabilities", Empty())
        return table.about

    async def choose(self, spec: PodSpec) -> Choice:
        """The kind of sandbox that a pod would get, and why. Raises Unsupported and PermissionDenied as its making."""
        choice: Choice = await self._connection.call("system.choose", PodCreate(spec=spec))
        return choice

    async def doctor(self, *, fresh: bool = False) -> list[Probe]:
        """What can run here, what cannot, why, and what mends it. fresh: probe again."""
        found: ProbeList = await self._connection.call("system.doctor", Doctor(fresh=fresh))
        return found.probes

    async def events(
        self,
        *,
        since: float | None = None,
        until: float | None = None,
        follow: bool = True,
        types: Sequence[str] = (),
        ids: Sequence[str] = (),
    ) -> AsyncIterator[Event]:
        """What happens, as it happens; since: and what happened since then (Unix seconds). follow False: only that."""
        params = Events(since=since, until=until, follow=follow, types=tuple(types), ids=tuple(ids))
        async with await self._connection.stream("system.events", params) as stream:
            async for event in stream:
                yield event

    async def prune(self, *, all: bool = False, labels: Sequence[str] = ()) -> Pruned:
        """Remove stopped pods, and images, networks and volumes that nothing uses."""
        gone: Pruned = await self._connection.call("system.prune", Prune(all=all, labels=tuple(labels)))
        return gone

    async def shutdown(self) -> None:
        """Ask the daemon to end; running pods go on."""
        await self._connection.call("system.shutdown", Empty())
