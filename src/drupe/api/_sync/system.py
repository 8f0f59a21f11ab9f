# Written by scripts/unasync.py from api/_async/system.py; change that file, not this one.
"""The runtime itself and its host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from drupe.rpc.connection import Connection
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


class System:
    """Questions about the runtime as a whole."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def info(self) -> SystemInfo:
        """Version, directories, host, counts, what recovery did."""
        info: SystemInfo = self._connection.call("system.info", Empty())
        return info

    def df(self) -> list[DiskUsage]:
        """Disk use of images, containers and volumes."""
        found: DiskUsageList = self._connection.call("system.df", Empty())
        return found.items

    def capabilities(self) -> dict[str, dict[str, str]]:
        """Sandbox kind → feature → "yes", "no: reason" or "limited: reason"."""
        table: CapabilityTable = self._connection.call("system.capabilities", Empty())
        return table.kinds

    def kinds(self) -> list[KindInfo]:
        """The kinds of sandbox, strongest first: how strong, what isolates, whether and why not they run here."""
        table: CapabilityTable = self._connection.call("system.capabilities", Empty())
        return table.about

    def choose(self, spec: PodSpec) -> Choice:
        """The kind of sandbox that a pod would get, and why. Raises Unsupported and PermissionDenied as its making."""
        choice: Choice = self._connection.call("system.choose", PodCreate(spec=spec))
        return choice

    def doctor(self, *, fresh: bool = False) -> list[Probe]:
        """What can run here, what cannot, why, and what mends it. fresh: probe again."""
        found: ProbeList = self._connection.call("system.doctor", Doctor(fresh=fresh))
        return found.probes

    def events(
        self,
        *,
        since: float | None = None,
        until: float | None = None,
        follow: bool = True,
        types: Sequence[str] = (),
        ids: Sequence[str] = (),
    ) -> Iterator[Event]:
        """What happens, as it happens; since: and what happened since then (Unix seconds). follow False: only that."""
        params = Events(since=since, until=until, follow=follow, types=tuple(types), ids=tuple(ids))
        with self._connection.stream("system.events", params) as stream:
            for event in stream:
                yield event

    def prune(self, *, all: bool = False, labels: Sequence[str] = ()) -> Pruned:
        """Remove stopped pods, and images, networks and volumes that nothing uses."""
        gone: Pruned = self._connection.call("system.prune", Prune(all=all, labels=tuple(labels)))
        return gone

    def shutdown(self) -> None:
        """Ask the daemon to end; running pods go on."""
        self._connection.call("system.shutdown", Empty())
