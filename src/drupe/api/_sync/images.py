# Written by scripts/unasync.py from api/_async/images.py; change that file, not this one.
"""Images of the store."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from drupe.errors import NotFound
from drupe.rpc.connection import Connection
from drupe.spec.control import (
    ImageBuild,
    ImageDelete,
    ImageExport,
    ImageImport,
    ImageInfo,
    ImageList,
    ImagePull,
    ImagePush,
    ImageTag,
    ListFilter,
    Progress,
    Prune,
    Pruned,
    Ref,
)

OnProgress = Callable[[Progress], None]


class Images:
    """All images of a runtime. on_progress is called with each step of long work."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def pull(
        self,
        ref: str,
        *,
        platform: str = "",
        auth: str | None = None,
        insecure: bool = False,
        ca_file: str = "",
        force: bool = False,
        on_progress: OnProgress | None = None,
    ) -> ImageInfo:
        """Get an image from its registry. auth: "user:password"; None looks in the usual config files."""
        params = ImagePull(ref=ref, platform=platform, auth=auth, insecure=insecure, ca_file=ca_file, force=force)
        info: ImageInfo = self._connection.call("image.pull", params, on_item=on_progress)
        return info

    def push(
        self,
        ref: str,
        *,
        target: str = "",
        auth: str | None = None,
        insecure: bool = False,
        ca_file: str = "",
        on_progress: OnProgress | None = None,
    ) -> ImageInfo:
        """Send an image to a registry, under the name `target` or its own."""
        params = ImagePush(ref=ref, target=target, auth=auth, insecure=insecure, ca_file=ca_file)
        info: ImageInfo = self._connection.call("image.push", params, on_item=on_progress)
        return info

    def load(
        self,
        source: str | Path,
        *,
        tag: str = "",
        format: str = "auto",
        on_progress: OnProgress | None = None,
    ) -> list[ImageInfo]:
        """Import images from a docker or OCI archive, an OCI layout directory, a WebAssembly module, or a root tree
        (format "rootfs")."""
        path = _existing(source)
        if path.is_dir():
            params = ImageImport(format=format, path=str(path), tag=tag)
            found: ImageList = self._connection.call("image.import", params, on_item=on_progress)
            return found.images
        params = ImageImport(format=format, tag=tag, title=path.name)
        with path.open("rb") as data:
            found = self._connection.call("image.import", params, fds={"data": data.fileno()}, on_item=on_progress)
        return found.images

    def save(
        self,
        refs: str | Sequence[str],
        target: str | Path,
        *,
        format: str = "oci-archive",
        on_progress: OnProgress | None = None,
    ) -> None:
        """Export images to the file `target`. format: "oci-archive" or "docker-archive"."""
        names = (refs,) if isinstance(refs, str) else tuple(refs)
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            params = ImageExport(refs=names, format=format)
            self._connection.call("image.export", params, fds={"data": fd}, on_item=on_progress)
        finally:
            os.close(fd)

    def build(
        self,
        tag: str,
        source: str | Path,
        *,
        base: str = "",
        target: str = "/",
        entrypoint: Sequence[str] | None = None,
        cmd: Sequence[str] | None = None,
        env: Sequence[str] = (),
        cwd: str | None = None,
        user: str | None = None,
        labels: dict[str, str] | None = None,
        on_progress: OnProgress | None = None,
    ) -> ImageInfo:
        """Make an image of a directory or tarball: `base` (or nothing) and one layer that puts `source` at `target`."""
        params = ImageBuild(
            tag=tag,
            base=base,
            path=str(_existing(source)),
            target=target,
            entrypoint=None if entrypoint is None else tuple(entrypoint),
            cmd=None if cmd is None else tuple(cmd),
            env=tuple(env),
            cwd=cwd,
            user=user,
            labels=labels or {},
        )
        info: ImageInfo = self._connection.call("image.build", params, on_item=on_progress)
        return info

    def get(self, ref: str) -> ImageInfo:
        """One image by name, digest or id. Raises NotFound."""
        info: ImageInfo = self._connection.call("image.inspect", Ref(ref=ref))
        return info

    def tag(self, source: str, target: str) -> ImageInfo:
        """Give an image another name."""
        info: ImageInfo = self._connection.call("image.tag", ImageTag(source=source, target=target))
        return info

    def delete(self, ref: str, *, force: bool = False) -> Pruned:
        """Remove a name, and with the last one the image. Raises InvalidState when a container uses it."""
        gone: Pruned = self._connection.call("image.delete", ImageDelete(ref=ref, force=force))
        return gone

    def prune(self, *, all: bool = False, labels: Sequence[str] = ()) -> Pruned:
        """Remove images without a name; with `all` also those that no container uses."""
        gone: Pruned = self._connection.call("image.prune", Prune(all=all, labels=tuple(labels)))
        return gone

    def list(self, *, labels: Sequence[str] = ()) -> list[ImageInfo]:
        """All images, or those with all of `labels`."""
        found: ImageList = self._connection.call("image.list", ListFilter(labels=tuple(labels)))
        return found.images


def _existing(source: str | Path) -> Path:
    path = Path(source).absolute()
    if not path.exists():
        raise NotFound(f"no such file on this machine: {path}")
    return path
