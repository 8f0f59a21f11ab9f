"""Tars made by hand, member by member, honest and hostile ones."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
from pathlib import Path
from typing import Any

BLOCK = 512


def member(name: str | bytes, kind: bytes = b"0", data: bytes = b"", **fields: Any) -> bytes:
    """One raw ustar member, nothing checked. fields: mode, uid, gid, mtime, link, major, minor, size."""
    raw_name = os.fsencode(name)
    size = fields.get("size", len(data))
    header = bytearray(
        struct.pack(
            "100s8s8s8s12s12s8s1s100s6s2s32s32s8s8s155s12x",
            raw_name[:100],
            b"%07o\0" % fields.get("mode", 0o755 if kind == b"5" else 0o644),
            b"%07o\0" % fields.get("uid", os.getuid()),
            b"%07o\0" % fields.get("gid", os.getgid()),
            b"%011o\0" % size,
            b"%011o\0" % fields.get("mtime", 1_600_000_000),
            b" " * 8,
            kind,
            os.fsencode(fields.get("link", b""))[:100],
            b"ustar\0",
            b"00",
            b"",
            b"",
            b"%07o\0" % fields.get("major", 0),
            b"%07o\0" % fields.get("minor", 0),
            b"",
        )
    )
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data + bytes(-len(data) % BLOCK)


def pax(**records: str | bytes) -> bytes:
    """An extended header; `__` in a key stands for a dot."""
    return pax_records({key.replace("__", "."): value for key, value in records.items()})


def pax_records(records: dict[str, str | bytes]) -> bytes:
    """An extended header with any keys."""
    body = b""
    for key, value in records.items():
        text = os.fsencode(key) + b"=" + os.fsencode(value) + b"\n"
        length = len(text) + 2
        while len(b"%d " % length) + len(text) != length:
            length += 1
        body += b"%d " % length + text
    return member("pax", b"x", body)


def archive(*members: bytes) -> bytes:
    """The members with the end of the archive."""
    return b"".join(members) + bytes(2 * BLOCK)


def stream(*members: bytes) -> io.BytesIO:
    """The same, to be read."""
    return io.BytesIO(archive(*members))


def honest(path: Path, files: dict[str, bytes]) -> Path:
    """A well-formed gzip tar of regular files, written with Python's own tarfile."""
    with gzip.open(path, "wb") as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.uid, info.gid = len(data), os.getuid(), os.getgid()
            tar.addfile(info, io.BytesIO(data))
    return path
