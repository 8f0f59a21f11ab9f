"""An image of what a container has changed: `docker commit`."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from drupe.errors import Unsupported
from drupe.images import media
from drupe.images.build import base_of, install_layer
from drupe.images.changes import Change, is_redirected
from drupe.images.progress import Report
from drupe.images.tarwrite import LayerWriter, TarOptions
from drupe.spec.control import ImageInfo

if TYPE_CHECKING:
    from drupe.images.store import ImageStore

_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"  # image-spec, layer.md


def commit(
    store: ImageStore,
    *,
    base: str,
    tag: str,
    upper: Path,
    merged: Path,
    found: Sequence[Change],
    section: dict[str, Any],
    said: dict[str, str],
    progress: Report,
) -> ImageInfo:
    """The base with one more layer. upper: the container's writable layer. merged: its root, whose files nobody changes
    meanwhile: contents are read there, for the layer may only have what differs. section: of its configuration, what
    differs. said: "created_by", "comment" and "author" of its history.

    Raises Unsupported for a directory that was renamed (overlayfs's redirect_dir), and what making an image raises.
    """
    with store.ingesting():
        document, layers = base_of(store, base)
        with store.blobs.writer() as blob:
            writer = LayerWriter(blob, TarOptions())
            for change in found:
                _write(writer, change, upper, merged)
            writer.finish()
            layer = blob.commit()
        whole = {**(document.get("config") or {}), **section}
        return install_layer(
            store, document, layers, layer, tag=tag, section=whole, created=None, progress=progress, said=said
        )


def _write(writer: LayerWriter, change: Change, upper: Path, merged: Path) -> None:
    name = change.path.lstrip("/")
    if change.kind == "D":
        parent, last = posixpath.split(name)
        writer.empty(posixpath.join(parent, f"{_WHITEOUT}{last}"))
        return
    if is_redirected(upper / name):
        raise Unsupported(
            f"directory {change.path} was renamed, and overlayfs keeps only that",
            feature="commit",
            hint="copy the directory instead, or export the container",
        )
    writer.path(merged / name, name)
    if change.opaque:
        writer.empty(posixpath.join(name, _OPAQUE))


def history(store: ImageStore, ref: str) -> list[dict[str, Any]]:
    """The steps that made an image, last first: of its configuration's `history`, each with the size of its layer."""
    info = store.resolve(ref)
    document = msgspec.json.decode(store.blobs.read(info.id), type=media.ConfigDocument)
    diff_ids = iter(document.rootfs.diff_ids)
    steps = []
    for entry in document.history or [media.History() for _ in document.rootfs.diff_ids]:
        diff_id = "" if entry.empty_layer else next(diff_ids, "")
        steps.append({
            "created": entry.created or "", "created_by": entry.created_by or "", "comment": entry.comment or "",
            "size_bytes": store.layers.size(diff_id) if diff_id else 0,
        })  # fmt: skip
    return steps[::-1]
