"""Named volumes."""

from __future__ import annotations

from collections.abc import Sequence

from drupe.rpc.connection import AsyncConnection
from drupe.spec.control import Delete, ListFilter, Prune, Pruned, Ref, VolumeCreate, VolumeInfo, VolumeList


class AsyncVolumes:
    """All volumes of a runtime."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def create(self, name: str = "", *, labels: dict[str, str] | None = None) -> VolumeInfo:
        """Make a volume; without a name one is chosen."""
        info: VolumeInfo = await self._connection.call("volume.create", VolumeCreate(name=name, labels=labels or {}))
        return info

    async def get(self, name: str) -> VolumeInfo:
        """One volume. Raises NotFound."""
        info: VolumeInfo = await self._connection.call("volume.inspect", Ref(ref=name))
        return info

    async def delete(self, name: str, *, force: bool = False) -> None:
        """Remove a volume and what is in it. Raises InvalidState while a container uses it."""
        await self._connection.call("volume.delete", Delete(ref=name, force=force))

    async def prune(self, *, labels: Sequence[str] = ()) -> Pruned:
        """Remove volumes that no container uses."""
        gone: Pruned = await self._connection.call("volume.prune", Prune(labels=tuple(labels)))
        return gone

    async def list(self, *, labels: Sequence[str] = ()) -> list[VolumeInfo]:
        """All volumes, or those with all of `labels`."""
        found: VolumeList = await self._connection.call("volume.list", ListFilter(labels=tuple(labels)))
        return found.volumes
