"""What the builder must know of ELF files: the libraries that a program needs, and what a kernel module says of itself.

System V ABI, chapters 4 and 5; 64-bit little-endian files only, as x86-64 and aarch64 have them.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path

from drupe.errors import InvalidArgument

_HEADER = struct.Struct("<16x24xQ10xHHH")  # e_shoff, e_shentsize, e_shnum, e_shstrndx
_SECTION = struct.Struct("<II8x8xQQI")  # sh_name, sh_type, sh_offset, sh_size, sh_link
_DYNAMIC = struct.Struct("<qQ")
_MAGIC = b"\x7fELF\x02\x01"
_SHT_DYNAMIC, _DT_NEEDED = 6, 1
_PT_INTERP = 3


def needed(path: Path) -> list[str]:
    """Names of the shared libraries of a program or library, the loader among them; none for a static one. Raises
    InvalidArgument for what is no ELF file."""
    with _reading(path) as data:
        found = [interpreter] if (interpreter := _interpreter(data)) else []
        for _, kind, content, link in _sections(data):
            if kind == _SHT_DYNAMIC:
                names = _content(data, link)
                found += [_text(names, value) for tag, value in _DYNAMIC.iter_unpack(content) if tag == _DT_NEEDED]
    return found


def module_info(path: Path) -> dict[str, list[str]]:
    """The key=value words of a kernel module's .modinfo; a key may have several values. Raises InvalidArgument."""
    info: dict[str, list[str]] = {}
    with _reading(path) as data:
        modinfo = [content for name, _, content, _ in _sections(data) if name == ".modinfo"]
    for word in b"".join(modinfo).decode(errors="replace").split("\0"):
        key, equals, value = word.partition("=")
        if equals:
            info.setdefault(key, []).append(value)
    if not info:
        raise InvalidArgument(f"{path} is no kernel module")
    return info


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[bytes]:
    data = path.read_bytes()
    if not data.startswith(_MAGIC):
        raise InvalidArgument(f"{path} is no 64-bit ELF file")
    try:
        yield data
    except (struct.error, IndexError, ValueError):  # an offset that leads nowhere
        raise InvalidArgument(f"the ELF file {path} is broken") from None


def _table(data: bytes) -> tuple[list[tuple[int, int, int, int, int]], int]:
    """(name, type, offset, size, link) of each section; index of the one with their names."""
    offset, entry, count, names = _HEADER.unpack_from(data)
    return [_SECTION.unpack_from(data, offset + entry * number) for number in range(count)], names


def _sections(data: bytes) -> Iterator[tuple[str, int, bytes, int]]:
    """(name, type, content, link) of each section."""
    table, names_at = _table(data)
    names = _content(data, names_at)
    for name, kind, offset, size, link in table:
        yield _text(names, name), kind, data[offset : offset + size], link


def _content(data: bytes, number: int) -> bytes:
    _, _, offset, size, _ = _table(data)[0][number]
    return data[offset : offset + size]


def _text(strings: bytes, offset: int) -> str:
    return strings[offset : strings.index(b"\0", offset)].decode()


def _interpreter(data: bytes) -> str:
    """The loader's path, from the segment that names it."""
    (offset,) = struct.unpack_from("<Q", data, 32)
    entry, count = struct.unpack_from("<HH", data, 54)
    for number in range(count):
        kind, begin, size = struct.unpack_from("<I4xQ16xQ", data, offset + entry * number)
        if kind == _PT_INTERP:
            return data[begin : begin + size].rstrip(b"\0").decode()
    return ""
