"""Guest images on disk: `<root>/guests/<digest>` with kernel, initrd or rootfs.erofs, and guest.json; names are
symlinks beside them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from drupe.errors import DataLoss, InvalidArgument, InvalidState, NotFound

DEFAULT = "default"
ROOT_SERIAL = "drupe-root"
Form = Literal["initramfs", "erofs"]
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Guest(NamedTuple):
    """A guest image's files, and its digest. rootfs: the root, which the machine gets as a disk with the serial
    `ROOT_SERIAL`, and `drupe.root=` of it on the kernel's command line; None: it is in the initrd."""

    kernel: Path
    initrd: Path
    rootfs: Path | None
    digest: str


class GuestInfo(msgspec.Struct, frozen=True, kw_only=True):
    """digest: of all inputs and of how they are put together. sizes in bytes; created_at: Unix time."""

    digest: str
    form: Form
    release: str
    agent: str
    kernel_source: str
    kernel_bytes: int
    root_bytes: int
    modules: tuple[str, ...]
    built_in: tuple[str, ...] = ()
    compression: str = "none"
    created_at: float = 0.0
    names: tuple[str, ...] = ()


def check_name(name: str) -> str:
    """Raises InvalidArgument for what is no name of an image."""
    if not _NAME.fullmatch(name) or _DIGEST.fullmatch(name):
        raise InvalidArgument(f"{name!r} is no name of a guest image", hint="lower-case letters, digits, '.', '_', '-'")
    return name


def find(root: Path, name: str = DEFAULT) -> Guest:
    """The files of an image, by its name or the beginning of its digest. Raises NotFound, which says how to build it,
    and DataLoss when files of it are missing."""
    directory = _directory(root, name)
    kernel, initrd, rootfs = (directory / file for file in ("kernel", "initrd", "rootfs.erofs"))
    info = _read(root, directory)
    needed = [kernel, initrd, *([rootfs] if info.form == "erofs" else [])]
    if not all(file.exists() for file in needed):
        raise DataLoss(f"guest image {name!r} lacks its files", hint=f"drupe guest build --name {name}")
    return Guest(kernel, initrd, rootfs if info.form == "erofs" else None, directory.name)


def inspect(root: Path, name: str) -> GuestInfo:
    """All that is known of an image. Raises NotFound, DataLoss."""
    return _read(root, _directory(root, name))


def listed(root: Path) -> list[GuestInfo]:
    """All images, the newest first. One whose description cannot be read is left out."""
    found = []
    for directory in _directories(root):
        try:
            found.append(_read(root, directory))
        except DataLoss:
            continue
    return sorted(found, key=lambda info: -info.created_at)


def remove(root: Path, name: str, *, force: bool = False) -> None:
    """Remove a name, and the image with its last name; by its digest the image with all its names. force: what is not
    there is no error. Machines that run keep their files open."""
    try:
        directory = _directory(root, name)
    except NotFound:
        if force:
            return
        raise
    names = _names(root, directory.name)
    gone = [name] if name in names else names
    if name not in names and len(names) > 1 and not force:
        raise InvalidState(f"image {name} has the names {', '.join(names)}", hint="--force removes them all")
    for one in gone:
        (root / "guests" / one).unlink(missing_ok=True)
    if set(gone) == set(names):
        shutil.rmtree(directory)


def put(root: Path, scratch: Path, info: GuestInfo, name: str) -> GuestInfo:
    """Keep what was built in `scratch`, a directory below `<root>/guests`, and name it."""
    (scratch / "guest.json").write_bytes(msgspec.json.encode(info))
    directory = root / "guests" / info.digest
    try:
        scratch.rename(directory)
    except OSError:  # another build of the same was faster
        if not directory.exists():
            raise
    name_it(root, info.digest, name)
    return _read(root, directory)


def name_it(root: Path, digest: str, name: str) -> None:
    """Let `name` mean this image, whatever it meant before."""
    link = root / "guests" / name
    partial = link.with_name(f".{name}.{os.getpid()}")
    partial.symlink_to(digest)
    partial.replace(link)


def _directory(root: Path, name: str) -> Path:
    guests = root / "guests"
    if _NAME.fullmatch(name) and (guests / name).is_symlink():
        return (guests / name).resolve()
    found = [path for path in _directories(root) if len(name) >= 6 and path.name.startswith(name)]
    if len(found) > 1:
        raise InvalidArgument(f"several guest images begin with {name}")
    if not found:
        build = "drupe guest build" + ("" if name == DEFAULT else f" --name {name}")
        may_be = _NAME.fullmatch(name) and not _DIGEST.fullmatch(name)
        hint = f"build it: {build}" if may_be else "drupe guest ls"
        raise NotFound(f"there is no guest image {name!r}", hint=hint)
    return found[0]


def _directories(root: Path) -> Iterator[Path]:
    guests = root / "guests"
    if guests.is_dir():
        yield from (path for path in sorted(guests.iterdir()) if _DIGEST.fullmatch(path.name) and path.is_dir())


def _names(root: Path, digest: str) -> list[str]:
    links = (path for path in (root / "guests").iterdir() if path.is_symlink() and not path.name.startswith("."))
    return sorted(path.name for path in links if path.readlink().name == digest)


def _read(root: Path, directory: Path) -> GuestInfo:
    try:
        info = msgspec.json.decode((directory / "guest.json").read_bytes(), type=GuestInfo)
    except (OSError, msgspec.DecodeError) as error:
        raise DataLoss(f"guest image {directory.name[:12]} has no readable guest.json", cause=str(error)) from None
    return msgspec.structs.replace(info, names=tuple(_names(root, directory.name)))
