"""The files of a guest's root, in memory and in order, and the archive the kernel unpacks (cpio "newc").

Documentation/driver-api/early-userspace/buffer-format.rst of the kernel. Times are 0 and inodes are counted, so that
the same tree is the same bytes.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from drupe.errors import InvalidArgument

_MAGIC = "070701"
_TRAILER = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class Entry:
    """mode: with its type. content: of a file, or a symlink's target. device: major and minor of a node."""

    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


@dataclass
class Tree:
    """Paths, without the leading slash, to entries. Parents come by themselves."""

    entries: dict[str, Entry] = field(default_factory=dict)

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Make it, and its parents."""
        for parent in reversed(PurePosixPath(path).parents):
            if str(parent) != ".":
                self.entries.setdefault(str(parent), Entry(stat.S_IFDIR | 0o755))
        self.entries.setdefault(path, Entry(stat.S_IFDIR | mode))

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        self._put(path, Entry(stat.S_IFREG | mode, content))

    def copy(self, source: Path, path: str, mode: int = 0o644) -> None:
        """A file of the host. Raises InvalidArgument when it cannot be read."""
        try:
            self.file(path, source.read_bytes(), mode)
        except OSError as error:
            raise InvalidArgument(f"cannot read {source}", cause=error.strerror or "") from None

    def symlink(self, path: str, target: str) -> None:
        self._put(path, Entry(stat.S_IFLNK | 0o777, target.encode()))

    def device(self, path: str, major: int, minor: int) -> None:
        """A character device."""
        self._put(path, Entry(stat.S_IFCHR | 0o600, device=(major, minor)))

    def _put(self, path: str, entry: Entry) -> None:
        parent = str(PurePosixPath(path).parent)
        if parent != ".":
            self.directory(parent)
        self.entries[path] = entry


def archive(tree: Tree) -> bytes:
    """The whole tree as a cpio archive."""
    parts = [part for number, path in enumerate(sorted(tree.entries), 1) for part in _member(path, tree, number)]
    whole = b"".join([*parts, *_header(_TRAILER, Entry(0), 0)])
    return whole + bytes(-len(whole) % 512)


def _member(path: str, tree: Tree, inode: int) -> Iterator[bytes]:
    entry = tree.entries[path]
    yield from _header(path, entry, inode)
    yield entry.content
    yield bytes(-len(entry.content) % 4)


def _header(path: str, entry: Entry, inode: int) -> Iterator[bytes]:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0, *entry.device, len(name), 0)
    head = (_MAGIC + "".join(f"{value:08x}" for value in fields)).encode() + name
    yield head + bytes(-len(head) % 4)
