"""Images made here: a layer from a directory or tarball, on a base image or on nothing. No Dockerfile."""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from drupe.errors import InvalidArgument, NotFound, Unsupported
from drupe.images import media
from drupe.images.blobs import BlobWriter
from drupe.images.docker_archive import layer_type, put_manifest
from drupe.images.media import ConfigSection, Descriptor
from drupe.images.platforms import host_platform
from drupe.images.progress import Meter, Report
from drupe.images.reference import parse
from drupe.images.streams import Readable, TarStream, peek
from drupe.images.tar import TarReader
from drupe.images.tarwrite import LayerWriter, TarOptions
from drupe.spec.control import ImageBuild, ImageInfo, Progress

if TYPE_CHECKING:
    from drupe.images.store import ImageStore

_PORT = re.compile(r"\d{1,5}(/(tcp|udp|sctp))?")
_TREE = TarOptions()
_BUILT = {"created_by": "drupe image build"}


def image_from_tar(
    store: ImageStore, source: Readable, *, tag: str, config: dict[str, Any], progress: Report
) -> ImageInfo:
    """An image whose only layer is the tar read from `source`, byte for byte."""
    with store.ingesting():
        digest, size = store.blobs.ingest(source, on_bytes=Meter(progress, "archive", "reading"))
        return install_layer(store, {}, [], (digest, size), tag=tag, section=config, created=None, progress=progress)


def image_from_tree(
    store: ImageStore,
    path: Path,
    *,
    tag: str,
    config: dict[str, Any],
    created_s: int | None = None,
    progress: Report,
) -> ImageInfo:
    """An image of a root tree, owners kept. created_s: time of image and files, for the same digest each time."""
    options = TarOptions(mtime_s=created_s)
    with store.ingesting():
        layer = _layer_of_tree(store, path, options, progress)
        return install_layer(store, {}, [], layer, tag=tag, section=config, created=created_s, progress=progress)


def build(store: ImageStore, request: ImageBuild, data: Readable | None, progress: Report) -> ImageInfo:
    """See ImageStore.build. With a base the files belong to root, as COPY has it; without one they keep their owners.

    Raises InvalidArgument, NotFound, DataLoss, ResourceExhausted.
    """
    parse(request.tag)
    if (data is None) == (not request.path):
        raise InvalidArgument("a build takes either a path or data", hint="give exactly one of the two")
    with store.ingesting():
        document, layers = base_of(store, request.base)
        section = _changed_section(document.get("config") or {}, request)
        layer = _new_layer(store, request, data, progress)
        return install_layer(
            store, document, layers, layer, tag=request.tag, section=section, created=request.source_date_epoch,
            progress=progress,
        )  # fmt: skip


# the layer


def _new_layer(store: ImageStore, request: ImageBuild, data: Readable | None, progress: Report) -> tuple[str, int]:
    options = TarOptions(
        prefix=_target(request.target),
        mtime_s=request.source_date_epoch,
        owner=(0, 0) if request.base else None,
    )
    if data is not None:
        return _layer_of_tar(store, data, options, request.base, progress)
    path = Path(request.path)
    if path.is_dir():
        return _layer_of_tree(store, path, options, progress, base=request.base)
    try:
        with path.open("rb") as file:
            return _layer_of_tar(store, file, options, request.base, progress)
    except FileNotFoundError:
        raise NotFound(f"no file {path} to build from") from None


def _target(target: str) -> str:
    parts = [part for part in target.split("/") if part not in ("", ".")]
    if not target.startswith("/") or ".." in parts:
        raise InvalidArgument(f"bad target {target!r}", hint="give an absolute path in the image without '..'")
    return "/".join(parts)


def _layer_of_tree(
    store: ImageStore, path: Path, options: TarOptions, progress: Report, *, base: str = ""
) -> tuple[str, int]:
    if not path.is_dir():
        raise NotFound(f"no directory {path} to make a layer of")
    with store.blobs.writer() as blob:
        writer = LayerWriter(blob, options)
        _parents(store, writer, base, options)
        for name in writer.tree(path):
            progress(Progress(id=name, status="left out: a socket has no place in an image"))
        return _finish(blob, writer)


def _layer_of_tar(
    store: ImageStore, source: Readable, options: TarOptions, base: str, progress: Report
) -> tuple[str, int]:
    meter = Meter(progress, "archive", "reading")
    if options == _TREE:
        return store.blobs.ingest(source, on_bytes=meter)
    head, source = peek(source, 1)
    if not head:
        raise InvalidArgument("archive is empty")
    stream = TarStream(source, limits=store.layers.limits)
    with store.blobs.writer() as blob:
        writer = LayerWriter(blob, options)
        _parents(store, writer, base, options)
        writer.repack(TarReader(stream, limits=store.layers.limits))
        stream.drain()
        meter(stream.total)
        return _finish(blob, writer)


def _finish(blob: BlobWriter, writer: LayerWriter) -> tuple[str, int]:
    writer.finish()
    return blob.commit()


