"""OCI image layouts (image-spec image-layout.md), as directories and as archives: reading."""

from __future__ import annotations

from drupe.errors import InvalidArgument
from drupe.images import media
from drupe.images.archive import ImageFiles
from drupe.images.media import Descriptor, Platform, decode_document, decode_index, decode_manifest, hex_of
from drupe.images.platforms import choose

CONTAINERD_NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"
LAYOUT_VERSION = "1.0.0"
_MAX_NESTING = 4


def blob_name(digest: str) -> str:
    return f"blobs/sha256/{hex_of(media.check_digest(digest, where='layout'))}"


def read_layout(files: ImageFiles, wanted: Platform, *, where: str) -> list[tuple[str, str, list[str]]]:
    """Bring in the images of a layout: (manifest digest, name or "", digests of the indexes above it) of each.

    Of several images with the same name the one for platform `wanted` is taken.
    """
    version = decode_document(dict[str, str], files.read("oci-layout"), where=f"{where}: oci-layout")
    if version.get("imageLayoutVersion") != LAYOUT_VERSION:
        raise InvalidArgument(f"{where}: image layout version {version.get('imageLayoutVersion')!r} is not supported")
    index = decode_index(files.read("index.json"), where=f"{where}: index.json")
    groups: dict[str, list[Descriptor]] = {}
    for descriptor in index.manifests:
        if descriptor.media_type in media.INDEXES | media.MANIFESTS:
            groups.setdefault(_name(descriptor), []).append(descriptor)
    if not groups:
        raise InvalidArgument(f"{where}: index.json names no image")
    found = []
    for name, descriptors in groups.items():
        for descriptor in _of_one_name(descriptors, wanted, named=bool(name), where=where):
            digest, above = _store_image(files, descriptor, wanted, where=where)
            found.append((digest, name, above))
    return found


def _of_one_name(descriptors: list[Descriptor], wanted: Platform, *, named: bool, where: str) -> list[Descriptor]:
    """Images under one name differ by platform; those without a name are simply several images."""
    platforms = all(descriptor.platform is not None for descriptor in descriptors)
    if len(descriptors) == 1 or not (named or platforms):
        return descriptors
    return [choose(descriptors, wanted, where=where)]


def _name(descriptor: Descriptor) -> str:
    annotations = descriptor.annotations or {}
    return annotations.get(CONTAINERD_NAME) or annotations.get(REF_NAME) or ""


def _store_image(files: ImageFiles, descriptor: Descriptor, wanted: Platform, *, where: str) -> tuple[str, list[str]]:
    above: list[str] = []
    for _ in range(_MAX_NESTING):
        if descriptor.media_type not in media.INDEXES:
            break
        above.append(descriptor.digest)
        digest, _size = files.store(blob_name(descriptor.digest), digest=descriptor.digest, size=descriptor.size)
        index = decode_index(files.read(blob_name(digest)), where=f"{where}: index {digest}")
        descriptor = choose(index.manifests, wanted, where=where)
    else:
        raise InvalidArgument(f"{where}: indexes are nested more than {_MAX_NESTING} deep")
    digest, _size = files.store(blob_name(descriptor.digest), digest=descriptor.digest, size=descriptor.size)
    manifest = decode_manifest(files.read(blob_name(digest)), where=f"{where}: manifest {digest}")
    for part in (manifest.config, *manifest.layers):
        files.store(blob_name(part.digest), digest=part.digest, size=part.size)
    return digest, above
