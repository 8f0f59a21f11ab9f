"""Snapshots: a pod's memory and files at one moment, kept in the runtime's root, and pods made from them.

A snapshot is a directory `<root>/snapshots/<id>`: `memory` (the sandboxer's, opaque here), `shm` (what the containers
shared), `layers/<container>` (what each wrote over its image), `volumes/<container>/<n>` (its anonymous volumes) and
`manifest.json`, which is written last and names every file with its digest. It is whole or it is not there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from drupe.errors import AlreadyExists, DataLoss, InvalidState, NotFound, Unsupported
from drupe.images.files import remove_tree
from drupe.runtime.digests import changed, digests
from drupe.runtime.names import new_id
from drupe.spec.base import check_name, decode, plain
from drupe.spec.container import ContainerSpec
from drupe.spec.pod import PodSpec
from drupe.spec.snapshot import SnapshotInfo, SnapshotManifest
from drupe.state.machine import State, require

if TYPE_CHECKING:
    from drupe.runtime.core import Core
    from drupe.runtime.pod import Pod

VERSION = 1
_COPY_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Origin:
    """What a pod is restored from. directory: the snapshot's."""

    directory: Path
    manifest: SnapshotManifest

    @property
    def shm(self) -> Path:
        """What the pod's containers shared."""
        return self.directory / "shm"

    @property
    def memory(self) -> Path:
        return self.directory / "memory"

    def ids_of(self, pod: Pod) -> Mapping[str, str]:
        """New id of each container to the one it had in the snapshot."""
        return {c.id: self.manifest.old_ids[self._old(c.name)] for c in pod.containers.values()}

    def _old(self, container: str) -> str:
        """The name it had: one that was called as its pod was is called as its pod is."""
        return container if container in self.manifest.old_ids else self.manifest.info.pod_name

    def layer(self, container: str) -> Path:
        """What a container had written."""
        return self.directory / "layers" / self._old(container)

    def volume(self, container: str, target: str) -> Path | None:
        """The copy of an anonymous volume; None when there is none."""
        old = self._old(container)
        targets = self.manifest.volumes[old]
        return self.directory / "volumes" / old / str(targets.index(target)) if target in targets else None


