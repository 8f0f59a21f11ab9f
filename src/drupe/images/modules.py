"""Images that are a WebAssembly module or component and nothing else (CNCF: Wasm OCI artifact)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from drupe.errors import InvalidArgument
from drupe.images import media
from drupe.images.docker_archive import put_manifest
from drupe.images.media import Descriptor
from drupe.images.progress import Meter, Report
from drupe.images.reference import parse
from drupe.images.streams import Readable
from drupe.spec.control import ImageImport, ImageInfo

if TYPE_CHECKING:
    from drupe.images.store import ImageStore

MAGIC = b"\x00asm"
_FORMS = {b"\x01\x00\x00\x00": "wasip1", b"\x0d\x00\x01\x00": "wasip2"}  # version and layer: module, component


class _Config(msgspec.Struct, rename="camel"):
    """application/vnd.wasm.config.v0+json."""

    architecture: str
    os: str
    layer_digests: list[str]


def image_from_module(
    store: ImageStore, request: ImageImport, head: bytes, source: Readable, *, stem: str, progress: Report
) -> ImageInfo:
    """An image of the module that `source` gives; the same bytes under the same title make the same image."""
    platform = _FORMS.get(head[len(MAGIC) : 8]) if head.startswith(MAGIC) else None
    if platform is None:
        raise InvalidArgument("not a WebAssembly module or component", hint="its first bytes are not those of either")
    if request.config:
        raise InvalidArgument("a configuration cannot be given for a module", hint="give settings when you run it")
    name = [parse(request.tag).canonical] if request.tag else []
    digest, size = store.blobs.ingest(source, on_bytes=Meter(progress, "module", "reading"))
    title = {media.TITLE: stem if stem.endswith(".wasm") else f"{stem or 'module'}.wasm"}
    layer = Descriptor(media_type=media.WASM_LAYER, digest=digest, size=size, annotations=title)
    raw = media.encode(_Config(architecture="wasm", os=platform, layer_digests=[digest]))
    config = Descriptor(media_type=media.WASM_CONFIG, digest=store.blobs.put(raw), size=len(raw))
    return store.install(put_manifest(store.blobs, config, [layer]), names=name, progress=progress)
