"""Media types and JSON documents of the OCI image spec v1.1 and of Docker's schema 2, decoded strictly."""

from __future__ import annotations

import hashlib
import re
from typing import Any, Final, TypeVar

import msgspec

from drupe.errors import DataLoss, InvalidArgument, Unsupported

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"

INDEXES: Final = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFESTS: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
LAYERS: Final = frozenset(
    {
        OCI_LAYER,
        OCI_LAYER + "+gzip",
        OCI_LAYER + "+zstd",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    }
)
# WebAssembly artifacts: the module or component itself is the layer. The CNCF's form, then those of containerd's
# runwasi and of Docker, whose configuration is an ordinary one for the platform wasi/wasm.
WASM_CONFIG: Final = "application/vnd.wasm.config.v0+json"
WASM_LAYER: Final = "application/wasm"
WASM_LAYERS: Final = frozenset(
    {
        WASM_LAYER,
        "application/vnd.wasm.content.layer.v1+wasm",
        "application/vnd.module.wasm.content.layer.v1+wasm",
        "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
        "application/vnd.w3c.wasm.module.v1+wasm",
    }
)
TITLE: Final = "org.opencontainers.image.title"

MAX_DOCUMENT_BYTES: Final = 4 * 1024 * 1024  # what registries accept as a manifest; bounds what strangers make us parse
MAX_LAYERS: Final = 127  # Docker's limit; what one overlay mount is known to take
_SHA256 = re.compile(r"sha256:[a-f0-9]{64}")

T = TypeVar("T")


class Platform(msgspec.Struct, omit_defaults=True):
    os: str = ""
    architecture: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(msgspec.Struct, rename="camel", omit_defaults=True):
    """A pointer to a blob (image-spec descriptor.md)."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] | None = None
    platform: Platform | None = None
    urls: list[str] | None = None


class Manifest(msgspec.Struct, rename="camel", omit_defaults=True):
    schema_version: int
    config: Descriptor
    layers: list[Descriptor]
    media_type: str = ""
    annotations: dict[str, str] | None = None

    @property
    def module(self) -> Descriptor | None:
        """The layer that is a WebAssembly module, in an image that is nothing else."""
        return self.layers[0] if self.layers and self.layers[0].media_type in WASM_LAYERS else None


class Index(msgspec.Struct, rename="camel", omit_defaults=True):
    schema_version: int
    manifests: list[Descriptor]
    media_type: str = ""
    annotations: dict[str, str] | None = None


class Rootfs(msgspec.Struct):
    diff_ids: list[str]
    type: str = "layers"


class History(msgspec.Struct, omit_defaults=True):
    created: str | None = None
    created_by: str | None = None
    comment: str | None = None
    empty_layer: bool | None = None


class Health(msgspec.Struct, rename="pascal", omit_defaults=True):
    """Docker's health check; durations in nanoseconds, 0 is the default of the runtime."""

    test: list[str] | None = None
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    retries: int = 0


class ConfigSection(msgspec.Struct, rename="pascal", omit_defaults=True):
    """The `config` object of an image configuration (image-spec config.md); null means unset."""

    user: str | None = None
    exposed_ports: dict[str, Any] | None = None
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    volumes: dict[str, Any] | None = None
    working_dir: str | None = None
    labels: dict[str, str] | None = None
    stop_signal: str | None = None
    healthcheck: Health | None = None


class ConfigDocument(msgspec.Struct, omit_defaults=True):
    """An image configuration. Unknown keys are kept out: the blob itself is what is stored and pushed."""

    architecture: str
    os: str
    rootfs: Rootfs
    config: ConfigSection | None = None
    created: str | None = None
    author: str | None = None
    variant: str | None = None
    history: list[History] | None = None


class _ModuleDocument(msgspec.Struct, omit_defaults=True):
    """The configuration of a WebAssembly artifact: an image's, in which anything may be missing."""

    architecture: str = "wasm"
    os: str = "wasip1"
    config: ConfigSection | None = None
    created: str | None = None


def decode_document(kind: type[T], data: bytes, *, where: str) -> T:
    """Decode one JSON document. Raises InvalidArgument naming `where` and the path of the wrong key."""
    if len(data) > MAX_DOCUMENT_BYTES:
        raise InvalidArgument(f"{where}: document of {len(data)} bytes is over the limit of {MAX_DOCUMENT_BYTES}")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"{where}: not valid: {error}") from None


