"""Unpacked layers: `layers/<hex of diff id>/diff`, each unpacked once and shared by all images and containers."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from drupe.errors import DataLoss
from drupe.images.files import flock, remove_tree, storage_errors
from drupe.images.limits import DEFAULT_LIMITS, Limits
from drupe.images.media import check_digest, digest_mismatch, hex_of
from drupe.images.streams import Counting
from drupe.images.unpack import Unpacked, unpack_layer
from drupe.linux.syncfs import syncfs

_LINK_CHARS = (12, 16, 24, 64)  # a short name; longer only if two layers share the short one


class LayerStore:
    """Layers of a store, unpacked once each and shared, under `<root>/layers`. Raises drupe's errors, never OSError."""

    def __init__(self, root: Path, *, limits: Limits = DEFAULT_LIMITS) -> None:
        self.root = root
        self.directory = root / "layers"
        self.links = root / "l"
        self.scratch = root / "tmp"
        self.locks = root / "locks"
        self.limits = limits

    def path(self, diff_id: str) -> Path:
        """Where the tree of a layer is, or will be."""
        return self.directory / hex_of(check_digest(diff_id, where="layer")) / "diff"

    def has(self, diff_id: str) -> bool:
        return self.path(diff_id).exists()

    def ensure(self, diff_id: str, blob: Path, *, on_bytes: Callable[[int], None] | None = None) -> bool:
        """Unpack `blob` unless the layer is there; whether it was unpacked now. Raises DataLoss on another diff id.

        Two processes that want the same layer unpack it once: the second waits and finds it.
        """
        with storage_errors("cannot unpack a layer"), flock(self.locks / hex_of(diff_id)):
            if self.has(diff_id):
                return False
            self._unpack(blob, expect=diff_id, on_bytes=on_bytes)
            return True

    def unpack_new(self, blob: Path, *, on_bytes: Callable[[int], None] | None = None) -> Unpacked:
        """Unpack a layer whose diff id is not yet known."""
        with storage_errors("cannot unpack a layer"):
            return self._unpack(blob, expect="", on_bytes=on_bytes)

    def _unpack(self, blob: Path, *, expect: str, on_bytes: Callable[[int], None] | None) -> Unpacked:
        work = Path(tempfile.mkdtemp(dir=self.scratch, prefix="layer."))
        try:
            result = self._fill(work / "diff", blob, on_bytes)
            if expect and result.diff_id != expect:
                raise digest_mismatch("layer (unpacked)", wanted=expect, got=result.diff_id)
            self._publish(work, result.diff_id)
        finally:
            remove_tree(work)
        return result

    def _fill(self, target: Path, blob: Path, on_bytes: Callable[[int], None] | None) -> Unpacked:
        target.mkdir(mode=0o755)
        root_fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with blob.open("rb", buffering=0) as file:
                result = unpack_layer(Counting(file, on_bytes), root_fd, limits=self.limits)
            (target.parent / "size").write_text(f"{result.size_bytes}\n")
            return result
        finally:
            os.close(root_fd)

    def _publish(self, work: Path, diff_id: str) -> None:
        try:
            work.rename(self.path(diff_id).parent)
        except OSError:
            if not self.has(diff_id):  # else another process was faster with the same bytes
                raise
        self.link(diff_id)

    def link(self, diff_id: str) -> str:
        """A short name relative to the store root, `l/0123456789ab`, so that 127 fit into mount(2)'s 4096 bytes."""
        target = f"../layers/{hex_of(diff_id)}/diff"
        for length in _LINK_CHARS:
            path = self.links / hex_of(diff_id)[:length]
            try:
                path.symlink_to(target)
            except FileExistsError:
                if str(path.readlink()) != target:
                    continue
            return f"l/{path.name}"
        raise DataLoss(f"layer {diff_id}: its link in {self.links} leads elsewhere", hint="remove that link")

    def size(self, diff_id: str) -> int:
        """Bytes of the unpacked tar, about what the tree takes on disk; 0 when the layer is not unpacked."""
        try:
            return int((self.path(diff_id).parent / "size").read_text())
        except FileNotFoundError:
            return 0

    def sync(self) -> None:
        """Make unpacked layers durable, so that an index never names a layer that a power cut emptied."""
        fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with storage_errors("cannot write the layers to disk"):
                syncfs(fd)
        finally:
            os.close(fd)

    def delete(self, diff_id: str) -> None:
        """Remove a layer: first out of sight by one rename, then for good."""
        doomed = Path(tempfile.mkdtemp(dir=self.scratch, prefix="doomed."))
        link = self.link(diff_id)
        (self.root / link).unlink(missing_ok=True)
        try:
            self.path(diff_id).parent.rename(doomed / "layer")
        except FileNotFoundError:
            pass
        finally:
            remove_tree(doomed)
