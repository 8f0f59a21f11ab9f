"""Snapshots of pods: what is known of one, and what is written down of it."""

from __future__ import annotations

from drupe.spec.base import Record, Spec
from drupe.spec.container import ContainerSpec
from drupe.spec.pod import PodSpec


class SnapshotInfo(Record):
    """A pod at one moment: memory and files. pod: the id and name it had. made_by: program and version that can read
    the memory. images: what its containers' layers stand on, as digests."""

    id: str
    name: str
    created_at: float
    pod: str
    pod_name: str
    kind: str
    made_by: str
    size_bytes: int
    images: list[str]
    containers: list[str]


class SnapshotFile(Record):
    """A file of a snapshot. path: below its directory. sha256: of its content, as hex."""

    path: str
    size_bytes: int
    sha256: str


class SnapshotManifest(Record):
    """version: of this form. spec: the pod's, its containers' beside it in the order of their creation. old_ids:
    container name to the id it had. volumes: container name to the targets of its anonymous volumes, in the order of
    their copies."""

    version: int
    info: SnapshotInfo
    spec: PodSpec
    containers: list[ContainerSpec]
    old_ids: dict[str, str]
    volumes: dict[str, list[str]]
    files: list[SnapshotFile]


class SnapshotCreate(Spec):
    """Of the pod `ref`. name "": the id's first digits."""

    ref: str
    name: str = ""


class SnapshotRestore(Spec):
    """ref: the snapshot. name: of the new pod, "" for a made-up one. other_ports: publish on free ports of the host."""

    ref: str
    name: str = ""
    other_ports: bool = False


class SnapshotList(Record):
    snapshots: list[SnapshotInfo]


class Fork(Spec):
    """A second pod that goes on from where the pod `ref` is. name: of the new one, "" for a made-up one."""

    ref: str
    name: str = ""
