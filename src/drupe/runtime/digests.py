"""Digests of a tree of files: taken when it is written, compared before it is used."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from drupe.spec.snapshot import SnapshotFile


def digests(root: Path) -> list[SnapshotFile]:
    """Every regular file below `root`, and every link and device by what it is."""
    return [_file(root, path) for path in _walk(root)]


def changed(root: Path, files: Iterable[SnapshotFile]) -> str:
    """What differs from what was written down, in a few words; "" when nothing does. The manifest is not looked at."""
    known = {file.path: file for file in files}
    found = {file.path: file for file in digests(root) if file.path != "manifest.json"}
    for path in sorted(known.keys() | found.keys()):
        if path not in found:
            return f"{path} is missing"
        if path not in known:
            return f"{path} was added"
        if known[path] != found[path]:
            return f"{path} was changed"
    return ""


def _walk(root: Path) -> Iterator[Path]:
    for directory, names, files in os.walk(root):
        links = [name for name in names if (Path(directory) / name).is_symlink()]
        yield from (Path(directory) / name for name in sorted([*files, *links]))


def _file(root: Path, path: Path) -> SnapshotFile:
    info = path.lstat()
    if stat.S_ISREG(info.st_mode):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    else:
        target = str(path.readlink()) if stat.S_ISLNK(info.st_mode) else f"{info.st_mode:o} {info.st_rdev}"
        digest = hashlib.sha256(os.fsencode(target)).hexdigest()
    return SnapshotFile(path=str(path.relative_to(root)), size_bytes=info.st_size, sha256=digest)
