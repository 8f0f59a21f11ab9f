"""A layer or a whole image as one EROFS file: read-only, mountable, shareable with guests. Needs mkfs.erofs.

The same layers give the same bytes: time, UUID and order are fixed. Those of whole images are kept in the store by the
images' digests (`erofs_of`): whoever maps or opens one shares its pages with all others. They go with their image, and
`ImageStore.prune` removes those that nobody needs now.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from drupe.errors import DeadlineExceeded, HelperFailed, Unsupported
from drupe.images.files import flock, remove_tree, storage_errors, sync_dir
from drupe.images.limits import Limits
from drupe.images.media import hex_of
from drupe.images.unpack import unpack_layer

if TYPE_CHECKING:
    from drupe.images.store import ImageStore
    from drupe.spec.control import ImageInfo

PROGRAM = "mkfs.erofs"
_TIMEOUT_S = 600
_NAMESPACE = uuid.UUID(
    "0b7a1c52-6a0c-5b0f-9c55-5e7b3f3f1d6e"
)  # of the file systems' UUIDs, which derive from the layers


def layer_erofs(store: ImageStore, diff_id: str, target: Path) -> Path:
    """Write one layer as it is for overlayfs (whiteouts and opaque marks kept) to `target`; the path.

    Raises Unsupported without mkfs.erofs, HelperFailed, DeadlineExceeded.
    """
    return tree_erofs(store.layers.path(diff_id), target, name=diff_id)


def erofs_of(store: ImageStore, info: ImageInfo) -> Path:
    """The file with the whole image, which the store keeps: made when it is first asked for, once, also where several
    processes ask. A broken-off one is never seen. Raises as `layer_erofs`."""
    target = store.erofs / hex_of(info.digest)
    with storage_errors("cannot use the image store"):
        if _touched(target):
            return target
    lock = store.layers.locks / f"erofs.{target.name}"
    with store.ingesting(), storage_errors("cannot keep the image's file system"), flock(lock):
        if not _touched(target):
            scratch = Path(tempfile.mkdtemp(dir=store.blobs.scratch, prefix="erofs."))
            try:
                _publish(image_erofs(store, info, scratch / "image"), target)
            finally:
                remove_tree(scratch)
    return target


def _touched(path: Path) -> bool:
    """Whether it is there; if so, it is noted that it was asked for just now."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _publish(made: Path, target: Path) -> None:
    """Durable before it has its name."""
    with made.open("rb") as file:
        os.fsync(file.fileno())
    made.rename(target)
    sync_dir(target.parent)


def image_erofs(store: ImageStore, info: ImageInfo, target: Path) -> Path:
    """Write the whole image, layers merged and whiteouts applied, to `target`; the path. Raises as `layer_erofs`."""
    with store.ingesting(), storage_errors("cannot merge the layers"):
        scratch = Path(tempfile.mkdtemp(dir=store.blobs.scratch, prefix="erofs."))
        try:
            merge_layers(store, info, scratch / "root")
            return tree_erofs(scratch / "root", target, name=info.digest)
        finally:
            remove_tree(scratch)


def merge_layers(store: ImageStore, info: ImageInfo, target: Path) -> None:
    """Unpack all layers on top of each other below the new directory `target`."""
    target.mkdir(mode=0o755)
    record = store.record(info.digest)
    root_fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for layer in record.layers:
            with store.blobs.path(layer.digest).open("rb", buffering=0) as file:
                limits: Limits = store.layers.limits
                unpack_layer(file, root_fd, limits=limits, flatten=True)
    finally:
        os.close(root_fd)


def tree_erofs(tree: Path, target: Path, *, name: str) -> Path:
    """Write a directory as it is to `target`; the path. name: what its UUID derives from. Raises as `layer_erofs`."""
    if shutil.which(PROGRAM) is None:
        raise Unsupported(f"{PROGRAM} is not installed", hint="apt-get install erofs-utils")
    partial = target.with_name(f".{target.name}.partial")
    argv = [
        PROGRAM,
        "-T",
        "0",
        "--preserve-mtime",
        "-U",
        str(uuid.uuid5(_NAMESPACE, name)),
        "--quiet",
        str(partial),
        str(tree),
    ]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        if done.returncode != 0:
            raise HelperFailed(f"{PROGRAM} exited with {done.returncode}", cause=_last_line(done.stderr or done.stdout))
        partial.rename(target)
    except subprocess.TimeoutExpired:
        raise DeadlineExceeded(f"{PROGRAM} took longer than {_TIMEOUT_S} s") from None
    finally:
        partial.unlink(missing_ok=True)
    return target


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:300] if lines else ""