class Snapshots:
    """Those of one runtime."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._root = core.node.paths.root / "snapshots"

    # -- finding ------------------------------------------------------------------------------------------------

    def list(self) -> list[SnapshotInfo]:
        """All, oldest first."""
        directories = self._root.iterdir() if self._root.is_dir() else ()
        found = [self._manifest(path).info for path in directories if (path / "manifest.json").exists()]
        return sorted(found, key=lambda info: info.created_at)

    def get(self, ref: str) -> SnapshotInfo:
        """By id, name or unique id prefix. NotFound."""
        every = self.list()
        for info in every:
            if ref in (info.id, info.name):
                return info
        found = [info for info in every if ref and info.id.startswith(ref)]
        if len(found) != 1:
            raise NotFound(f"no snapshot {ref!r}", hint="drupe snapshot ls lists them")
        return found[0]

    def manifest(self, ref: str) -> SnapshotManifest:
        """All that is written down of one."""
        return self._manifest(self._root / self.get(ref).id)

    def images_in_use(self) -> set[str]:
        """Manifest digests that snapshots stand on."""
        return {digest for info in self.list() for digest in info.images}

    # -- making -------------------------------------------------------------------------------------------------

    async def create(self, pod: Pod, name: str = "") -> SnapshotInfo:
        """Write a running pod down; it goes on. Unsupported for kinds and pods that cannot be, InvalidState."""
        pod.check_allowed("a snapshot of", {"snapshot"})
        if name and any(check_name(name, "snapshot") == info.name for info in self.list()):
            raise AlreadyExists(f"a snapshot named {name!r} exists", hint="remove it (drupe snapshot rm) first")
        async with pod.lock:
            _check_whole(pod)
            directory = self._root / f".new-{new_id()}"
            directory.mkdir(mode=0o700, parents=True)
            try:
                info = await self._write(pod, directory, name)
                directory.rename(self._root / info.id)
            except BaseException:
                await asyncio.to_thread(remove_tree, directory)
                raise
        self._core.node.events.publish("snapshot", "create", info.id, name=info.name, pod=pod.id)
        return info

    async def _write(self, pod: Pod, directory: Path, name: str) -> SnapshotInfo:
        (directory / "memory").mkdir(mode=0o700)
        made_by = await pod.sandboxer.snapshot(
            pod.id, directory / "memory", meanwhile=lambda: self._copy_files(pod, directory)
        )
        files = await asyncio.to_thread(digests, directory)
        id_ = new_id()
        containers = list(pod.containers.values())
        info = SnapshotInfo(
            id=id_,
            name=name or id_[:12],
            created_at=time.time(),
            pod=pod.id,
            pod_name=pod.name,
            kind=pod.kind,
            made_by=made_by,
            size_bytes=sum(file.size_bytes for file in files),
            images=[c.status.image_digest for c in containers if c.status.image_digest],
            containers=[c.name for c in containers],
        )
        manifest = SnapshotManifest(
            version=VERSION,
            info=info,
            spec=msgspec.structs.replace(pod.spec, containers=()),
            containers=[c.spec for c in containers],
            old_ids={c.name: c.id for c in containers},
            volumes={c.name: self._core.node.storage.anonymous_targets(c) for c in containers},
            files=files,
        )
        (directory / "manifest.json").write_bytes(msgspec.json.encode(plain(manifest)))
        return info

    async def _copy_files(self, pod: Pod, directory: Path) -> None:
        storage = self._core.node.storage
        await storage.copy(storage.paths.pod(pod.id) / "shm", directory / "shm")
        for container in pod.containers.values():
            layer = storage.paths.layer(container.id) / "upper"
            await storage.copy(layer, directory / "layers" / container.name)
            for number, source in enumerate(storage.anonymous_volumes(container)):
                await storage.copy(source, directory / "volumes" / container.name / str(number))

    async def remove(self, ref: str) -> None:
        """NotFound."""
        info = self.get(ref)
        doomed = self._root / f".old-{info.id}"
        (self._root / info.id).rename(doomed)
        await asyncio.to_thread(remove_tree, doomed)
        self._core.node.events.publish("snapshot", "destroy", info.id, name=info.name)

    async def sweep(self) -> None:
        """Remove what a daemon that died left half made or half removed."""
        for path in self._root.glob(".*") if self._root.is_dir() else ():
            await asyncio.to_thread(remove_tree, path)

    # -- pods from them -----------------------------------------------------------------------------------------

    async def restore(self, ref: str, name: str = "", *, other_ports: bool = False) -> Pod:
        """A new pod that goes on where the snapshot was made, with id, name, host name and addresses of its own.
        other_ports: publish on free ports of the host instead of the same. DataLoss when the snapshot was changed."""
        info = self.get(ref)
        directory = self._root / info.id
        manifest = self._manifest(directory)
        wrong = await asyncio.to_thread(changed, directory, manifest.files)
        if wrong:
            raise DataLoss(f"snapshot {info.name} is damaged", cause=wrong, hint="make another")
        return await self._go_on(directory, manifest, name, other_ports=other_ports)

    async def _go_on(self, directory: Path, manifest: SnapshotManifest, name: str, *, other_ports: bool) -> Pod:
        spec = _fresh(manifest, name, other_ports=other_ports)
        return await self._core.run_pod(spec, origin=Origin(directory, manifest))

    async def fork(self, pod: Pod, name: str = "") -> Pod:
        """A second pod that goes on from where this one is; this one goes on too."""
        info = await self.create(pod)
        try:  # nobody had time to change what was written just now
            directory = self._root / info.id
            return await self._go_on(directory, self._manifest(directory), name, other_ports=True)
        finally:
            await self.remove(info.id)

    def _manifest(self, directory: Path) -> SnapshotManifest:
        try:
            data = msgspec.json.decode((directory / "manifest.json").read_bytes())
            manifest = decode(SnapshotManifest, data, where="snapshot")
        except (OSError, msgspec.DecodeError) as error:
            raise DataLoss(f"snapshot {directory.name} cannot be read", cause=str(error)) from None
        if manifest.version != VERSION:
            raise Unsupported(
                f"snapshot {directory.name} has form {manifest.version}, this version of drupe reads {VERSION}"
            )
        return manifest


def _check_whole(pod: Pod) -> None:
    """Whether all of it can be written down: what lives elsewhere could not come back."""
    require(pod.what, pod.state, State.RUNNING, to="make a snapshot of it")
    for container in pod.containers.values():
        require(container.what, container.state, State.RUNNING, to="make a snapshot of its pod")
        if container.spec.secrets:
            raise Unsupported(
                f"{container.what} has secrets, which are never written to disk", kind=pod.kind, feature="snapshot"
            )
        if not container.spec.image:
            raise Unsupported(
                f"{container.what} runs in a host directory, which a snapshot cannot hold",
                kind=pod.kind,
                feature="snapshot",
            )
    if not pod.containers:
        raise InvalidState(f"{pod.what} has no containers", hint="a snapshot is of what runs")


def _fresh(manifest: SnapshotManifest, name: str, *, other_ports: bool) -> PodSpec:
    """The spec of the new pod: nothing in it that only one pod may have."""
    spec = manifest.spec
    attachments = tuple(
        msgspec.structs.replace(one, ipv4=None, ipv6=None, mac=None) for one in spec.network.attachments
    )
    ports = tuple(msgspec.structs.replace(port, host_port=0) for port in spec.ports) if other_ports else spec.ports
    containers = tuple(_nameless(c, manifest.info.pod_name) for c in manifest.containers)
    return msgspec.structs.replace(
        spec,
        id=None,
        name=name or None,
        sandbox=manifest.info.kind,
        hostname=None,
        network=msgspec.structs.replace(spec.network, attachments=attachments),
        ports=ports,
        containers=containers,
    )


def _nameless(container: ContainerSpec, pod_name: str) -> ContainerSpec:
    return msgspec.structs.replace(container, id=None, name=None if container.name == pod_name else container.name)
