# Written by scripts/unasync.py from api/_async/volumes.py; change that file, not this one.
"""Named volumes."""

from __future__ import annotations

from collections.abc import Sequence

from drupe.rpc.connection import Connection
from drupe.spec.control import Delete, ListFilter, Prune, Pruned, Ref, VolumeCreate, VolumeInfo, VolumeList


class Volumes:
    """All volumes of a runtime."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def create(self, name: str = "", *, labels: dict[str, str] | None = None) -> VolumeInfo:
        """Make a volume; without a name one is chosen."""
        info: VolumeInfo = self._connection.call("volume.create", VolumeCreate(name=name, labels=labels or {}))
        return info

    def get(self, name: str) -> VolumeInfo:
        """One volume. Raises NotFound."""
        info: VolumeInfo = self._connection.call("volume.inspect", Ref(ref=name))
        return info

    def delete(self, name: str, *, force: bool = False) -> None:
        """Remove a volume and what is in it. Raises InvalidState while a container uses it."""
        self._connection.call("volume.delete", Delete(ref=name, force=force))

    def prune(self, *, labels: Sequence[str] = ()) -> Pruned:
        """Remove volumes that no container uses."""
        gone: Pruned = self._connection.call("volume.prune", Prune(labels=tuple(labels)))
        return gone

    def list(self, *, labels: Sequence[str] = ()) -> list[VolumeInfo]:
        """All volumes, or those with all of `labels`."""
        found: VolumeList = self._connection.call("volume.list", ListFilter(labels=tuple(labels)))
        return found.volumes
