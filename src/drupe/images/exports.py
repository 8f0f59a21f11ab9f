"""Export: OCI layouts (directory or archive) and docker archives, the same bytes for the same images."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

import msgspec

from drupe.errors import DataLoss, InvalidArgument, Unavailable, Unsupported
from drupe.images import media
from drupe.images.docker_archive import SavedImage
from drupe.images.files import storage_errors, write_atomic
from drupe.images.index import ImageRecord
from drupe.images.layout import CONTAINERD_NAME, LAYOUT_VERSION, REF_NAME, blob_name
from drupe.images.media import Descriptor, Index, Platform, hex_of
from drupe.images.progress import Meter, Report
from drupe.images.reference import parse
from drupe.images.streams import Counting, Readable, decompressed

if TYPE_CHECKING:
    from drupe.images.store import ImageStore
    from drupe.spec.control import ImageExport

FORMATS = ("oci-archive", "docker-archive")


class Sink(Protocol):
    """Where named files go. A name is added once; later ones of the same content are left out."""

    def add(self, name: str, source: Readable, size: int) -> None: ...


class TarSink:
    """A tar stream: time 0, owner root, sorted as added."""

    def __init__(self, data: BinaryIO) -> None:
        self._data = _Whole(data)
        self._tar = tarfile.open(fileobj=cast("BinaryIO", self._data), mode="w|", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - closed by close()
        self._names: set[str] = set()

    def abandon(self) -> None:
        """After a failure: tarfile would write its last buffer once more when it is collected."""
        self._data.abandoned = True

    def add(self, name: str, source: Readable, size: int) -> None:
        if name in self._names:
            return
        self._names.add(name)
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o644
        self._tar.addfile(info, io.BufferedReader(_Raw(source)))

    def close(self) -> None:
        self._tar.close()


class _Whole:
    """Writes all it is given: a raw pipe may take less at a time, which tarfile would not notice."""

    def __init__(self, data: BinaryIO) -> None:
        self._data = data
        self.abandoned = False

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        while view and not self.abandoned:
            view = view[self._data.write(view) :]
        return len(data)


class _Raw(io.RawIOBase):
    """A Readable as the raw file that io wants."""

    def __init__(self, source: Readable) -> None:
        super().__init__()
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        data = self._source.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class DirectorySink:
    """An OCI layout directory on the host."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def add(self, name: str, source: Readable, size: int) -> None:
        path = self._directory / name
        if path.exists() and path.stat().st_size == size and name.startswith("blobs/"):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if not name.startswith("blobs/"):
            write_atomic(path, source.read(size))
            return
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            while data := source.read(1 << 20):
                file.write(data)
        partial.rename(path)


def export(store: ImageStore, request: ImageExport, data: BinaryIO, progress: Report) -> None:
    """See ImageStore.export. Raises NotFound, InvalidArgument, DataLoss; Unavailable when the reader goes away."""
    if request.format not in FORMATS:
        raise InvalidArgument(f"unknown export format {request.format!r}", hint=f"one of {', '.join(FORMATS)}")
    if not request.refs:
        raise InvalidArgument("no image to export")
    chosen = _chosen(store, request.refs)
    sink = TarSink(data)
    try:
        if request.format == "oci-archive":
            write_layout(store, chosen, sink, progress)
        else:
            write_docker_archive(store, chosen, sink, progress)
        sink.close()
        data.flush()
    except BrokenPipeError:
        raise Unavailable("the reader of the export went away") from None
    finally:
        sink.abandon()


def export_directory(store: ImageStore, refs: tuple[str, ...], directory: Path, progress: Report) -> None:
    """Write images as an OCI layout directory."""
    with storage_errors(f"cannot write the image layout {directory}"):
        write_layout(store, _chosen(store, refs), DirectorySink(directory), progress)


