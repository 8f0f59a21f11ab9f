"""A program that calls sethostname(2) with its argument, as an ELF file of 160 bytes that needs nothing around it.

For a guest whose image may hold no such program, and where one of the C library does not start: executed by a
descriptor it has no path, which glibc's start-up asserts. Exit code: errno, 0 when the name was taken.
"""

from __future__ import annotations

import os
import platform
import struct

_BASE = 0x400000
_HEADERS = 64 + 56
_X86_64 = bytes.fromhex(
    "488b7c2410"  # mov rdi, [rsp+16]       argv[1]
    "31f6"  # xor esi, esi
    "803c3700"  # cmp byte [rdi+rsi], 0     its length
    "7404"  # je +4
    "ffc6"  # inc esi
    "ebf6"  # jmp -10
    "b8aa000000"  # mov eax, 170            sethostname
    "0f05"  # syscall
    "89c7"  # mov edi, eax
    "f7df"  # neg edi
    "b83c000000"  # mov eax, 60             exit
    "0f05"  # syscall
)


def hostname_program() -> int | None:
    """A descriptor of it, close-on-exec, which the caller owns; None on a machine that it is not written for."""
    if platform.machine() != "x86_64":
        return None
    descriptor = os.memfd_create("hostname", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, _elf(_X86_64))
        return os.open(
            f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC
        )  # nobody may execute what may be written
    finally:
        os.close(descriptor)


def _elf(code: bytes) -> bytes:
    """One loadable, executable segment (elf(5))."""
    size = _HEADERS + len(code)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return ident + header + segment + code
