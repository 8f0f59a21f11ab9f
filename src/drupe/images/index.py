"""`index.json`: which images the store has and what they are called. One writer at a time, any number of readers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from drupe.errors import DataLoss
from drupe.images.files import flock, storage_errors, write_atomic

VERSION = 1
R = TypeVar("R")


class LayerRecord(msgspec.Struct, frozen=True):
    """digest: the blob. diff_id: the unpacked tar. size: bytes of the blob."""

    digest: str
    diff_id: str
    size: int


class ImageRecord(msgspec.Struct, frozen=True):
    """digest: manifest. id: configuration. layers: bottom first. module: its one layer is a WebAssembly module, and
    nothing that could be unpacked."""

    digest: str
    id: str
    media_type: str
    layers: tuple[LayerRecord, ...]
    os: str = ""
    architecture: str = ""
    variant: str = ""
    created: str = ""
    labels: dict[str, str] = {}
    module: bool = False

    @property
    def size_bytes(self) -> int:
        return sum(layer.size for layer in self.layers)


class Catalogue(msgspec.Struct):
    """images: by manifest digest. names: canonical reference to manifest digest. aliases: digest of the multi-platform
    index an image was chosen from, to its manifest digest."""

    version: int = VERSION
    images: dict[str, ImageRecord] = {}
    names: dict[str, str] = {}
    aliases: dict[str, str] = {}

    def names_of(self, digest: str) -> list[str]:
        return sorted(name for name, target in self.names.items() if target == digest)

    def drop(self, digest: str) -> ImageRecord:
        """Forget an image with its names."""
        self.names = {name: target for name, target in self.names.items() if target != digest}
        self.aliases = {alias: target for alias, target in self.aliases.items() if target != digest}
        return self.images.pop(digest)


class Index:
    """Reads are cached; a changed file (of any process) is seen at the next read by its inode, time and size."""

    def __init__(self, root: Path) -> None:
        self._path = root / "index.json"
        self._lock = root / "index.lock"
        self._seen: tuple[int, int, int] | None = (0, 0, 0)
        self._catalogue = Catalogue()
        self.generation = 0

    def read(self) -> Catalogue:
        """The present catalogue; not to be changed by the caller. Raises DataLoss when the file is corrupt."""
        signature = self._signature()
        if signature != self._seen:
            self._catalogue = self._load()
            self._seen = signature
            self.generation += 1
        return self._catalogue

    def update(self, change: Callable[[Catalogue], R]) -> R:
        """Apply `change` to the newest catalogue under the lock and store it atomically; its result."""
        with storage_errors("cannot write the image index"), flock(self._lock):
            catalogue = self._load()
            result = change(catalogue)
            write_atomic(self._path, msgspec.json.encode(catalogue))
            return result

    def _signature(self) -> tuple[int, int, int] | None:
        try:
            status = os.stat(self._path)  # noqa: PTH116 - three times faster than Path.stat, on the hot path
        except FileNotFoundError:
            return None
        return (status.st_ino, status.st_mtime_ns, status.st_size)

    def _load(self) -> Catalogue:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return Catalogue()
        try:
            catalogue = msgspec.json.decode(data, type=Catalogue)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            hint = "move it away and import or pull the images again; blobs that are there are reused"
            raise DataLoss(f"image index {self._path} is corrupt", cause=str(error), hint=hint) from None
        if catalogue.version != VERSION:
            raise DataLoss(f"image index {self._path} has version {catalogue.version}, this drupe knows {VERSION}")
        return catalogue
