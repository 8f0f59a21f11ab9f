"""netlink(7): attributes, messages, and a socket that sends a batch and gathers the acknowledgements."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

NLM_F_REQUEST = 0x001
NLM_F_ACK = 0x004
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_DUMP = 0x300
NLA_F_NESTED = 0x8000

_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLM_F_CAPPED = 0x100
_NLM_F_ACK_TLVS = 0x200
_NLMSGERR_ATTR_MSG = 1
_NLA_TYPE_MASK = 0x3FFF
_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NETLINK_GET_STRICT_CHK = 12
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_RECEIVE_BYTES = 256 * 1024
_TIMEOUT_S = 10  # the kernel answers within the send; this only bounds a broken one


class Message(NamedTuple):
    """One message of type `kind` (RTM_NEWLINK…); `body` is the family header with its attributes."""

    kind: int
    flags: int
    body: bytes


class NetlinkError(OSError):
    """A request that the kernel refused: errno, and its own explanation (extended ack) when it gave one."""

    def __init__(self, number: int, explanation: str = "", index: int = 0) -> None:
        super().__init__(number, explanation or os.strerror(number))
        self.index = index


def attribute(kind: int, data: bytes) -> bytes:
    """One struct nlattr with its payload, padded to four bytes."""
    return _ATTRIBUTE.pack(len(data) + 4, kind) + data + b"\0" * (-len(data) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def text(kind: int, value: str) -> bytes:
    """A NUL-terminated string."""
    return attribute(kind, value.encode() + b"\0")


def u8(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=B", value))


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The (type, payload) pairs of a run of attributes; stops at the first malformed one."""
    offset = 0
    while offset + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or offset + length > len(data):
            return
        yield kind & _NLA_TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


class Netlink:
    """A netlink socket, used by one thread at a time. `fd`: take over one that was made in another namespace."""

    def __init__(self, protocol: int = NETLINK_ROUTE, *, fd: int | None = None) -> None:
        if fd is None:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        else:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol, fileno=fd)
        self._sequence = 0
        self._socket.setblocking(True)
        timeout = struct.pack("@ll", _TIMEOUT_S, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def batch(self, messages: Sequence[Message]) -> None:
        """Sends all messages in one packet; the kernel does them in order, and the rest even when one fails.

        Raises NetlinkError for the first that failed; its `index` says which.
        """
        first = self._send(messages, NLM_F_ACK)
        failure: NetlinkError | None = None
        waiting = len(messages)
        while waiting:
            for kind, sequence, flags, body in self._receive():
                if kind != _NLMSG_ERROR or sequence < first:
                    continue
                waiting -= 1
                failure = failure or _error_of(body, flags, sequence - first)
        if failure:
            raise failure

    def get(self, message: Message) -> bytes:
        """The body of the single answer to a request. Raises NetlinkError."""
        first = self._send([message], 0)
        for kind, sequence, flags, body in self._receive():
            if sequence != first:
                continue
            if kind == _NLMSG_ERROR:
                raise _error_of(body, flags, 0) or NetlinkError(errno.EPROTO)
            return body
        raise NetlinkError(errno.EPROTO)

    def dump(self, message: Message) -> list[tuple[int, bytes]]:
        """All (type, body) answers to a dump request. Raises NetlinkError."""
        first = self._send([message], NLM_F_DUMP)
        found: list[tuple[int, bytes]] = []
        while True:
            for kind, sequence, flags, body in self._receive():
                if sequence != first:
                    continue
                if kind == _NLMSG_DONE:
                    return found
                if kind == _NLMSG_ERROR:
                    raise _error_of(body, flags, 0) or NetlinkError(errno.EPROTO)
                found.append((kind, body))

    def _send(self, messages: Sequence[Message], flags: int) -> int:
        first = self._sequence + 1
        self._sequence += len(messages)
        packet = bytearray()
        for sequence, message in enumerate(messages, first):
            packet += _HEADER.pack(
                len(message.body) + 16, message.kind, message.flags | flags | NLM_F_REQUEST, sequence, 0
            )
            packet += message.body + b"\0" * (-len(message.body) % 4)
        self._socket.send(packet)
        return first

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        """The (type, sequence, flags, body) of each message of one datagram."""
        data = self._socket.recv(_RECEIVE_BYTES)
        offset = 0
        while offset + 16 <= len(data):
            length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
            if length < 16:
                return
            yield kind, sequence, flags, data[offset + 16 : offset + length]
            offset += (length + 3) & ~3


def _error_of(body: bytes, flags: int, index: int) -> NetlinkError | None:
    """The error that a struct nlmsgerr tells of; None for an acknowledgement."""
    (number,) = struct.unpack_from("=i", body)
    if number == 0:
        return None
    explanation = ""
    if flags & _NLM_F_ACK_TLVS:
        (length,) = struct.unpack_from("=I", body, 4)
        start = 20 if flags & _NLM_F_CAPPED else 4 + ((length + 3) & ~3)
        for kind, value in attributes(body[start:]):
            if kind == _NLMSGERR_ATTR_MSG:
                explanation = value.rstrip(b"\0").decode(errors="replace")
    return NetlinkError(-number, explanation, index)
