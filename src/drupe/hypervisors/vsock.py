"""Hybrid vsock: a Unix socket of the VMM that leads to a port of the guest (Firecracker's docs/vsock.md)."""

from __future__ import annotations

import asyncio
import errno
import socket
from pathlib import Path

from drupe.errors import DeadlineExceeded, DrupeError, InvalidArgument, Unavailable
from drupe.hypervisors.lines import Line
from drupe.linux.unix_sockets import short_name
from drupe.rpc.timeouts import timeout

_MAX_ANSWER_BYTES = 32
_RETRY_S = 0.02


AGENT_PORT = 1024  # where the guest's agent listens
AGENT_CHANNEL = f"drupe.channel=vsock:{AGENT_PORT}"  # a word of the guest kernel's command line
_BOOTS_WITHIN_S = 600.0  # whoever waits for the agent has a limit of its own


async def open_hybrid(path: Path) -> Line:
    """To the guest's agent, which may be booting still: tried until it listens. Raises OSError when there is no VMM."""
    if not path.is_socket():
        raise FileNotFoundError(errno.ENOENT, "the VMM has no vsock socket")
    sock = await connect_hybrid(path, AGENT_PORT, timeout_s=_BOOTS_WITHIN_S)
    return await asyncio.open_unix_connection(sock=sock)


async def connect_hybrid(path: Path, port: int, *, timeout_s: float) -> socket.socket:
    """A non-blocking connection to `port` of the guest, where nothing may listen yet: tried until `timeout_s` is over.

    Raises DeadlineExceeded with the last reason, InvalidArgument when the other end speaks another protocol.
    """
    reason = "nothing was tried"
    try:
        async with timeout(timeout_s):
            while True:
                try:
                    return await _connect(path, port)
                except Unavailable as error:
                    reason = error.cause
                await asyncio.sleep(_RETRY_S)
    except TimeoutError:
        what = f"port {port} of the guest could not be reached within {timeout_s:g} s"
        raise DeadlineExceeded(what, stage="agent", cause=reason) from None


async def _connect(path: Path, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        with short_name(path) as name:
            await loop.sock_connect(sock, name)
        await loop.sock_sendall(sock, b"CONNECT %d\n" % port)
        _check(await _line(sock))
    except OSError as error:
        sock.close()
        raise _unreachable(error.strerror or str(error)) from None
    except BaseException:
        sock.close()
        raise
    return sock


async def _line(sock: socket.socket) -> bytes:
    """One line, byte by byte: what follows it is the guest's, and not ours to take."""
    loop = asyncio.get_running_loop()
    line = b""
    while not line.endswith(b"\n") and len(line) < _MAX_ANSWER_BYTES:
        byte = await loop.sock_recv(sock, 1)
        if not byte:
            raise _unreachable("the VMM hung up: nothing listens there")
        line += byte
    return line


def _check(line: bytes) -> None:
    words = line.split()
    if not line.endswith(b"\n") or len(words) != 2 or words[0] != b"OK" or not words[1].isdigit():
        raise InvalidArgument("the socket does not speak hybrid vsock", stage="agent", cause=f"it said {line!r}")


def _unreachable(cause: str) -> DrupeError:
    return Unavailable("the guest cannot be reached", stage="agent", cause=cause)
