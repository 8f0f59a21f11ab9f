"""libseccomp: compile a filter to the classic BPF program that seccomp(2) takes (seccomp_init(3) and its kin).

The library comes with crun and runc, which link to it. Loaded on first use.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

ACTIONS: Final = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
OPERATORS: Final = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
_WITH_DATA: Final = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")  # the low 16 bits are the errno or the message
_NO_SUCH_SYSCALL: Final = -1  # __NR_SCMP_ERROR
_OPTIMIZE: Final = 8  # SCMP_FLTATR_CTL_OPTIMIZE
_BINARY_TREE: Final = 2


class Compare(ctypes.Structure):
    """struct scmp_arg_cmp: argument `arg` against `a` (for MASKED_EQ: the mask) and `b`."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


class FilterRule(NamedTuple):
    """action with its data, for each of `names`; compares must all hold. Unknown names are skipped."""

    action: int
    names: Sequence[str]
    compares: tuple[tuple[int, int, int, int], ...] = ()


def action(name: str, data: int) -> int:
    """The number of an action; `data` is the errno or trace message where the action has one."""
    return ACTIONS[name] | (data & 0xFFFF if name in _WITH_DATA else 0)


def compile_filter(
    default: int, architectures: Sequence[str], rules: Sequence[FilterRule], *, tree: bool = False
) -> bytes:
    """The BPF program of a filter. architectures: libseccomp's lower-case names, the native one included or not.
    tree: look system calls up in a binary tree instead of one after the other; the verdicts are the same.

    Raises OSError: ENOENT if the library is missing, else what it answered.
    """
    lib = _library()
    context = lib.seccomp_init(default)
    if not context:
        raise OSError(errno.EINVAL, "seccomp_init refused the default action")
    try:
        for name in architectures:
            token = lib.seccomp_arch_resolve_name(name.encode())
            if not token:
                raise OSError(errno.EINVAL, f"unknown architecture {name}")
            _check(lib.seccomp_arch_add(context, token), name, allowed=errno.EEXIST)
        for rule in rules:
            _add(lib, context, rule, default)
        if tree:
            _check(lib.seccomp_attr_set(context, _OPTIMIZE, _BINARY_TREE), "optimize")
        return _export(lib, context)
    finally:
        lib.seccomp_release(context)


def _add(lib: ctypes.CDLL, context: int, rule: FilterRule, default: int) -> None:
    if rule.action == default:
        return  # the library refuses a rule that changes nothing
    compares = (Compare * len(rule.compares))(*(Compare(*c) for c in rule.compares))
    for name in rule.names:
        number = lib.seccomp_syscall_resolve_name(name.encode())
        if number != _NO_SUCH_SYSCALL:
            _check(lib.seccomp_rule_add_array(context, rule.action, number, len(compares), compares), name)


def _export(lib: ctypes.CDLL, context: int) -> bytes:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        _check(lib.seccomp_export_bpf(context, fd), "export")
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def _check(result: int, what: str, *, allowed: int = 0) -> None:
    if result < 0 and -result != allowed:
        raise OSError(-result, os.strerror(-result), what)


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL("libseccomp.so.2")
    except OSError as error:
        raise FileNotFoundError(errno.ENOENT, str(error)) from None
    lib.seccomp_init.restype = ctypes.c_void_p
    lib.seccomp_init.argtypes = [ctypes.c_uint32]
    lib.seccomp_release.argtypes = [ctypes.c_void_p]
    lib.seccomp_release.restype = None
    lib.seccomp_arch_resolve_name.argtypes = [ctypes.c_char_p]
    lib.seccomp_arch_resolve_name.restype = ctypes.c_uint32
    lib.seccomp_arch_add.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    lib.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    lib.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(Compare)
    ]  # fmt: skip
    lib.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
    lib.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    return lib
