"""A strict, streaming tar reader for bytes of strangers: ustar, GNU and PAX, sparse files included.

Python's `tarfile` ends silently at a corrupt header and reads extended headers of any size into memory, so it is not
used for reading. Formats: POSIX pax(1), GNU tar manual appendix "Tar Internals".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn

from drupe.errors import DataLoss, InvalidArgument, ResourceExhausted
from drupe.images.limits import DEFAULT_LIMITS, Limits
from drupe.images.streams import TarStream

BLOCK = 512
_ZEROS = bytes(BLOCK)
_HEADER = struct.Struct("100s8s8s8s12s12s8s1s100s6s2s32s32s8s8s155s12x")
_XATTR = b"SCHILY.xattr."
_HEADER_ONLY = b"123456"  # hard link, symlink, char, block, directory, fifo: a size there means no data
_KNOWN = b"01234567S"
_MAX_HOLES = 100_000


@dataclass(slots=True)
class Entry:
    """One member. kind: b"0" file, b"1" hard link, b"2" symlink, b"3" char, b"4" block, b"5" directory, b"6" fifo.

    size: apparent size. stored: bytes of data in the archive. sparse: (offset, length) of the data pieces, or None.
    """

    name: bytes
    kind: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    link: bytes = b""
    major: int = 0
    minor: int = 0
    stored: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    sparse: list[tuple[int, int]] | None = None

    def __str__(self) -> str:
        return repr(self.name.decode("utf-8", "backslashreplace"))[:200]


class TarReader:
    """Iterate over members; the data of the current one is read with `data()`, and skipped if it is not.

    Raises DataLoss for a corrupt or truncated archive, InvalidArgument for what no image may contain and
    ResourceExhausted beyond `limits`; each names the member.
    """

    def __init__(self, stream: TarStream, *, limits: Limits = DEFAULT_LIMITS) -> None:
        self._stream = stream
        self._limits = limits
        self._left = 0  # data bytes of the current member not yet read
        self._padding = 0
        self._globals: dict[bytes, bytes] = {}
        self.entries = 0

    def __iter__(self) -> Iterator[Entry]:
        while (entry := self._next()) is not None:
            self.entries += 1
            if self.entries > self._limits.max_entries:
                raise ResourceExhausted(f"archive has more than {self._limits.max_entries} entries")
            yield entry
            self._skip_rest(entry)

    def data(self, entry: Entry) -> Iterator[tuple[int, memoryview]]:
        """(offset in the file, bytes) of the current member, in order."""
        for start, length in entry.sparse if entry.sparse is not None else [(0, entry.stored)]:
            done = 0
            while done < length:
                piece = self._stream.take(length - done)
                if not piece:
                    raise DataLoss(f"archive ends inside {entry}")
                self._left -= len(piece)
                yield start + done, piece
                done += len(piece)

    def _skip_rest(self, entry: Entry) -> None:
        left = self._left + self._padding
        while left:
            piece = self._stream.take(left)
            if not piece:
                if self._left <= 0 and left <= self._padding:
                    break  # writers may leave out the padding of the last member
                raise DataLoss(f"archive ends inside {entry}")
            left -= len(piece)
        self._left = self._padding = 0

    def _block(self) -> bytes | None:
        """The next header block; None at the end (end of stream, or two zero blocks)."""
        block = self._stream.exact(BLOCK)
        if not block:
            return None
        if len(block) < BLOCK:
            raise DataLoss(f"archive ends inside a header after {self.entries} entries")
        if block == _ZEROS:
            following = self._stream.exact(BLOCK)
            if following and following.strip(b"\0"):
                raise DataLoss(f"archive has a lone zero block after {self.entries} entries")
            return None
        return block

    def _next(self) -> Entry | None:
        records: dict[bytes, bytes] = {}
        holes: list[tuple[int, int]] = []
        meta_bytes = 0
        while (block := self._block()) is not None:
            entry = self._parse(block)
            if entry.kind not in (b"x", b"g", b"L", b"K"):
                return self._finish(entry, block, self._globals | records, holes)
            meta_bytes += entry.stored + BLOCK
            if meta_bytes > self._limits.max_metadata_bytes:
                raise ResourceExhausted(f"archive has extended headers over {self._limits.max_metadata_bytes} bytes")
            body = self._metadata(entry)
            if entry.kind == b"x":
                records |= _pax(body, holes)
            elif entry.kind == b"g":
                self._globals |= _pax(body, [])
            else:
                records[b"path" if entry.kind == b"L" else b"linkpath"] = body.rstrip(b"\0")
        if records:
            raise DataLoss("archive ends after an extended header")
        return None

    def _metadata(self, entry: Entry) -> bytes:
        padded = -(-entry.stored // BLOCK) * BLOCK
        body = self._stream.exact(padded)
        if len(body) < entry.stored:
            raise DataLoss("archive ends inside an extended header")
        return body[: entry.stored]

    def _parse(self, block: bytes) -> Entry:
        (name, mode, uid, gid, size, mtime, checksum, kind, link, magic, _version, _uname, _gname, major, minor,
         prefix) = _HEADER.unpack(block)  # fmt: skip
        name = _text(name)
        where = f"entry {self.entries + 1}"
        _verify_checksum(block, checksum, where)
        if magic == b"ustar\0" and (head := _text(prefix)):
            name = head + b"/" + name
        stored = _number(size, where)
        entry = Entry(
            name=name,
            kind=b"0" if kind in b"\x007" else kind,
            mode=_number(mode, where) & 0o7777,
            uid=_number(uid, where),
            gid=_number(gid, where),
            size=stored,
            mtime_ns=_number(mtime, where, signed=True) * 1_000_000_000,
            link=_text(link),
            stored=stored,
        )
        if kind in (b"3", b"4"):
            entry.major, entry.minor = _number(major, where), _number(minor, where)
        return entry

    def _finish(self, entry: Entry, block: bytes, records: dict[bytes, bytes], holes: list[tuple[int, int]]) -> Entry:
        if entry.kind not in _KNOWN:
            raise InvalidArgument(f"archive entry {entry} has unsupported type {entry.kind!r}")
        if records:
            _apply_pax(entry, records)
        self._check_names(entry)
        if entry.kind == b"0" and entry.name.endswith(b"/") and not entry.stored:
            entry.kind = b"5"  # how archives from before POSIX mark a directory; GNU tar reads it so
        if entry.kind in _HEADER_ONLY:
            entry.size = entry.stored = 0
        self._left, self._padding = entry.stored, -entry.stored % BLOCK
        if entry.kind == b"S" or any(key.startswith(b"GNU.sparse.") for key in records):
            self._read_sparse(entry, block, records, holes)
        if entry.size > self._limits.max_file_bytes:
            raise ResourceExhausted(f"archive entry {entry} is larger than {self._limits.max_file_bytes} bytes")
        return entry

    def _check_names(self, entry: Entry) -> None:
        for text in (entry.name, entry.link):
            if b"\0" in text:
                raise InvalidArgument(f"archive entry {entry} has a NUL in its name")
            if len(text) >= self._limits.max_path_bytes:
                raise InvalidArgument(f"archive entry {entry} has a name of {len(text)} bytes, too long")
        if not entry.name:
            raise InvalidArgument(f"archive entry {self.entries + 1} has no name")

    # sparse files: four encodings of the same list

    def _read_sparse(
        self, entry: Entry, block: bytes, records: dict[bytes, bytes], holes: list[tuple[int, int]]
    ) -> None:
        if entry.kind == b"S":
            entry.size = _number(block[483:495], str(entry))
            pieces = self._old_gnu_map(entry, block)
        elif records.get(b"GNU.sparse.major") == b"1":
            entry.size = _decimal(records.get(b"GNU.sparse.realsize", b""), str(entry))
            pieces = self._inline_map(entry)
        else:
            size = records.get(b"GNU.sparse.size", records.get(b"GNU.sparse.realsize", b""))
            entry.size = _decimal(size, str(entry))
            text = records.get(b"GNU.sparse.map")
            pieces = holes if text is None else _pairs([_decimal(n, str(entry)) for n in text.split(b",") if n])
        entry.kind = b"0"
        entry.sparse = self._checked_map(entry, pieces)

    def _old_gnu_map(self, entry: Entry, block: bytes) -> list[tuple[int, int]]:
        pieces, start, count, extended = [], 386, 4, block[482]
        while True:
            for at in range(start, start + 24 * count, 24):
                if block[at] == 0:
                    break
                pieces.append((_number(block[at : at + 12], str(entry)), _number(block[at + 12 : at + 24], str(entry))))
            if not extended:
                return pieces
            if len(pieces) > _MAX_HOLES:
                raise ResourceExhausted(f"archive entry {entry} has too many holes")
            block = self._stream.exact(BLOCK)
            if len(block) < BLOCK:
                raise DataLoss(f"archive ends inside the header of {entry}")
            start, count, extended = 0, 21, block[504]

    def _inline_map(self, entry: Entry) -> list[tuple[int, int]]:
        """PAX 1.0: the map is text in front of the data, padded to a block: count, then offset and length of each."""
        numbers: list[int] = []
        rest = b""
        while not numbers or len(numbers) < 1 + 2 * numbers[0]:
            block = self._stream.exact(BLOCK)
            self._left -= BLOCK
            if len(block) < BLOCK or self._left < 0:
                raise DataLoss(f"archive entry {entry} has a truncated sparse map")
            *lines, rest = (rest + block).split(b"\n")
            wanted = 1 + 2 * numbers[0] - len(numbers) if numbers else len(lines)
            numbers += [_decimal(line, str(entry)) for line in lines[:wanted] if line.strip(b"\0")]
            if (numbers and numbers[0] > _MAX_HOLES) or len(rest) > BLOCK:
                raise ResourceExhausted(f"archive entry {entry} has too many holes")
        entry.stored = self._left
        return _pairs(numbers[1 : 1 + 2 * numbers[0]])

    def _checked_map(self, entry: Entry, pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
        end = total = 0
        for offset, length in pieces:
            if offset < end or offset + length > entry.size:
                raise DataLoss(f"archive entry {entry} has an impossible sparse map")
            end, total = offset + length, total + length
        if total != entry.stored:
            raise DataLoss(f"archive entry {entry} has a sparse map of {total} bytes for {entry.stored} bytes of data")
        return [piece for piece in pieces if piece[1]]


def _pairs(numbers: list[int]) -> list[tuple[int, int]]:
    if len(numbers) % 2 or len(numbers) > 2 * _MAX_HOLES:
        raise DataLoss("archive has an odd or oversized sparse map")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _text(raw: bytes) -> bytes:
    return raw.partition(b"\0")[0]


def _number(raw: bytes, where: str, *, signed: bool = False) -> int:
    """Octal text, or GNU's base-256 when the top bit is set."""
    if raw[0] & 0x80:
        value = int.from_bytes(raw, "big") & ((1 << (8 * len(raw) - 1)) - 1)
        if raw[0] & 0x40:  # two's complement: negative
            value -= 1 << (8 * len(raw) - 1)
        if not (value >= 0 or signed) or abs(value) >= 1 << 63:
            raise DataLoss(f"archive {where} has a number out of range")
        return value
    text = raw.strip(b" \0").partition(b"\0")[0]
    if not text:
        return 0
    if text.strip(b"01234567"):
        raise DataLoss(f"archive {where} has a bad number {text[:20]!r} in its header")
    return int(text, 8)


