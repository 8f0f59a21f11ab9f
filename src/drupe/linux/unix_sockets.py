"""Unix sockets: passing descriptors and knowing the peer (unix(7), cmsg(3))."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

MAX_FDS = 32  # far below the kernel's SCM_MAX_FD (253); no call of ours takes more than three


class Peer(NamedTuple):
    """Who is at the other end, as the kernel saw it at connect(2)."""

    pid: int
    uid: int
    gid: int


def peer_credentials(sock: socket.socket) -> Peer:
    """SO_PEERCRED of a connected unix socket (unix(7))."""
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return Peer(*struct.unpack("3i", data))


def send_fds(sock: socket.socket, data: bytes | memoryview, fds: Sequence[int]) -> int:
    """sendmsg(2) with SCM_RIGHTS; returns how many bytes went. The descriptors travel with the first of them."""
    return socket.send_fds(sock, [data], list(fds))


def recv_fds(sock: socket.socket, size: int) -> tuple[bytes, list[int]]:
    """recvmsg(2): bytes and the descriptors that came with them, close-on-exec. OSError EMSGSIZE: too many fds."""
    # socket.recv_fds of Python 3.11 drops its flags argument: the descriptors would be inherited by every child.
    room = socket.CMSG_LEN(MAX_FDS * struct.calcsize("i"))
    data, ancillary, flags, _ = sock.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC)
    fds = [
        fd
        for level, kind, content in ancillary
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        for (fd,) in struct.iter_unpack("i", content[: len(content) // 4 * 4])
    ]
    if flags & socket.MSG_CTRUNC:
        for fd in fds:
            os.close(fd)
        raise OSError(errno.EMSGSIZE, f"more than {MAX_FDS} descriptors in one message")
    return data, fds


@contextmanager
def short_name(path: Path) -> Iterator[str]:
    """A name for a socket that fits into sun_path, however deep it lies (unix(7)). FileNotFoundError without its
    directory."""
    handle = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{handle}/{path.name}"
    finally:
        os.close(handle)


@contextmanager
def listening(path: Path, kind: int = socket.SOCK_STREAM) -> Iterator[socket.socket]:
    """A listening socket at a path, for its owner alone; what was there is replaced. Closed at the end. kind:
    SOCK_STREAM, or SOCK_SEQPACKET for packets (unix(7))."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC) as sock:
        with short_name(path) as name:
            sock.bind(name)
        path.chmod(0o600)
        sock.listen(16)
        yield sock
