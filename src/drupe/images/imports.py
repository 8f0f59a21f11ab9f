"""Import: find out what the bytes are (OCI layout or archive, docker-archive, root tree) and bring them in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from drupe.errors import InvalidArgument, NotFound, PermissionDenied
from drupe.images.archive import ImageFiles, LayoutDirectory, SpooledArchive
from drupe.images.docker_archive import read_docker_archive
from drupe.images.layout import read_layout
from drupe.images.limits import DEFAULT_LIMITS, Limits
from drupe.images.modules import MAGIC, image_from_module
from drupe.images.platforms import host_platform
from drupe.images.progress import Report
from drupe.images.reference import parse
from drupe.images.streams import Readable, TarStream, peek
from drupe.images.tar import TarReader
from drupe.spec.control import ImageImport, ImageInfo, ImageList, Progress

if TYPE_CHECKING:
    from drupe.images.store import ImageStore

FORMATS = ("auto", "oci", "oci-archive", "docker-archive", "rootfs", "wasm")
_PEEK_BYTES = 64 * 1024  # enough compressed bytes to see the first member of any archive
_ARCHIVE_MEMBER = re.compile(
    rb"(\./)?(blobs|oci-layout|index\.json|manifest\.json|repositories|[0-9a-f]{64}(\.tar|\.json)?|sha256:[0-9a-f]{64})(/.*)?"
)


def import_image(store: ImageStore, request: ImageImport, data: BinaryIO | None, progress: Report) -> ImageList:
    """See ImageStore.import_image. Raises InvalidArgument, NotFound, DataLoss, ResourceExhausted."""
    if request.format not in FORMATS:
        raise InvalidArgument(f"unknown image format {request.format!r}", hint=f"one of {', '.join(FORMATS)}")
    if request.tag:
        parse(request.tag)
    if (data is None) == (not request.path):
        raise InvalidArgument("an import takes either a path or data", hint="give exactly one of the two")
    with store.ingesting():
        if data is not None:
            return _from_stream(store, request, data, request.title, progress)
        return _from_path(store, request, Path(request.path), progress)


def _from_path(store: ImageStore, request: ImageImport, path: Path, progress: Report) -> ImageList:
    if path.is_dir():
        if request.format == "rootfs" or (request.format == "auto" and not (path / "oci-layout").exists()):
            return _from_tree(store, request, path, progress)
        if request.format not in ("auto", "oci"):
            raise InvalidArgument(f"{path} is a directory, not a {request.format}")
        return _from_directory(store, request, path, progress)
    with _user_file(path) as file:
        return _from_stream(store, request, file, request.title or _stem(path), progress)


def _user_file(path: Path) -> BinaryIO:
    """The file that the user named; that it is missing is the user's to mend."""
    try:
        return path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"no file {path}") from None
    except OSError as error:
        raise PermissionDenied(f"cannot read {path}", cause=error.strerror or "") from None


def _stem(path: Path) -> str:
    return re.sub(r"\.(tar|tgz|tzst|gz|zst|oci)\b", "", path.name)


def _from_directory(store: ImageStore, request: ImageImport, path: Path, progress: Report) -> ImageList:
    files = LayoutDirectory(path, store.blobs, progress=progress)
    try:
        return _install_layout(store, request, files, path.name, progress)
    finally:
        files.close()


def _from_tree(store: ImageStore, request: ImageImport, path: Path, progress: Report) -> ImageList:
    from drupe.images.build import image_from_tree  # build imports this package's readers too

    return ImageList(images=[image_from_tree(store, path, tag=request.tag, config=request.config, progress=progress)])


def _from_stream(store: ImageStore, request: ImageImport, data: Readable, stem: str, progress: Report) -> ImageList:
    from drupe.images.build import image_from_tar  # as above

    head, source = peek(data, _PEEK_BYTES)
    if request.format == "wasm" or (request.format == "auto" and head.startswith(MAGIC)):
        return ImageList(images=[image_from_module(store, request, head, source, stem=stem, progress=progress)])
    if request.format == "rootfs" or (request.format == "auto" and not _is_image_archive(head)):
        info = image_from_tar(store, source, tag=request.tag, config=request.config, progress=progress)
        return ImageList(images=[info])
    if request.config:
        raise InvalidArgument("a configuration can only be given for a root tree", hint="use format rootfs")
    archive = SpooledArchive(store.blobs)
    try:
        archive.fill(source, limits=store.layers.limits, progress=progress)
        return _install_archive(store, request, archive, stem, progress)
    finally:
        archive.close()


class _Head:
    """The peeked bytes alone, as a stream that ends early."""

    def __init__(self, head: bytes) -> None:
        self._head = head

    def read(self, size: int, /) -> bytes:
        data, self._head = self._head[:size], self._head[size:]
        return data


def _is_image_archive(head: bytes, limits: Limits = DEFAULT_LIMITS) -> bool:
    """By the first member's name: image archives have only a few possible ones, and none is found in a root tree."""
    if not head:
        raise InvalidArgument("archive is empty")
    for entry in TarReader(TarStream(_Head(head), limits=limits), limits=limits):
        if entry.name.strip(b"./"):
            return _ARCHIVE_MEMBER.fullmatch(entry.name) is not None
    return False


def _install_archive(
    store: ImageStore, request: ImageImport, archive: ImageFiles, stem: str, progress: Report
) -> ImageList:
    if archive.has("oci-layout") and request.format != "docker-archive":
        return _install_layout(store, request, archive, stem, progress)
    if not archive.has("manifest.json") or request.format in ("oci", "oci-archive"):
        raise InvalidArgument(
            f"not {'an image archive' if request.format == 'auto' else 'an ' + request.format}: "
            "it has no oci-layout or manifest.json",
            hint="for a tar of a root tree use --format rootfs",
        )
    found = read_docker_archive(archive, store.blobs, where="archive")
    return _install_all(store, request, [(digest, names, []) for digest, names in found], progress)


def _install_layout(
    store: ImageStore, request: ImageImport, files: ImageFiles, stem: str, progress: Report
) -> ImageList:
    found = read_layout(files, host_platform(), where="image layout")
    named = [(digest, _names(name, stem), above) for digest, name, above in found]
    return _install_all(store, request, named, progress)


def _install_all(
    store: ImageStore, request: ImageImport, found: list[tuple[str, list[str], list[str]]], progress: Report
) -> ImageList:
    """Install (manifest digest, names, index digests) of each image."""
    if not request.tag:
        return ImageList(images=[_install(store, *each, progress) for each in found])
    if len(found) > 1:
        raise InvalidArgument(f"the archive has {len(found)} images, which cannot all be called {request.tag}")
    digest, _names_there, above = found[0]
    return ImageList(images=[_install(store, digest, [request.tag], above, progress)])


def _names(name: str, stem: str) -> list[str]:
    """A layout's ref.name may be a whole reference or only a tag; a bare tag belongs to the name of the file."""
    if not name:
        return []
    if ":" in name or "/" in name:
        return [name]
    return [f"{stem}:{name}"] if stem else []


def _install(store: ImageStore, digest: str, names: list[str], above: list[str], progress: Report) -> ImageInfo:
    canonical = []
    for name in names:
        try:
            canonical.append(parse(name).canonical)
        except InvalidArgument as error:  # other people's annotation; the image itself is fine and can be tagged
            progress(Progress(id=digest, status=f"left without the name {name!r}: {error.message}"))
    return store.install(digest, names=canonical, aliases=above, progress=progress)
