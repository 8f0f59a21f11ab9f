"""Whether a container has the program and the directory that a process asks for.

An OCI runtime finds that out when its streams are the user's already, and complains on them. Looked up here before,
what is missing is one clear error. Whatever cannot be told for sure is left to the runtime.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Iterable
from typing import Any

from drupe.errors import DrupeError, InvalidArgument, NotFound, PermissionDenied
from drupe.linux.openat2 import open_in_root, stat_in_root
from drupe.oci.formats import CAUSES, MISSING, why_not

_ABSENT = (errno.ENOENT, errno.ENOTDIR)
_DEFAULT_PATH = "/bin:/usr/bin"  # execvp(3)


def check_process(root_fd: int, process: dict[str, Any], *, covered: Iterable[str] = ()) -> None:
    """Look for an OCI process's cwd and program (as execvp(3) does) below `root_fd`. covered: paths of which that does
    not show what is there, for something is mounted on them.

    Raises NotFound for what is not there, InvalidArgument for a cwd that is no directory, PermissionDenied for a
    program that nobody may execute.
    """
    cwd, covered = process.get("cwd", "/"), tuple(covered)
    mode = _mode(root_fd, cwd, covered)
    if mode == 0:
        raise NotFound(f"working directory {cwd!r} is not in the container")
    if mode is not None and not stat.S_ISDIR(mode):
        raise InvalidArgument(f"working directory {cwd!r} is not a directory")
    check_program(root_fd, process, covered=covered)


def check_program(root_fd: int, process: dict[str, Any], *, covered: Iterable[str] = ()) -> None:
    """Look for an OCI process's program only: that it is there, may be executed by somebody, and can be loaded.

    Raises NotFound, PermissionDenied with the exit codes of a shell.
    """
    name, cwd, covered = process["args"][0], process.get("cwd", "/"), tuple(covered)
    found = 0
    for path in _places(name, process.get("env", ()), cwd):
        mode = _mode(root_fd, path, covered)
        if mode is None:
            return
        if _executable(mode):
            _check_format(root_fd, name, path, covered)
            return
        found = found or mode
    raise not_executable(name, directory=stat.S_ISDIR(found)) if found else no_program(name)


def _check_format(root_fd: int, name: str, path: str, covered: tuple[str, ...]) -> None:
    why, interpreter = why_not(root_fd, path, lambda path: _mode(root_fd, path, covered))
    if why == MISSING:
        raise no_program(name, interpreter=interpreter)
    if why:
        raise not_executable(name, cause=CAUSES[why])


def is_empty(root_fd: int, path: str) -> bool:
    """Whether a directory below `root_fd` has nothing in it, or cannot be looked into."""
    try:
        descriptor = open_in_root(root_fd, path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return True
    try:
        return not os.listdir(descriptor)  # noqa: PTH208 - a descriptor
    finally:
        os.close(descriptor)


def no_program(name: str, *, interpreter: str = "") -> DrupeError:
    """What is said about a program that is not there, or whose interpreter or loader is not; exit code 127, as of a
    shell."""
    if interpreter:
        text = f"program {name!r} needs {interpreter!r}, which is not in the container"
        return NotFound(text, hint="is the image whole, and made for this program?", exit_code="127")
    where = "in the container" if "/" in name else "in the container's PATH"
    hint = "check the command and the image"
    return NotFound(f"program {name!r} is not {where}", hint=hint, exit_code="127")


def not_executable(name: str, *, directory: bool = False, cause: str = "") -> DrupeError:
    """What is said about a program that is there and cannot be run; exit code 126, as of a shell."""
    why = "it is a directory" if directory else cause
    hint = "" if directory else "is its mode right (chmod +x), and is it made for this machine?"
    return PermissionDenied(f"program {name!r} cannot be executed", cause=why, hint=hint, exit_code="126")


def _places(name: str, env: Any, cwd: str) -> list[str]:
    if "/" in name:
        return [posixpath.join(cwd, name)]
    path = next((word[5:] for word in env if word.startswith("PATH=")), _DEFAULT_PATH)
    return [posixpath.join(cwd, directory, name) for directory in path.split(":")]


def _executable(mode: int) -> bool:
    return stat.S_ISREG(mode) and mode & 0o111 != 0


def _is_at(path: str, place: str) -> bool:
    return path == place or path.startswith(place.rstrip("/") + "/")


def _mode(root_fd: int, path: str, covered: tuple[str, ...]) -> int | None:
    """st_mode of what is at `path`, 0 when there is nothing, None when that cannot be told from here: its own processes
    are others than ours, and a link may lead to what is mounted."""
    if path.startswith("/proc/") or any(_is_at(posixpath.normpath(path), place) for place in covered):
        return None
    try:
        return stat_in_root(root_fd, path).st_mode
    except OSError as error:
        return 0 if error.errno in _ABSENT and not (covered and _over_a_link(root_fd, path)) else None


def _over_a_link(root_fd: int, path: str) -> bool:
    """Whether a symbolic link is on the way to `path`, or there."""
    try:
        return stat.S_ISLNK(stat_in_root(root_fd, path, links=False).st_mode)
    except OSError as error:
        return error.errno == errno.ELOOP
