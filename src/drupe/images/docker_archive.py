"""The format of `docker save` and `docker load`: reading."""

from __future__ import annotations

import msgspec

from drupe.errors import InvalidArgument
from drupe.images import media
from drupe.images.archive import ImageFiles
from drupe.images.blobs import BlobStore
from drupe.images.media import ConfigDocument, Descriptor, Manifest, decode_config, decode_document
from drupe.images.streams import compression_of


class SavedImage(msgspec.Struct, rename="pascal"):
    """One entry of manifest.json (Docker image spec v1.2, combined image JSON)."""

    config: str
    layers: list[str]
    repo_tags: list[str] | None = None


def read_docker_archive(files: ImageFiles, blobs: BlobStore, *, where: str) -> list[tuple[str, list[str]]]:
    """Bring in the images of an archive: (manifest digest, names) of each. Docker keeps no manifest, so one is made."""
    saved = decode_document(list[SavedImage], files.read("manifest.json"), where=f"{where}: manifest.json")
    if not saved:
        raise InvalidArgument(f"{where}: manifest.json names no image")
    return [(_store_image(files, blobs, image, where=where), image.repo_tags or []) for image in saved]


def _store_image(files: ImageFiles, blobs: BlobStore, image: SavedImage, *, where: str) -> str:
    if len(image.layers) > media.MAX_LAYERS:
        raise InvalidArgument(f"{where}: {len(image.layers)} layers are over the limit of {media.MAX_LAYERS}")
    raw = files.read(image.config)
    decode_config(raw, layer_count=len(image.layers), where=f"{where}: {image.config}")
    layers = [_layer(blobs, *files.store(name)) for name in image.layers]
    config = Descriptor(media_type=media.OCI_CONFIG, digest=blobs.put(raw), size=len(raw))
    return put_manifest(blobs, config, layers)


def _layer(blobs: BlobStore, digest: str, size: int) -> Descriptor:
    return Descriptor(media_type=layer_type(blobs, digest), digest=digest, size=size)


def layer_type(blobs: BlobStore, digest: str) -> str:
    """The OCI media type of a layer blob, by its first bytes."""
    with blobs.path(digest).open("rb") as file:
        kind = compression_of(file.read(6))
    return media.OCI_LAYER + (f"+{kind}" if kind else "")


def put_manifest(blobs: BlobStore, config: Descriptor, layers: list[Descriptor]) -> str:
    """Store the OCI manifest of a configuration and its layers; its digest."""
    manifest = Manifest(schema_version=2, media_type=media.OCI_MANIFEST, config=config, layers=layers)
    return blobs.put(media.encode(manifest))


def put_image(blobs: BlobStore, document: ConfigDocument, layers: list[Descriptor]) -> str:
    """Store a configuration and the manifest over it; the manifest's digest."""
    raw = media.encode(document)
    config = Descriptor(media_type=media.OCI_CONFIG, digest=blobs.put(raw), size=len(raw))
    return put_manifest(blobs, config, layers)