def _decimal(text: bytes, where: str) -> int:
    if not text.isdigit() or len(text) > 19:
        raise DataLoss(f"archive {where} has a bad number {text[:20]!r}")
    return int(text)


def _verify_checksum(block: bytes, field_: bytes, where: str) -> None:
    wanted = _number(field_, where)
    if wanted == sum(block) - sum(field_) + 256:
        return
    signed = sum(b - 256 if b > 127 else b for b in block[:148] + block[156:]) + 256  # historic Sun and BSD tars
    if wanted != signed:
        raise DataLoss(f"archive {where} has a corrupt header (checksum)")


def _pax(body: bytes, holes: list[tuple[int, int]]) -> dict[bytes, bytes]:
    """Records `length key=value\\n`. The pairs of sparse 0.0 repeat, so they are collected in `holes`."""
    records: dict[bytes, bytes] = {}
    offset = 0
    at = 0
    while at < len(body):
        space = body.find(b" ", at, at + 20)
        length = _decimal(body[at:space], "extended header") if space > 0 else 0
        end = at + length
        key, equals, value = body[space + 1 : end - 1].partition(b"=")
        if length < 5 or end > len(body) or body[end - 1] != 0x0A or not equals or not key:
            raise DataLoss("archive has a corrupt extended header")
        if key == b"GNU.sparse.offset":
            offset = _decimal(value, "sparse map")
        elif key == b"GNU.sparse.numbytes":
            holes.append((offset, _decimal(value, "sparse map")))
        records[key] = value
        at = end
    return records


