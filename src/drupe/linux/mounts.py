"""mount(2), move_mount(2), mount_setattr(2), pivot_root(2): for a process that makes its own mount namespace."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final

MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_REMOUNT: Final = 0x20
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x40000
_MNT_DETACH: Final = 2
_AT_EMPTY_PATH: Final = 0x1000
_AT_RECURSIVE: Final = 0x8000
_MOVE_MOUNT_EMPTY_PATHS: Final = 0x4 | 0x40
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 0x1, 0x2, 0x4
_MOUNT_ATTR_IDMAP = 0x100000
_NR_MOVE_MOUNT: Final = 429  # the same numbers on every architecture
_NR_MOUNT_SETATTR: Final = 442
_NR_PIVOT_ROOT: Final = {"x86_64": 155, "aarch64": 41, "riscv64": 41}

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), what)


def mount(source: str, target: str, fstype: str, flags: int, data: str = "") -> None:
    """mount(2). Raises OSError naming the target."""
    words = (ctypes.c_char_p(os.fsencode(word)) for word in (source, target, fstype))
    _check(_libc.mount(*words, ctypes.c_ulong(flags), ctypes.c_char_p(data.encode() or None)), target)


def move_tree(tree: int, target: int) -> None:
    """Mount a tree that open_tree(2) gave on what the descriptor `target` is. Raises OSError."""
    empty = ctypes.c_char_p(b"")
    _check(_libc.syscall(_NR_MOVE_MOUNT, tree, empty, target, empty, _MOVE_MOUNT_EMPTY_PATHS), "move_mount")


def set_tree_flags(tree: int, *, read_only: bool) -> None:
    """Make a tree of open_tree(2) private, nosuid and nodev, and read-only if asked, with all below it (Linux 5.12)."""
    flags = _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV | (_MOUNT_ATTR_RDONLY if read_only else 0)
    _set_attributes(tree, struct.pack("=QQQQ", flags, 0, MS_PRIVATE, 0), recursive=True)


def map_tree_ids(tree: int, user_namespace: int, *, recursive: bool) -> None:
    """Show the files of a tree of open_tree(2) with the ids of a user namespace, by its descriptor (Linux 5.12; see
    mount_setattr(2), "ID-mapped mounts"). Raises OSError (EINVAL: its file system cannot; EPERM: it is mapped)."""
    _set_attributes(tree, struct.pack("=QQQQ", _MOUNT_ATTR_IDMAP, 0, 0, user_namespace), recursive=recursive)


def _set_attributes(tree: int, attributes: bytes, *, recursive: bool) -> None:
    result = _libc.syscall(
        _NR_MOUNT_SETATTR, tree, ctypes.c_char_p(b""), _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0),
        ctypes.c_char_p(attributes), ctypes.c_size_t(len(attributes)),
    )  # fmt: skip
    _check(result, "mount_setattr")


def enter_root(directory: str) -> None:
    """Make `directory`, a mount, the root of this mount namespace, and let go of the old one. Raises OSError."""
    os.chdir(directory)
    number = _NR_PIVOT_ROOT[os.uname().machine]
    _check(_libc.syscall(number, ctypes.c_char_p(b"."), ctypes.c_char_p(b".")), directory)
    _check(_libc.umount2(ctypes.c_char_p(b"."), _MNT_DETACH), directory)
    os.chdir("/")
