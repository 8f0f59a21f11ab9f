"""From an image to a mountable root file system: the overlay that the keeper is asked to mount."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drupe.errors import InvalidArgument
from drupe.images.files import remove_tree, storage_errors

if TYPE_CHECKING:
    from drupe.images.store import ImageStore
    from drupe.spec.control import ImageInfo

_OPTION_BYTES = 4096 - 1  # mount(2) copies one page of options
EMPTY_LAYER = "empty"


@dataclass(frozen=True, slots=True)
class RootfsPlan:
    """An overlay of an image's layers with a writable layer of the container's own; nothing is made before `prepare`.

    lower_dirs: top-most first. lower_links: the same relative to `cwd`, which is how they are mounted. upper, work:
    None for a read-only root. volatile: no sync(2) of the upper layer on unmount, for containers that are thrown away.
    metacopy: a change of owner or mode copies no content (for giving the tree to a user namespace).
    Source: Linux Documentation/filesystems/overlayfs.rst.
    """

    target: Path
    cwd: Path
    lower_dirs: tuple[Path, ...]
    lower_links: tuple[str, ...]
    upper: Path | None
    work: Path | None
    volatile: bool = False
    metacopy: bool = False

    @property
    def options(self) -> str:
        """The option string for mount(2) with `cwd` as working directory. Raises InvalidArgument over 4095 bytes."""
        options = ["lowerdir=" + ":".join(_escaped(link, ":,\\") for link in self.lower_links)]
        if self.upper is not None and self.work is not None:
            options += ["upperdir=" + _escaped(str(self.upper), ",\\"), "workdir=" + _escaped(str(self.work), ",\\")]
            options += ["volatile"] if self.volatile else []
            options += ["metacopy=on"] if self.metacopy else []
        text = ",".join([*options, "index=off"])  # index=off: a crashed mount may be mounted again at once
        if len(os.fsencode(text)) > _OPTION_BYTES:
            raise InvalidArgument(f"overlay options of {len(text)} bytes do not fit into one page", stage="rootfs")
        return text

    def mount(self) -> dict[str, Any]:
        """The mount as the keeper's `mount` request takes it."""
        if self.upper is None and len(self.lower_links) == 1:  # overlayfs wants two layers or an upper one
            source = str(self.lower_dirs[0])
            return {"source": source, "target": str(self.target), "fstype": "", "flags": ["bind", "ro"], "data": ""}
        flags = [] if self.upper is not None else ["ro"]
        return {
            "source": "overlay", "target": str(self.target), "fstype": "overlay", "flags": flags,
            "data": self.options, "cwd": str(self.cwd),
        }  # fmt: skip

    def prepare(self) -> None:
        """Make target, upper and work directories; the upper one with the image's own root mode and owner, because
        overlayfs shows those as `/`. Idempotent."""
        with storage_errors("cannot make the container's root directories"):
            self.target.mkdir(parents=True, exist_ok=True)
            if self.upper is None or self.work is None:
                return
            self.upper.mkdir(parents=True, exist_ok=True)
            self.work.mkdir(parents=True, exist_ok=True)
            root = self.lower_dirs[0].stat()
            os.chown(self.upper, root.st_uid, root.st_gid)
            self.upper.chmod(stat.S_IMODE(root.st_mode))
            remove_tree(self.work / "work")  # leftovers of a volatile mount bar the next one

    def remove(self) -> None:
        """Remove what `prepare` made, once it is unmounted. Idempotent."""
        with storage_errors("cannot remove the container's root directories"):
            for path in (self.upper, self.work):
                if path is not None:
                    remove_tree(path)
            if self.target.is_dir():
                self.target.rmdir()


def plan_rootfs(
    store: ImageStore,
    info: ImageInfo,
    directory: Path,
    *,
    target: Path | None = None,
    read_only: bool = False,
    volatile: bool = False,
    metacopy: bool = False,
) -> RootfsPlan:
    """The root of a new container of image `info`, in `directory`: `rootfs` (mount point), `upper`, `work`.

    target: another mount point.
    read_only: no writable layer at all (image mounts; a container's read-only root is the runtime's remount).
    """
    return RootfsPlan(
        target=target or directory / "rootfs",
        cwd=store.root,
        lower_dirs=tuple(store.lower_dirs(info)),
        lower_links=store.lower_links(info),
        upper=None if read_only else directory / "upper",
        work=None if read_only else directory / "work",
        volatile=volatile and not read_only,
        metacopy=metacopy and not read_only,
    )


def _escaped(text: str, special: str) -> str:
    return "".join(f"\\{char}" if char in special else char for char in text)
