"""Whether a program that is there can be loaded: execve(2), elf(5), and the kernel's handlers of scripts and ELF.

crun and runc find out when the container has started, and then say so as its output. Only what is sure is told here: a
program that somebody's handler (binfmt_misc) may run is left to the kernel.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from drupe.linux.openat2 import open_regular

MISSING, FOREIGN, UNKNOWN, ENDLESS = "missing", "foreign", "unknown", "endless"
CAUSES: Final = {
    FOREIGN: "it is made for another processor",
    UNKNOWN: "its format is unknown",
    ENDLESS: "its interpreter has an interpreter, and so on",
}

_BEGIN_BYTES: Final = 256  # BINPRM_BUF_SIZE (linux/binfmts.h)
_INTERPRETERS_MAX: Final = 5  # exec_binprm() in fs/exec.c: then ELOOP
_MACHINES: Final = {"x86_64": (62, 3), "aarch64": (183, 40)}  # EM_*: the processor's own, and its 32-bit one
_EM_OFFSET: Final = 18
_PHEADERS: Final = struct.Struct("<32xQ14xHH")  # Elf64_Ehdr: e_phoff, e_phentsize, e_phnum
_PHEADER: Final = struct.Struct("<I4xQ16xQ")  # Elf64_Phdr: p_type, p_offset, p_filesz
_PT_INTERP: Final = 3
_HANDLERS: Final = Path("/proc/sys/fs/binfmt_misc")

Look = Callable[[str], int | None]


def why_not(root_fd: int, path: str, look: Look) -> tuple[str, str]:
    """Why the program at `path` below `root_fd` cannot be loaded, and the interpreter or loader that this is about.

    look: st_mode of what is at a path, 0 where nothing is, None where that cannot be told. ("", "") is no reason.
    """
    for _ in range(_INTERPRETERS_MAX):
        begin, loader = _read(root_fd, path)
        if begin is None:
            return "", ""
        if begin.startswith(b"\x7fELF"):
            return _of_elf(begin, loader, look)
        if not begin.startswith(b"#!"):
            return ("", "") if _has_handlers() else (UNKNOWN, "")
        path = _interpreter(begin)
        mode = look(path) if path.startswith("/") else None
        if mode == 0:
            return MISSING, path
        if mode is None or not stat.S_ISREG(mode):
            return "", ""
    return ENDLESS, ""


def _of_elf(begin: bytes, loader: str, look: Look) -> tuple[str, str]:
    known = _MACHINES.get(os.uname().machine)
    machine = int.from_bytes(begin[_EM_OFFSET : _EM_OFFSET + 2], "little")
    if known is not None and machine not in known:
        return ("", "") if _has_handlers() else (FOREIGN, "")
    return (MISSING, loader) if loader and look(loader) == 0 else ("", "")


def _read(root_fd: int, path: str) -> tuple[bytes | None, str]:
    """The first bytes of a file and, of an ELF file, its loader; None where it cannot be read."""
    try:
        descriptor = open_regular(root_fd, path, os.O_RDONLY)
    except OSError:
        return None, ""
    try:
        begin = os.pread(descriptor, _BEGIN_BYTES, 0)
        return begin, _loader(descriptor, begin)
    finally:
        os.close(descriptor)


def _loader(descriptor: int, begin: bytes) -> str:
    """PT_INTERP of a 64-bit little-endian ELF file; "" where there is none, or the file is not what it says."""
    if not begin.startswith(b"\x7fELF\x02\x01") or len(begin) < _PHEADERS.size:
        return ""
    offset, size, count = _PHEADERS.unpack_from(begin)
    if size < _PHEADER.size or offset >= 1 << 62:
        return ""
    table = os.pread(descriptor, min(size * count, 1 << 16), offset)
    for at in range(0, len(table) - size + 1, size):
        kind, place, length = _PHEADER.unpack_from(table, at)
        if kind == _PT_INTERP and place < 1 << 62 and length <= os.pathconf("/", "PC_PATH_MAX"):
            return os.fsdecode(os.pread(descriptor, length, place).rstrip(b"\0"))
    return ""


def _interpreter(begin: bytes) -> str:
    words = begin[2:].split(b"\n", 1)[0].split()
    return os.fsdecode(words[0]) if words else ""


def _has_handlers() -> bool:
    """Whether the administrator has formats of his own, such as another processor's by qemu-user."""
    try:
        return any(entry.name not in ("register", "status") for entry in _HANDLERS.iterdir())
    except OSError:
        return False
