"""Snapshots: pods at one moment, kept by the runtime."""

from __future__ import annotations

from drupe.api._async.pods import AsyncPod
from drupe.rpc.connection import AsyncConnection
from drupe.spec.control import Empty, Ref
from drupe.spec.snapshot import SnapshotCreate, SnapshotInfo, SnapshotList, SnapshotManifest, SnapshotRestore
from drupe.spec.status import PodStatus


class AsyncSnapshots:
    """All snapshots of a runtime."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def create(self, pod: str, name: str = "") -> SnapshotInfo:
        """Write a running pod down, memory and files; it goes on. Raises Unsupported for kinds that cannot be."""
        info: SnapshotInfo = await self._connection.call("snapshot.create", SnapshotCreate(ref=pod, name=name))
        return info

    async def restore(self, ref: str, name: str = "", *, other_ports: bool = False) -> AsyncPod:
        """A new pod that goes on where the snapshot was made, with an identity of its own. other_ports: publish on
        free ports of the host instead of the same. Raises DataLoss when the snapshot was damaged."""
        wanted = SnapshotRestore(ref=ref, name=name, other_ports=other_ports)
        status: PodStatus = await self._connection.call("snapshot.restore", wanted)
        return AsyncPod(self._connection, status.id)

    async def get(self, ref: str) -> SnapshotManifest:
        """All that is written down of one. Raises NotFound."""
        manifest: SnapshotManifest = await self._connection.call("snapshot.inspect", Ref(ref=ref))
        return manifest

    async def delete(self, ref: str) -> None:
        """Remove one. Raises NotFound."""
        await self._connection.call("snapshot.delete", Ref(ref=ref))

    async def list(self) -> list[SnapshotInfo]:
        """All, oldest first."""
        found: SnapshotList = await self._connection.call("snapshot.list", Empty())
        return found.snapshots
