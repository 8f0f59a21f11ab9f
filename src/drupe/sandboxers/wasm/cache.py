"""Compiled modules on disk: `<root>/<key>/code` with `about.json` beside it, made once and shared by all containers.

The key says everything that the code depends on: the module's digest, engine, version, settings, the processor. An
entry is used only while it is root's own, nobody else can write it, and its bytes have the digest that was written down
when it was made; else it is thrown away. Nobody else gets at an entry, for `<root>` is closed to others. The entry
itself is not: a guest's process, whose user may be any, is given a view of just that. Nothing here ever comes from an
image.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import msgspec

from drupe.images.files import storage_errors
from drupe.spec.control import DiskUsage, Pruned

CODE = "code"
ABOUT = "about.json"
MAX_BYTES = 2 << 30
_USED_EVERY_S = 3600.0  # how exactly the time of the last use is kept


class About(msgspec.Struct, frozen=True):
    """form: of the module (job.MODULE, job.COMPONENT). sha256, size: of the code."""

    form: str
    sha256: str
    size: int


class Entry(NamedTuple):
    """directory: holds the file `code`."""

    directory: Path
    form: str


def key_of(module_sha256: str, engine: str, version: str, *, fuel: bool) -> str:
    """The name of an entry."""
    words = (module_sha256, engine, version, "fuel" if fuel else "plain", _processor())
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


class CodeCache:
    """One for each runtime root. Calls read and hash files: run those on big modules in a thread."""

    def __init__(self, root: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self.root = root
        self._max_bytes = max_bytes
        self._checked: dict[str, tuple[tuple[int, ...], Entry]] = {}

    def find(self, key: str) -> Entry | None:
        """A sound entry; an unsound one is removed. Hashed once in the life of this process, while it is unchanged."""
        directory = self.root / key
        try:
            found = _identity(directory / CODE)
            known = self._checked.get(key)
            if known is not None and known[0] == found:
                return known[1]
            about = msgspec.json.decode((directory / ABOUT).read_bytes(), type=About)
        except (OSError, msgspec.MsgspecError):
            self.drop(key)
            return None
        places = (self.root, directory, directory / CODE)
        if not all(map(_is_ours, places)) or _digest(directory / CODE) != about.sha256:
            self.drop(key)
            return None
        entry = Entry(directory, about.form)
        self._checked[key] = (found, entry)
        self._mark_used(directory)
        return entry

    def add(self, key: str, form: str, code: int) -> Entry:
        """Keep what the compiler wrote to the descriptor `code`. ResourceExhausted when the disk is full."""
        with storage_errors("cannot keep a compiled module"):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            work = Path(tempfile.mkdtemp(dir=self.root, prefix="new."))
            work.chmod(0o755)
            try:
                size = _copy(code, work / CODE)
                about = About(form, _digest(work / CODE), size)
                (work / ABOUT).write_bytes(msgspec.json.encode(about))
                self._publish(work, key)
            finally:
                shutil.rmtree(work, ignore_errors=True)
        self._evict(keep=key)
        found = self.find(key)
        assert found is not None  # noqa: S101 - it has just been made
        return found

    def _publish(self, work: Path, key: str) -> None:
        self.drop(key)
        work.rename(self.root / key)

    def drop(self, key: str) -> None:
        """Forget an entry. What runs from it goes on."""
        self._checked.pop(key, None)
        shutil.rmtree(self.root / key, ignore_errors=True)

    def usage(self) -> DiskUsage:
        """All of it can be made again."""
        sizes = [size for _, size, _ in self._entries()]
        return DiskUsage(
            type="compiled modules", total=len(sizes), active=0, size_bytes=sum(sizes), reclaimable_bytes=sum(sizes)
        )

    def prune(self) -> Pruned:
        """Remove everything."""
        entries = self._entries()
        for key, _, _ in entries:
            self.drop(key)
        return Pruned(removed=[key for key, _, _ in entries], reclaimed_bytes=sum(size for _, size, _ in entries))

    def _evict(self, *, keep: str) -> None:
        entries = sorted(self._entries(), key=lambda entry: entry[2])
        total = sum(size for _, size, _ in entries)
        for key, size, _ in entries:
            if total <= self._max_bytes:
                return
            if key != keep:
                self.drop(key)
                total -= size

    def _entries(self) -> list[tuple[str, int, float]]:
        """(key, bytes, time of last use) of each."""
        found = []
        for directory in self.root.glob("*"):
            try:
                found.append((directory.name, (directory / CODE).stat().st_size, directory.stat().st_mtime))
            except OSError:
                continue
        return found

    def _mark_used(self, directory: Path) -> None:
        if time.time() - directory.stat().st_mtime > _USED_EVERY_S:
            os.utime(directory)


def _identity(path: Path) -> tuple[int, ...]:
    found = path.lstat()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _is_ours(path: Path) -> bool:
    found = path.lstat()
    plain = stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)
    return plain and found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copy(code: int, target: Path) -> int:
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        os.lseek(code, 0, os.SEEK_SET)
        size = 0
        while sent := os.sendfile(descriptor, code, None, 1 << 30):
            size += sent
        return size
    finally:
        os.close(descriptor)


def _processor() -> str:
    """What compiled code may rely on: the machine and its features (proc_cpuinfo(5))."""
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:  # noqa: PTH123 - a few lines of a long file
        flags = next((line for line in file if line.startswith(("flags", "Features"))), "")
    words = " ".join(sorted(flags.partition(":")[2].split()))
    return f"{os.uname().machine} {hashlib.sha256(words.encode()).hexdigest()}"
