# Written by scripts/unasync.py from api/_async/snapshots.py; change that file, not this one.
"""Snapshots: pods at one moment, kept by the runtime."""

from __future__ import annotations

from drupe.api._sync.pods import Pod
from drupe.rpc.connection import Connection
from drupe.spec.control import Empty, Ref
from drupe.spec.snapshot import SnapshotCreate, SnapshotInfo, SnapshotList, SnapshotManifest, SnapshotRestore
from drupe.spec.status import PodStatus


class Snapshots:
    """All snapshots of a runtime."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def create(self, pod: str, name: str = "") -> SnapshotInfo:
        """Write a running pod down, memory and files; it goes on. Raises Unsupported for kinds that cannot be."""
        info: SnapshotInfo = self._connection.call("snapshot.create", SnapshotCreate(ref=pod, name=name))
        return info

    def restore(self, ref: str, name: str = "", *, other_ports: bool = False) -> Pod:
        """A new pod that goes on where the snapshot was made, with an identity of its own. other_ports: publish on
        free ports of the host instead of the same. Raises DataLoss when the snapshot was damaged."""
        wanted = SnapshotRestore(ref=ref, name=name, other_ports=other_ports)
        status: PodStatus = self._connection.call("snapshot.restore", wanted)
        return Pod(self._connection, status.id)

    def get(self, ref: str) -> SnapshotManifest:
        """All that is written down of one. Raises NotFound."""
        manifest: SnapshotManifest = self._connection.call("snapshot.inspect", Ref(ref=ref))
        return manifest

    def delete(self, ref: str) -> None:
        """Remove one. Raises NotFound."""
        self._connection.call("snapshot.delete", Ref(ref=ref))

    def list(self) -> list[SnapshotInfo]:
        """All, oldest first."""
        found: SnapshotList = self._connection.call("snapshot.list", Empty())
        return found.snapshots
