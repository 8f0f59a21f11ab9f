"""The image store: content-addressed, shared by processes, safe against crashes.

    index.json                 names and images          blobs/sha256/<hex>   manifests, configurations, layer tars
    layers/<hex>/diff          unpacked once, shared     l/<short>            links to them, for mount options
    erofs/<hex>                whole images (erofs.py)   tmp/                 work in progress
    locks/, *.lock             flock(2)

Long work (`pull`, `push`, `import_image`, `export`, `build`) blocks and reports through `progress`: run it in a thread.
Lookups are answered from memory as long as index.json is the file that was read.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from drupe.errors import InvalidArgument, InvalidState, NotFound
from drupe.images import media
from drupe.images.blobs import BlobStore
from drupe.images.config import ImageConfig, image_config
from drupe.images.files import lock_file, remove_tree, storage_errors, try_exclusive
from drupe.images.index import Catalogue, ImageRecord, Index, LayerRecord
from drupe.images.layers import LayerStore
from drupe.images.limits import DEFAULT_LIMITS, Limits
from drupe.images.lookup import familiar, find, has_labels
from drupe.images.media import hex_of
from drupe.images.progress import Meter, Report, silent
from drupe.images.reference import parse
from drupe.images.rootfs import EMPTY_LAYER
from drupe.spec.control import (
    DiskUsage,
    ImageBuild,
    ImageExport,
    ImageImport,
    ImageInfo,
    ImageList,
    ImagePull,
    ImagePush,
    Progress,
    Pruned,
)

_JUST_S = 60.0  # whoever asked for an EROFS file opens it soon


class ImageStore:
    """All methods may be called from any thread. root: made on first write."""

    def __init__(self, root: Path, *, limits: Limits = DEFAULT_LIMITS) -> None:
        self.root = Path(root)
        self.blobs = BlobStore(self.root)
        self.layers = LayerStore(self.root, limits=limits)
        self.index = Index(self.root)
        self.erofs = self.root / "erofs"
        self._resolved: tuple[int, dict[str, ImageInfo]] = (-1, {})
        self._lowers: tuple[int, dict[str, tuple[str, ...]]] = (-1, {})
        self._documents: dict[str, tuple[dict[str, Any], ImageConfig]] = {}

    # looking up

    def resolve(self, ref: str) -> ImageInfo:
        """The image called `ref`: a name, name@digest, digest, id, or a unique prefix of one. Treat it as read-only.

        Raises NotFound with near names, InvalidArgument for a bad reference or an ambiguous prefix.
        """
        catalogue = self.index.read()
        if self._resolved[0] != self.index.generation:
            self._resolved = (self.index.generation, {})
        cache = self._resolved[1]
        if ref not in cache:
            digest, _ = find(catalogue, ref)
            cache[ref] = self._info(catalogue, catalogue.images[digest])
        return cache[ref]

    def inspect(self, ref: str) -> ImageInfo:
        return self.resolve(ref)

    def config(self, info: ImageInfo) -> ImageConfig:
        """The typed configuration of an image."""
        return self._document(info.digest, info.id)[1]

    def module_path(self, info: ImageInfo) -> Path:
        """The file of an image that is a WebAssembly module."""
        return self.blobs.path(info.module)

    def lower_dirs(self, info: ImageInfo) -> list[Path]:
        """Directories of the layers for overlayfs, top-most first."""
        self.lower_links(info)
        return [self.layers.path(diff_id) for diff_id in reversed(info.layers)] or [self.root / EMPTY_LAYER]

    def lower_links(self, info: ImageInfo) -> tuple[str, ...]:
        """The same as short names relative to `root`, top-most first. A layer that has gone is unpacked again.

        Never empty: an image without layers stands on an empty directory.
        """
        self.index.read()
        if self._lowers[0] != self.index.generation:
            self._lowers = (self.index.generation, {})
        cache = self._lowers[1]
        if info.digest not in cache:
            record = self.record(info.digest)
            if record.module:
                return (EMPTY_LAYER,)
            for layer in record.layers:
                if not self.layers.has(layer.diff_id):
                    self.layers.ensure(layer.diff_id, self.blobs.path(layer.digest))
            links = tuple(self.layers.link(layer.diff_id) for layer in reversed(record.layers))
            cache[info.digest] = links or (EMPTY_LAYER,)
        return cache[info.digest]

    def list(self, labels: Collection[str] = ()) -> ImageList:
        """All images, by name. labels: "k" or "k=v", all must match."""
        catalogue = self.index.read()
        infos = [self._info(catalogue, record) for record in catalogue.images.values()]
        found = [info for info in infos if has_labels(info.labels, labels)]
        return ImageList(images=sorted(found, key=lambda info: (not info.names, info.names, info.digest)))

    # changing

    def tag(self, source: str, target: str) -> ImageInfo:
        """Give image `source` the further name `target`, taking it from another image if need be."""
        name = parse(target)
        if name.digest:
            raise InvalidArgument(f"a tag cannot have a digest: {target!r}")

        def change(catalogue: Catalogue) -> None:
            digest, _ = find(catalogue, source)
            catalogue.names[name.canonical] = digest

        self._prepare()
        self.index.update(change)
        return self.resolve(target)

    def delete(self, ref: str, *, force: bool = False, in_use: Collection[str] = ()) -> Pruned:
        """Take the name `ref` away, and with its last name the image, its blobs, layers and EROFS file.

        in_use: digests or ids of images that containers stand on; those stay. force: delete by id even if it has
        several names; of an image in use only the names go. Raises NotFound, InvalidState.
        """
        removed: list[str] = []

        def change(catalogue: Catalogue) -> None:
            digest, name = find(catalogue, ref)
            names = catalogue.names_of(digest)
            doomed = [name] if name else names
            if not name and len(names) > 1 and not force:
                raise InvalidState(
                    f"image {ref} has {len(names)} names: {', '.join(map(familiar, names))}",
                    hint="delete the names one by one, or use --force",
                )
            last = set(doomed) == set(names)
            used = digest in in_use or catalogue.images[digest].id in in_use
            if last and used and not force:
                raise InvalidState(f"image {ref} is used by a container", hint="delete the container first")
            for each in doomed:
                del catalogue.names[each]
                removed.append(familiar(each))
            if last and not used:
                catalogue.drop(digest)
                removed.append(digest)

        self._prepare()
        self.index.update(change)
        return Pruned(removed=removed, reclaimed_bytes=self._sweep(partials=False))

    def prune(self, *, all: bool = False, in_use: Collection[str] = (), labels: Collection[str] = ()) -> Pruned:
        """Remove images without a name (all: also named ones) that no container uses, EROFS files of images that none
        uses now (they are made again), and leftovers of killed work."""
        dropped: list[ImageRecord] = []

        def change(catalogue: Catalogue) -> None:
            for record in tuple(catalogue.images.values()):
                used = record.digest in in_use or record.id in in_use
                named = bool(catalogue.names_of(record.digest))
                if not used and (all or not named) and has_labels(record.labels, labels):
                    dropped.append(catalogue.drop(record.digest))

        self._prepare()
        self.index.update(change)
        freed = self._sweep(partials=True, in_use=in_use)
        return Pruned(removed=[record.digest for record in dropped], reclaimed_bytes=freed)

    def disk_usage(self, in_use: Collection[str] = ()) -> DiskUsage:
        """Blobs, unpacked layers and EROFS files. Reclaimable: what only images without a container need."""
        catalogue = self.index.read()
        records = list(catalogue.images.values())
        active = [record for record in records if record.digest in in_use or record.id in in_use]
        total, kept = self._bytes_of(records), self._bytes_of(active)
        return DiskUsage(
            type="images",
            total=len(records),
            active=len(active),
            size_bytes=total,
            reclaimable_bytes=total - kept,
        )

    # long work

    def pull(self, request: ImagePull, progress: Report = silent) -> ImageInfo:
        """Fetch an image from a registry. Raises NotFound, PermissionDenied, Unavailable, DataLoss, InvalidArgument."""
        from drupe.images.pull import pull  # the HTTP client is paid for only here

        return pull(self, request, progress)

    def push(self, request: ImagePush, progress: Report = silent) -> ImageInfo:
        """Send an image to a registry. Raises as `pull`."""
        from drupe.images.push import push  # as above

        return push(self, request, progress)

    def import_image(self, request: ImageImport, data: BinaryIO | None = None, progress: Report = silent) -> ImageList:
        """Images from an archive (`data` or `request.path`), an OCI layout directory or a root tree."""
        from drupe.images.imports import import_image  # long work only

        return import_image(self, request, data, progress)

    def export(self, request: ImageExport, data: BinaryIO, progress: Report = silent) -> None:
        """Write images to `data` as an OCI or docker archive."""
        from drupe.images.exports import export  # long work only

        export(self, request, data, progress)

    def build(self, request: ImageBuild, data: BinaryIO | None = None, progress: Report = silent) -> ImageInfo:
        """An image from a directory or tarball, on a base or on nothing."""
        from drupe.images.build import build  # long work only

        return build(self, request, data, progress)

    # what long work is made of

    @contextmanager
    def ingesting(self) -> Iterator[None]:
        """Hold this while bringing in blobs: `prune` then keeps what has no name yet. Clears leftovers first."""
        self._prepare()
        with ExitStack() as stack:
            with storage_errors("cannot use the image store"):
                fd = stack.enter_context(lock_file(self.root / "ingest.lock"))
                if try_exclusive(fd):
                    self._clear_scratch()
                fcntl.flock(fd, fcntl.LOCK_SH)
            yield

    def install(
        self,
        manifest_digest: str,
        *,
        names: Collection[str] = (),
        aliases: Collection[str] = (),
        progress: Report = silent,
    ) -> ImageInfo:
        """Make an image of blobs that are all in the store: unpack its layers, then enter it into the index."""

        def change(catalogue: Catalogue) -> None:
            catalogue.images[record.digest] = record
            catalogue.names |= dict.fromkeys(names, record.digest)
            catalogue.aliases |= dict.fromkeys(aliases, record.digest)

        with self.ingesting():
            record = self._unpack(manifest_digest, progress)
            if record.digest not in self.index.read().images:
                self.layers.sync()
            self.index.update(change)
        progress(Progress(id=record.digest, status="done"))
        return self._info(self.index.read(), record)

    def _unpack(self, manifest_digest: str, progress: Report) -> ImageRecord:
        where = f"manifest {manifest_digest}"
        raw = self.blobs.read(manifest_digest)
        manifest = media.decode_manifest(raw, where=where)
        config = self.blobs.read(manifest.config.digest)
        document = media.decode_config_of(manifest, config, where=f"config of {where}")
        pairs = list(zip(manifest.layers, document.rootfs.diff_ids, strict=True))
        for layer, diff_id in pairs:
            if manifest.module is None and not self.layers.has(diff_id):
                size = self.blobs.size(layer.digest)
                meter = Meter(progress, layer.digest, "unpacking", size)
                self.layers.ensure(diff_id, self.blobs.path(layer.digest), on_bytes=meter)
        section = document.config or media.ConfigSection()
        return ImageRecord(
            digest=manifest_digest,
            id=manifest.config.digest,
            media_type=manifest.media_type or media.OCI_MANIFEST,
            layers=tuple(LayerRecord(layer.digest, diff_id, layer.size) for layer, diff_id in pairs),
            os=document.os,
            architecture=document.architecture,
            variant=document.variant or "",
            created=document.created or "",
            labels=section.labels or {},
            module=manifest.module is not None,
        )

    def _prepare(self) -> None:
        with storage_errors(f"cannot make the image store {self.root}"):
            for path in (
                self.blobs.directory,
                self.layers.directory,
                self.layers.links,
                self.layers.locks,
                self.blobs.scratch,
                self.erofs,
            ):
                path.mkdir(parents=True, exist_ok=True, mode=0o700)
            (self.root / EMPTY_LAYER).mkdir(exist_ok=True)

    # inside

    def record(self, digest: str) -> ImageRecord:
        """What the index says of an image. NotFound."""
        try:
            return self.index.read().images[digest]
        except KeyError:
            raise NotFound(f"no image {digest}", hint="it was deleted meanwhile") from None

    def _document(self, digest: str, image_id: str) -> tuple[dict[str, Any], ImageConfig]:
        if digest not in self._documents:
            manifest = media.decode_manifest(self.blobs.read(digest), where=f"manifest {digest}")
            raw = self.blobs.read(image_id)
            document = media.decode_config_of(manifest, raw, where=f"config {image_id}")
            section = msgspec.json.decode(raw).get("config") or {}
            self._documents[digest] = (section, image_config(document))
        return self._documents[digest]

    def _info(self, catalogue: Catalogue, record: ImageRecord) -> ImageInfo:
        return ImageInfo(
            id=record.id,
            digest=record.digest,
            names=[familiar(name) for name in catalogue.names_of(record.digest)],
            os=record.os,
            architecture=record.architecture,
            created=record.created,
            size_bytes=record.size_bytes,
            layers=[] if record.module else [layer.diff_id for layer in record.layers],
            config=self._document(record.digest, record.id)[0],
            labels=record.labels,
            module=record.layers[0].digest if record.module else "",
        )

    def _bytes_of(self, records: Collection[ImageRecord]) -> int:
        layers = {layer for record in records for layer in record.layers}
        documents = {digest for record in records for digest in (record.digest, record.id)}
        packed = {layer.digest: layer.size for layer in layers}
        unpacked = {layer.diff_id for layer in layers}
        return (
            sum(packed.values())
            + sum(map(self.layers.size, unpacked))
            + sum(self.blobs.size(digest) for digest in documents)
            + sum(_disk_bytes(self.erofs / hex_of(record.digest)) for record in records)
        )

    def _sweep(self, *, partials: bool, in_use: Collection[str] | None = None) -> int:
        """Remove blobs, layers and EROFS files that no image names; the bytes won. partials: broken-off downloads too.
        in_use: and EROFS files of all other images, unless one was asked for just now.

        Nothing is removed while somebody brings something in, which may need it: then a later sweep finds it.
        """
        with storage_errors("cannot remove unused layers"), lock_file(self.root / "ingest.lock") as fd:
            if not try_exclusive(fd):
                return 0
            self._clear_scratch()
            catalogue = self.index.read()
            blobs, layers = _referenced(catalogue)
            freed = sum(self._sweep_blob(path, partials) for path in _names_not_in(self.blobs.directory, blobs))
            freed += sum(self._sweep_layer(path.name) for path in _names_not_in(self.layers.directory, layers))
            freed += sum(map(_remove_file, _spent_erofs(self.erofs, catalogue, in_use)))
            if partials:
                for lock in list(self.layers.locks.iterdir()):
                    lock.unlink()
            return freed

    def _sweep_blob(self, path: Path, partials: bool) -> int:
        if path.suffix and not partials:
            return 0
        size = path.stat().st_size
        path.unlink()
        return size

    def _sweep_layer(self, name: str) -> int:
        diff_id = f"sha256:{name}"
        size = self.layers.size(diff_id)
        self.layers.delete(diff_id)
        return size

    def _clear_scratch(self) -> None:
        for path in list(self.blobs.scratch.iterdir()):
            remove_tree(path)


def _spent_erofs(directory: Path, catalogue: Catalogue, in_use: Collection[str] | None) -> list[Path]:
    """Files of images that are gone; and, where it is said which images are used, of those that are not."""
    spent = _names_not_in(directory, catalogue.images)
    if in_use is not None:
        active = {record.digest for record in catalogue.images.values() if {record.digest, record.id} & set(in_use)}
        idle = [path for path in _names_not_in(directory, active) if path not in spent]
        spent += [path for path in idle if time.time() - path.stat().st_mtime > _JUST_S]
    return spent


def _disk_bytes(path: Path) -> int:
    """What a file takes on disk; a missing one nothing."""
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def _remove_file(path: Path) -> int:
    size = _disk_bytes(path)
    path.unlink(missing_ok=True)
    return size


def _names_not_in(directory: Path, digests: Collection[str]) -> list[Path]:
    return [path for path in directory.iterdir() if f"sha256:{path.name}" not in digests]


def _referenced(catalogue: Catalogue) -> tuple[set[str], set[str]]:
    """(blob digests, diff ids) that images need."""
    blobs: set[str] = set()
    layers: set[str] = set()
    for record in catalogue.images.values():
        blobs |= {record.digest, record.id}
        blobs |= {layer.digest for layer in record.layers}
        layers |= {layer.diff_id for layer in record.layers}
    return blobs, layers
