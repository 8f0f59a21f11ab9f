"""DNS messages (RFC 1035): just what a forwarder with a few names of its own must read and write.

Everything here takes bytes from pods and from the network: a malformed message raises BadMessage and nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

A, CNAME, PTR, AAAA, ANY = 1, 5, 12, 28, 255
IN = 1
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = 0, 1, 2, 3, 4, 5
MAX_UDP_BYTES = 512

_QR, _OPCODE, _AA, _TC, _RD, _RA = 0x8000, 0x7800, 0x0400, 0x0200, 0x0100, 0x0080
_HEADER = struct.Struct(">HHHHHH")
_MAX_POINTERS = 32


class BadMessage(ValueError):
    """Not a DNS message, or one that breaks the rules."""


class Question(NamedTuple):
    """The one question of a message. name: lower case, dots between labels, none at the end. end: offset behind it."""

    id: int
    flags: int
    name: str
    kind: int
    klass: int
    end: int


class Address(NamedTuple):
    """An A or AAAA record of an answer."""

    name: str
    address: IPv4Address | IPv6Address
    ttl_s: int


def parse_question(message: bytes) -> Question:
    """The question of a query. Raises BadMessage."""
    if len(message) < _HEADER.size:
        raise BadMessage("short header")
    number, flags, questions, _, _, _ = _HEADER.unpack_from(message)
    if flags & _QR or questions != 1:
        raise BadMessage("not one question")
    return _question(message, number, flags)


def is_plain_query(question: Question) -> bool:
    """Whether it is a standard query (opcode 0) of class IN."""
    return not question.flags & _OPCODE and question.klass == IN


def answers(question: bytes, response: bytes) -> bool:
    """Whether `response` belongs to `question`: same id, same name, type and class."""
    try:
        asked = parse_question(question)
        number, flags, questions, _, _, _ = _HEADER.unpack_from(response)
        if not flags & _QR or questions != 1:
            return False
        given = _question(response, number, flags)
    except (BadMessage, struct.error):
        return False
    return (asked.id, asked.name, asked.kind, asked.klass) == (given.id, given.name, given.kind, given.klass)


def with_id(message: bytes, number: int) -> bytes:
    return struct.pack(">H", number) + message[2:]


def error(message: bytes, code: int) -> bytes:
    """The answer that says only an error, for a message of which at least the header is readable."""
    number, flags = struct.unpack_from(">HH", message)
    try:
        end = _question(message, number, flags).end
        body, count = message[_HEADER.size : end], 1
    except BadMessage:
        body, count = b"", 0
    head = _HEADER.pack(number, _QR | _RA | flags & (_OPCODE | _RD) | code, count, 0, 0, 0)
    return head + body


def reply(message: bytes, question: Question, records: Sequence[bytes]) -> bytes:
    """An authoritative answer with these records' data, all of the question's name and type; truncated to fit UDP."""
    flags = _QR | _AA | _RA | question.flags & _RD
    body = message[_HEADER.size : question.end]
    room = MAX_UDP_BYTES - _HEADER.size - len(body)
    kept: list[bytes] = []
    for record in records:
        if sum(map(len, kept)) + len(record) > room:
            flags |= _TC
            break
        kept.append(record)
    return _HEADER.pack(question.id, flags, 1, len(kept), 0, 0) + body + b"".join(kept)


def record(kind: int, data: bytes, ttl_s: int) -> bytes:
    """A record whose name is the question's (a pointer to offset 12)."""
    return struct.pack(">HHHIH", 0xC00C, kind, IN, ttl_s, len(data)) + data


def encode_name(name: str) -> bytes:
    """A name as labels. Raises BadMessage for one that cannot be."""
    out = b""
    for label in name.split("."):
        raw = label.encode("ascii", errors="replace")
        if not 0 < len(raw) < 64:
            raise BadMessage(f"bad label in {name!r}")
        out += bytes([len(raw)]) + raw
    if len(out) > 254:
        raise BadMessage("name too long")
    return out + b"\0"


def addresses(response: bytes) -> Iterator[Address]:
    """The A and AAAA records of an answer section. Raises BadMessage."""
    if len(response) < _HEADER.size:
        raise BadMessage("short header")
    _, _, questions, count, _, _ = _HEADER.unpack_from(response)
    offset = _HEADER.size
    for _ in range(questions):
        offset = _name(response, offset)[1] + 4
    for _ in range(count):
        name, offset = _name(response, offset)
        kind, klass, ttl_s, length = _unpack(">HHIH", response, offset)
        data = response[offset + 10 : offset + 10 + length]
        offset += 10 + length
        if len(data) != length:
            raise BadMessage("short record")
        if klass == IN and kind == A and length == 4:
            yield Address(name, IPv4Address(data), ttl_s)
        elif klass == IN and kind == AAAA and length == 16:
            yield Address(name, IPv6Address(data), ttl_s)


def reverse_address(name: str) -> str:
    """The address that a name of in-addr.arpa or ip6.arpa asks about, or ""."""
    if name.endswith(".in-addr.arpa"):
        parts = name.removesuffix(".in-addr.arpa").split(".")[::-1]
        text = ".".join(parts)
        kind: type[IPv4Address] | type[IPv6Address] = IPv4Address
    elif name.endswith(".ip6.arpa"):
        digits = name.removesuffix(".ip6.arpa").split(".")[::-1]
        text = ":".join("".join(digits[i : i + 4]) for i in range(0, 32, 4)) if len(digits) == 32 else ""
        kind = IPv6Address
    else:
        return ""
    try:
        return str(kind(text))
    except ValueError:
        return ""


def _question(message: bytes, number: int, flags: int) -> Question:
    name, offset = _name(message, _HEADER.size)
    kind, klass = _unpack(">HH", message, offset)
    return Question(number, flags, name, kind, klass, offset + 4)


def _name(message: bytes, offset: int) -> tuple[str, int]:
    """The name at an offset, and the offset behind it. Pointers lead back only, and not for ever."""
    labels: list[str] = []
    size = 0
    end = -1
    for _ in range(128 + _MAX_POINTERS):
        if offset >= len(message):
            raise BadMessage("name runs off the end")
        length = message[offset]
        if length & 0xC0 == 0xC0:
            (pointer,) = _unpack(">H", message, offset)
            target = pointer & 0x3FFF
            end = offset + 2 if end < 0 else end
            if target >= offset:
                raise BadMessage("pointer leads forward")
            offset = target
            continue
        if length & 0xC0:
            raise BadMessage("unknown label type")
        if length == 0:
            return ".".join(labels), offset + 1 if end < 0 else end
        label = message[offset + 1 : offset + 1 + length]
        size += length + 1
        if len(label) != length or size > 254:
            raise BadMessage("bad label")
        labels.append(_text(label))
        offset += 1 + length
    raise BadMessage("name does not end")


def _text(label: bytes) -> str:
    """A label in lower case; bytes that could be mistaken for structure are escaped (RFC 4343)."""
    return "".join(chr(b) if 0x21 <= b < 0x7F and b not in b".\\" else f"\\{b:03d}" for b in label.lower())


def _unpack(layout: str, message: bytes, offset: int) -> tuple[int, ...]:
    try:
        return struct.unpack_from(layout, message, offset)
    except struct.error:
        raise BadMessage("short message") from None