def _apply_pax(entry: Entry, records: dict[bytes, bytes]) -> None:
    where = str(entry)
    for key, value in records.items():
        if key.startswith(_XATTR):
            entry.xattrs[key[len(_XATTR) :]] = value
        elif not value:
            continue  # an empty value takes a global record back
        elif key == b"path":
            entry.name = value
        elif key == b"linkpath":
            entry.link = value
        elif key == b"size":
            entry.size = entry.stored = _decimal(value, where)
        elif key == b"uid":
            entry.uid = _decimal(value, where)
        elif key == b"gid":
            entry.gid = _decimal(value, where)
        elif key == b"mtime":
            entry.mtime_ns = _nanoseconds(value, where)
    name = records.get(b"GNU.sparse.name")
    entry.name = name or entry.name


def _nanoseconds(text: bytes, where: str) -> int:
    whole, _, part = text.partition(b".")
    sign = -1 if whole.startswith(b"-") else 1
    digits = whole.lstrip(b"-") or b"0"
    if not digits.isdigit() or len(digits) > 12 or (part and not part.isdigit()):
        _bad_time(text, where)
    return sign * (int(digits) * 1_000_000_000 + int((part[:9] or b"0").ljust(9, b"0")))


def _bad_time(text: bytes, where: str) -> NoReturn:
    raise DataLoss(f"archive {where} has a bad time {text[:30]!r}")