def decode_manifest(data: bytes, *, where: str) -> Manifest:
    """A checked manifest: schema 2, sane digests and sizes, layers that are tars, or one that is a module."""
    manifest = decode_document(Manifest, data, where=where)
    if manifest.schema_version != 2:
        raise Unsupported(f"{where}: manifest schema {manifest.schema_version} is not supported, only 2")
    if manifest.media_type and manifest.media_type not in MANIFESTS:
        raise Unsupported(f"{where}: {manifest.media_type!r} is not an image manifest")
    if len(manifest.layers) > MAX_LAYERS:
        raise InvalidArgument(f"{where}: {len(manifest.layers)} layers are over the limit of {MAX_LAYERS}")
    check_descriptor(manifest.config, where=f"{where}: config")
    for number, layer in enumerate(manifest.layers):
        check_descriptor(layer, where=f"{where}: layer {number}")
        if layer.media_type not in LAYERS and manifest.module is None:
            raise Unsupported(
                f"{where}: layer {number} has type {layer.media_type!r}, which is not a container image layer",
                hint="this may be an artifact (chart, signature, model), not a runnable image",
            )
    if manifest.module is not None and len(manifest.layers) > 1:
        raise Unsupported(f"{where}: it has {len(manifest.layers)} layers, and a WebAssembly artifact one module only")
    return manifest


def decode_index(data: bytes, *, where: str) -> Index:
    """A checked index or manifest list."""
    index = decode_document(Index, data, where=where)
    if index.schema_version != 2:
        raise Unsupported(f"{where}: index schema {index.schema_version} is not supported, only 2")
    for number, entry in enumerate(index.manifests):
        check_descriptor(entry, where=f"{where}: manifest {number}")
    return index


def decode_config(data: bytes, *, layer_count: int, where: str) -> ConfigDocument:
    """A checked configuration: as many diff ids as the manifest has layers, each a sha256 digest."""
    document = decode_document(ConfigDocument, data, where=where)
    if len(document.rootfs.diff_ids) != layer_count:
        raise InvalidArgument(
            f"{where}: {len(document.rootfs.diff_ids)} diff ids for {layer_count} layers, so it does not belong here"
        )
    for diff_id in document.rootfs.diff_ids:
        check_digest(diff_id, where=f"{where}: diff id")
    return document


def decode_config_of(manifest: Manifest, data: bytes, *, where: str) -> ConfigDocument:
    """The configuration that belongs to a manifest. That of a WebAssembly artifact is completed: its module is its one
    layer, and unless it says otherwise, what it runs."""
    module = manifest.module
    if module is None:
        return decode_config(data, layer_count=len(manifest.layers), where=where)
    found = decode_document(_ModuleDocument, data, where=where)
    section = found.config or ConfigSection()
    if not section.entrypoint:
        title = (module.annotations or {}).get(TITLE, "").rpartition("/")[2]
        section.entrypoint = [title or "module.wasm"]
    rootfs = Rootfs(diff_ids=[module.digest])
    return ConfigDocument(
        architecture="wasm", os=found.os if found.os.startswith("wasi") else "wasip1", rootfs=rootfs, config=section,
        created=found.created,
    )  # fmt: skip


def check_descriptor(descriptor: Descriptor, *, where: str) -> Descriptor:
    check_digest(descriptor.digest, where=where)
    if not 0 <= descriptor.size < 1 << 63:
        raise InvalidArgument(f"{where}: impossible size {descriptor.size}")
    return descriptor


def check_digest(digest: str, *, where: str) -> str:
    """Raise InvalidArgument unless `digest` is sha256 in full; it becomes a file name, so nothing else may pass."""
    if not _SHA256.fullmatch(digest):
        raise InvalidArgument(f"{where}: bad digest {digest[:100]!r}", hint="only sha256 digests are supported")
    return digest


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def hex_of(digest: str) -> str:
    return digest.removeprefix("sha256:")


def encode(document: Any) -> bytes:
    """Compact JSON in field order: the same document gives the same digest."""
    return msgspec.json.encode(document)


def digest_mismatch(what: str, *, wanted: str, got: str) -> DataLoss:
    return DataLoss(f"{what}: digest does not match, wanted {wanted}, got {got}", hint="fetch or export it again")
