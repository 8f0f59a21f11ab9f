"""Runs a program that makes no holes in files, though it may think so:

    python -I -S no_holes_program.py PROGRAM [ARGUMENT...]

fallocate(2) with FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE answers 0 and does nothing, by a filter that lasts
(seccomp(2)); other modes are as they were. For QEMU, which lets a guest's balloon punch holes into the file that its
memory is a private copy of, and others' too. That it then discards its own copy (MADV_DONTNEED) is all that is wanted.
"""

from __future__ import annotations

import ctypes
import os
import sys

_FALLOCATE = {"x86_64": (0xC000003E, 285), "aarch64": (0xC00000B7, 47)}  # AUDIT_ARCH_*, number of the call
_PUNCH_HOLE_KEEP_SIZE = 0x3
_LOAD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K
_NUMBER, _ARCH, _MODE = 0, 4, 24  # in struct seccomp_data
_ALLOW, _ERRNO_0 = 0x7FFF0000, 0x00050000
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2


class _Step(ctypes.Structure):
    """struct sock_filter."""

    _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_uint16), ("steps", ctypes.POINTER(_Step)))


def load() -> None:
    """Have this process and what it runs make no holes. Raises OSError, for example without no_new_privs."""
    arch, number = _FALLOCATE[os.uname().machine]
    steps = (_Step * 8)(
        _Step(_LOAD, 0, 0, _ARCH),
        _Step(_IF_EQUAL, 0, 5, arch),
        _Step(_LOAD, 0, 0, _NUMBER),
        _Step(_IF_EQUAL, 0, 3, number),
        _Step(_LOAD, 0, 0, _MODE),
        _Step(_IF_EQUAL, 0, 1, _PUNCH_HOLE_KEEP_SIZE),
        _Step(_RETURN, 0, 0, _ERRNO_0),
        _Step(_RETURN, 0, 0, _ALLOW),
    )
    program = _Program(len(steps), steps)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    load()
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606 that is what it is for