def _parents(store: ImageStore, writer: LayerWriter, base: str, options: TarOptions) -> None:
    """Directories above the target, with the base's mode and owner: overlayfs shows those of the top-most layer."""
    lowers = store.lower_dirs(store.resolve(base)) if base else []
    parts = options.prefix.split("/")[:-1] if options.prefix else []
    for depth in range(1, len(parts) + 1):
        name = "/".join(parts[:depth])
        status = _in_base(lowers, name)
        if status is None:
            writer.directory(name)
        else:
            writer.directory(name, mode=stat.S_IMODE(status.st_mode), uid=status.st_uid, gid=status.st_gid)


def _in_base(lowers: list[Path], name: str) -> os.stat_result | None:
    for lower in lowers:
        try:
            status = (lower / name).lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        if stat.S_ISDIR(status.st_mode):
            return status
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            return None
        hint = (
            f"it is a link to {(lower / name).readlink()}" if stat.S_ISLNK(status.st_mode) else "choose another target"
        )
        raise InvalidArgument(f"target passes through /{name}, which is no directory in the base image", hint=hint)
    return None


# the configuration


def base_of(store: ImageStore, base: str) -> tuple[dict[str, Any], list[Descriptor]]:
    """(configuration, layers) to build on; the configuration as plain data, so that keys unknown here are kept."""
    if not base:
        return {}, []
    info = store.resolve(base)
    if info.module:
        raise Unsupported(
            f"image {base} is a WebAssembly module: nothing can be put on it", hint="build without --base"
        )
    document: dict[str, Any] = msgspec.json.decode(store.blobs.read(info.id))
    manifest = media.decode_manifest(store.blobs.read(info.digest), where=f"base image {base}")
    layers = [
        Descriptor(media_type=layer_type(store.blobs, layer.digest), digest=layer.digest, size=layer.size)
        for layer in manifest.layers
    ]
    return document, layers


def _changed_section(section: dict[str, Any], request: ImageBuild) -> dict[str, Any]:
    """The base's `config` with what the request sets. A new entrypoint forgets the base's CMD, as Docker has it."""
    section = dict(section)
    if request.entrypoint is not None:
        section["Entrypoint"] = list(request.entrypoint)
        section.pop("Cmd", None)
    if request.cmd is not None:
        section["Cmd"] = list(request.cmd)
    section["Env"] = _merged_env(section.get("Env") or [], request.env)
    for key, value in (("WorkingDir", request.cwd), ("User", request.user), ("StopSignal", request.stop_signal)):
        if value is not None:
            section[key] = value
    section["Labels"] = (section.get("Labels") or {}) | request.labels
    section["Volumes"] = (section.get("Volumes") or {}) | {volume: {} for volume in request.volumes}
    section["ExposedPorts"] = (section.get("ExposedPorts") or {}) | {_port(port): {} for port in request.ports}
    return {key: value for key, value in section.items() if value not in ([], {}, None)}


def _merged_env(base: list[str], more: tuple[str, ...]) -> list[str]:
    merged = {item.partition("=")[0]: item for item in base}
    for item in more:
        if "=" not in item or item.startswith("="):
            raise InvalidArgument(f"bad environment setting {item!r}", hint="write NAME=value")
        merged[item.partition("=")[0]] = item
    return list(merged.values())


def _port(port: str) -> str:
    if not _PORT.fullmatch(port):
        raise InvalidArgument(f"bad port {port!r}", hint="write 80 or 80/tcp")
    return port if "/" in port else f"{port}/tcp"


def install_layer(
    store: ImageStore,
    document: dict[str, Any],
    layers: list[Descriptor],
    layer: tuple[str, int],
    *,
    tag: str,
    section: dict[str, Any],
    created: int | None,
    progress: Report,
    said: Mapping[str, str] = _BUILT,
) -> ImageInfo:
    """Unpack the new layer, write configuration and manifest over it, and enter the image into the index. said: of it,
    in the configuration's history."""
    _check_section(section)
    name = [parse(tag).canonical] if tag else []
    blob, size = layer
    meter = Meter(progress, blob, "unpacking", size)
    diff_id = store.layers.unpack_new(store.blobs.path(blob), on_bytes=meter).diff_id
    layers = [*layers, Descriptor(media_type=layer_type(store.blobs, blob), digest=blob, size=size)]
    raw = media.encode(_document(document, section, diff_id, created) | _history(document, said, created))
    config = Descriptor(media_type=media.OCI_CONFIG, digest=store.blobs.put(raw), size=len(raw))
    return store.install(put_manifest(store.blobs, config, layers), names=name, progress=progress)


def _check_section(section: dict[str, Any]) -> None:
    try:
        msgspec.convert(section, ConfigSection)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"image configuration: {error}") from None


def _document(base: dict[str, Any], section: dict[str, Any], diff_id: str, created: int | None) -> dict[str, Any]:
    platform = host_platform()
    rootfs = base.get("rootfs") or {}
    return base | {
        "created": _stamp(created),
        "architecture": base.get("architecture") or platform.architecture,
        "os": base.get("os") or platform.os,
        "config": section,
        "rootfs": {"type": "layers", "diff_ids": [*rootfs.get("diff_ids", []), diff_id]},
    }


def _history(base: dict[str, Any], said: Mapping[str, str], created: int | None) -> dict[str, Any]:
    step = {"created": _stamp(created)} | {key: value for key, value in said.items() if value}
    return {"history": [*(base.get("history") or []), step]}


def _stamp(created: int | None) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(created if created is not None else time.time()))
