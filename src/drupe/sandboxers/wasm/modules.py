"""Which module a command means, found as a shell finds a program, and opened safely."""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass

from drupe.errors import DrupeError
from drupe.linux.openat2 import open_regular
from drupe.oci.programs import no_program, not_executable

MAGIC = b"\x00asm"
_ABSENT = (errno.ENOENT, errno.ENOTDIR)
_DEFAULT_PATH = "/bin:/usr/bin:/"


@dataclass(frozen=True, slots=True)
class Own:
    """A module that lies outside the container's root: the layer of an artifact, a bare file. names: what it answers
    to."""

    path: str
    names: tuple[str, ...]

    def answers_to(self, program: str) -> bool:
        wanted = posixpath.basename(program)
        return program in self.names or wanted in {posixpath.basename(name) for name in self.names} | {
            posixpath.basename(name).removesuffix(".wasm") for name in self.names
        }


def open_module(root: int, program: str, *, path: str, cwd: str, own: Own | None) -> int:
    """A descriptor of the module that `program` names. root: the container's root, -1 for none. path: its $PATH.

    NotFound (exit code 127) and PermissionDenied (126: no WebAssembly) as for any program.
    """
    if own is not None and own.answers_to(program):
        return _checked(os.open(own.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), program)
    denied: DrupeError | None = None
    for place in _places(program, path, cwd) if root >= 0 else ():
        try:
            return _checked(open_regular(root, place, os.O_RDONLY), program)
        except OSError as error:
            if error.errno not in _ABSENT:
                denied = not_executable(program, cause=error.strerror or "")
    raise denied or no_program(program)


def _places(program: str, path: str, cwd: str) -> Iterator[str]:
    names = (program,) if program.endswith(".wasm") else (program, f"{program}.wasm")
    directories = [""] if "/" in program else (path or _DEFAULT_PATH).split(":")
    for directory in directories:
        for name in names:
            yield posixpath.join(cwd, directory, name)


def _checked(descriptor: int, program: str) -> int:
    try:
        if os.pread(descriptor, len(MAGIC), 0) != MAGIC:
            raise not_executable(program, cause="it is not WebAssembly")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


class Digests:
    """SHA-256 of modules, remembered while the file is the one that was read."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], str] = {}

    def known(self, descriptor: int) -> str | None:
        return self._known.get(_identity(descriptor))

    def of(self, descriptor: int) -> str:
        """Reads the whole file."""
        identity = _identity(descriptor)
        with open(descriptor, "rb", closefd=False) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.lseek(descriptor, 0, os.SEEK_SET)
        if len(self._known) > 1024:
            self._known.clear()
        self._known[identity] = digest
        return digest


def _identity(descriptor: int) -> tuple[int, ...]:
    found = os.fstat(descriptor)
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
