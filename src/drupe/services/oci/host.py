"""The caller's files: its mount namespace and directory may not be ours, so paths are walked from its own root."""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
from collections.abc import Iterator
from pathlib import Path

from drupe.errors import InvalidArgument, NotFound, PermissionDenied
from drupe.images.files import remove_tree
from drupe.linux.openat2 import O_PATH, open_in_root, open_regular

MAX_BYTES = 4 * 1024 * 1024  # config.json is rarely over 50 kB; what is longer is no configuration


class CallerFiles:
    """root_fd: the caller's "/". cwd: its directory, absolute."""

    def __init__(self, root_fd: int, cwd: str) -> None:
        self._root_fd = root_fd
        self._cwd = cwd

    def absolute(self, path: str) -> str:
        """What the caller means by `path`."""
        return posixpath.normpath(posixpath.join(self._cwd, path))

    def read(self, path: str, what: str) -> bytes:
        """A regular file. Raises NotFound, PermissionDenied or InvalidArgument naming `what` and the path."""
        full = self.absolute(path)
        try:
            with os.fdopen(open_regular(self._root_fd, full, os.O_RDONLY), "rb") as file:
                data = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            raise NotFound(f"{what} {full} does not exist") from None
        except PermissionError:
            raise PermissionDenied(f"{what} {full} may not be read") from None
        except OSError as error:
            raise InvalidArgument(f"{what} {full} cannot be read", cause=error.strerror or "") from None
        if len(data) > MAX_BYTES:
            raise InvalidArgument(f"{what} {full} is longer than {MAX_BYTES} bytes")
        return data

    def exists(self, path: str) -> bool:
        try:
            os.close(open_in_root(self._root_fd, self.absolute(path), O_PATH))
        except OSError:
            return False
        return True

    def is_link(self, path: str) -> bool:
        """Whether a symbolic link is there itself."""
        try:
            fd = open_in_root(self._root_fd, self.absolute(path), O_PATH | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            return stat.S_ISLNK(os.fstat(fd).st_mode)
        finally:
            os.close(fd)

    def check_directory(self, path: str, what: str) -> None:
        """Raise NotFound, InvalidArgument naming `what` and the path unless a directory is there."""
        with self.directory(path, what):
            pass

    def names(self, path: str) -> list[str]:
        """What is in a directory; nothing when it is none."""
        try:
            fd = open_in_root(self._root_fd, self.absolute(path), os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return []
        try:
            return sorted(os.listdir(fd))  # noqa: PTH208 of a descriptor
        finally:
            os.close(fd)

    def remove(self, path: str) -> None:
        """A directory, and what is in it."""
        above, name = posixpath.split(self.absolute(path))
        with contextlib.suppress(OSError):
            fd = open_in_root(self._root_fd, above, O_PATH | os.O_DIRECTORY)
            try:
                remove_tree(Path(f"/proc/self/fd/{fd}/{name}"))
            finally:
                os.close(fd)

    @contextlib.contextmanager
    def directory(self, path: str, what: str, *, made: bool = False) -> Iterator[Path]:
        """A directory, as a path that we and what we start can walk, whatever is mounted where. made: if it is not
        there. Raises NotFound, InvalidArgument naming `what` and the path."""
        full = self.absolute(path)
        try:
            fd = self._make(full) if made else open_in_root(self._root_fd, full, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            raise NotFound(f"{what} {full} does not exist") from None
        except OSError as error:
            raise InvalidArgument(f"{what} {full} cannot be used", cause=error.strerror or "") from None
        try:
            yield Path(f"/proc/{os.getpid()}/fd/{fd}")
        finally:
            os.close(fd)

    def _make(self, path: str) -> int:
        """Open a directory, and make those on the way that are missing."""
        try:
            return open_in_root(self._root_fd, path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            above, name = posixpath.split(path)
        parent = self._make(above)
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=parent)
        finally:
            os.close(parent)
        return open_in_root(self._root_fd, path, os.O_RDONLY | os.O_DIRECTORY)
