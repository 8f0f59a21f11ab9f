"""What the native client (`native/client`) sends to the warm process, and the records that go back.

One stream connection for each command. First we greet: descriptors that waited in a queue which nobody reads would be
open for ever. The request: an 8-byte magic, the length of the rest as u32, then counts
(arguments, variables, descriptors: u32 each), the umask (u32), the blocked signals (u64, signal n as bit n - 1), the
numbers of the descriptors (i32 each), and NUL-ended texts: version, directory of the program, arguments, environment.
With the first byte come the working directory and the descriptors. All numbers are little endian. A record: a letter
and an i32.
"""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from typing import NamedTuple

from drupe.linux.unix_sockets import recv_fds, send_fds

MAGIC = b"drupe-1\n"
MAX_BYTES = 8 << 20
_HEADER = struct.Struct("<8sI")
_COUNTS = struct.Struct("<IIIIQ")
_RECORD = struct.Struct("<ci")

GREETING, RUNS, REFUSED, EXIT, DIED = b"H", b"R", b"N", b"X", b"W"


class BadRequest(Exception):
    """Not a request that this version understands."""


class Request(NamedTuple):
    """What a client asks for. descriptors: our number for each of the client's; directory: our descriptor of it."""

    version: bytes
    home: bytes
    argv: list[bytes]
    environment: list[bytes]
    umask: int
    blocked: int
    directory: int
    descriptors: dict[int, int]


def receive(conn: socket.socket) -> Request:
    """The request on a new connection. Raises BadRequest, OSError (with a timeout on `conn` also TimeoutError)."""
    fds: list[int] = []
    try:
        header, fds = recv_fds(conn, _HEADER.size)
        if len(header) != _HEADER.size or header[:8] != MAGIC:
            raise BadRequest("another protocol")
        length = _HEADER.unpack(header)[1]
        if length > MAX_BYTES:
            raise BadRequest(f"{length} bytes")
        return parse(_receive_all(conn, length), fds)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def _receive_all(conn: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        chunk = conn.recv(min(length - len(data), 1 << 20))
        if not chunk:
            raise BadRequest("it ends too early")
        data += chunk
    return bytes(data)


def parse(body: bytes, fds: list[int]) -> Request:
    """The request in `body` with the descriptors that came along. Raises BadRequest."""
    try:
        arguments, variables, count, umask, blocked = _COUNTS.unpack_from(body)
        if count > len(fds):
            raise BadRequest("descriptors are missing")
        numbers = struct.unpack_from(f"<{count}i", body, _COUNTS.size)
    except struct.error:
        raise BadRequest("it is too short") from None
    texts = body[_COUNTS.size + 4 * count :].split(b"\0")
    if len(texts) != 2 + arguments + variables + 1 or texts[-1] or len(fds) != count + 1 or len(set(numbers)) != count:
        raise BadRequest("its counts are wrong")
    if any(not 0 <= number < 1 << 20 for number in numbers) or umask > 0o777:
        raise BadRequest("a number is out of range")
    return Request(
        version=texts[0],
        home=texts[1],
        argv=texts[2 : 2 + arguments],
        environment=texts[2 + arguments : -1],
        umask=umask,
        blocked=blocked,
        directory=fds[0],
        descriptors=dict(zip(numbers, fds[1:], strict=True)),
    )


def report(conn: socket.socket, letter: bytes, number: int = 0, *, fds: tuple[int, ...] = ()) -> None:
    """Send one record; a client that has gone needs none."""
    with suppress(OSError):
        send_fds(conn, _RECORD.pack(letter, number), fds)