def _chosen(store: ImageStore, refs: tuple[str, ...]) -> list[tuple[ImageRecord, list[str]]]:
    """(record, canonical names to carry) of each image: the name asked for, or all when asked by id."""
    catalogue = store.index.read()
    chosen: dict[str, list[str]] = {}
    for ref in refs:
        digest = store.resolve(ref).digest
        asked = [name for name in catalogue.names_of(digest) if name == _canonical(ref)]
        names = chosen.setdefault(digest, [])
        names += [name for name in asked or catalogue.names_of(digest) if name not in names]
    return [(catalogue.images[digest], names) for digest, names in chosen.items()]


def _canonical(ref: str) -> str:
    try:
        return parse(ref).canonical
    except InvalidArgument:
        return ""


def write_layout(store: ImageStore, chosen: list[tuple[ImageRecord, list[str]]], sink: Sink, progress: Report) -> None:
    """An OCI layout (image-spec image-layout.md); one index entry per name."""
    descriptors = []
    for record, names in chosen:
        for digest in (*(layer.digest for layer in record.layers), record.id, record.digest):
            _add_blob(store, sink, digest, progress)
        descriptors += [_descriptor(store, record, name) for name in names or [""]]
    _add_bytes(sink, "oci-layout", msgspec.json.encode({"imageLayoutVersion": LAYOUT_VERSION}))
    index = Index(schema_version=2, media_type=media.OCI_INDEX, manifests=descriptors)
    _add_bytes(sink, "index.json", media.encode(index))


def _descriptor(store: ImageStore, record: ImageRecord, name: str) -> Descriptor:
    annotations = {REF_NAME: parse(name).familiar, CONTAINERD_NAME: name} if name else None
    platform = Platform(os=record.os, architecture=record.architecture, variant=record.variant)
    return Descriptor(
        media_type=record.media_type, digest=record.digest, size=store.blobs.size(record.digest),
        annotations=annotations, platform=platform,
    )  # fmt: skip


def write_docker_archive(
    store: ImageStore, chosen: list[tuple[ImageRecord, list[str]]], sink: Sink, progress: Report
) -> None:
    """What `docker load` reads: layers as plain tars under their diff ids."""
    saved = []
    for record, names in chosen:
        if record.module:
            raise Unsupported(
                f"image {record.digest} is a WebAssembly module, which a docker archive cannot hold",
                hint="use --format oci-archive",
            )
        for layer in record.layers:
            _add_plain_layer(store, sink, layer.digest, layer.diff_id, progress)
        config_name = f"{hex_of(record.id)}.json"
        _add_bytes(sink, config_name, store.blobs.read(record.id))
        layers = [f"{hex_of(layer.diff_id)}.tar" for layer in record.layers]
        saved.append(SavedImage(config=config_name, layers=layers, repo_tags=[parse(name).familiar for name in names]))
    _add_bytes(sink, "manifest.json", media.encode(saved))


def _add_bytes(sink: Sink, name: str, data: bytes) -> None:
    sink.add(name, io.BytesIO(data), len(data))


def _add_blob(store: ImageStore, sink: Sink, digest: str, progress: Report) -> None:
    size = store.blobs.size(digest)
    with store.blobs.path(digest).open("rb") as file:
        sink.add(blob_name(digest), Counting(file, Meter(progress, digest, "exporting", size)), size)


def _add_plain_layer(store: ImageStore, sink: Sink, digest: str, diff_id: str, progress: Report) -> None:
    size = store.layers.size(diff_id)
    if not size:
        raise DataLoss(f"layer {diff_id} is not unpacked", hint="pull or import the image again")
    with store.blobs.path(digest).open("rb") as file:
        plain = _Chunks(decompressed(file))
        sink.add(f"{hex_of(diff_id)}.tar", Counting(plain, Meter(progress, digest, "exporting", size)), size)


class _Chunks:
    """An iterator of chunks as a Readable."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, b""

    def read(self, size: int, /) -> bytes:
        while not self._rest:
            following = next(self._chunks, None)
            if following is None:
                return b""
            self._rest = following
        data, self._rest = self._rest[:size], self._rest[size:]
        return data
