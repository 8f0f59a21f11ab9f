"""Ways to the agent of a machine, as streams: a socket of the VMM's, or two FIFOs that it holds open."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from drupe.linux.unix_sockets import short_name

Line = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def open_socket(path: Path) -> Line:
    """To the socket that stands for the agent's port. Raises OSError."""
    with short_name(path) as name:
        return await asyncio.open_unix_connection(name)


class _Sending(asyncio.StreamReaderProtocol):
    """The end of the FIFO that is written to: closing it closes the other one too."""

    def __init__(self, receiving: asyncio.BaseTransport) -> None:
        super().__init__(asyncio.StreamReader())
        self._receiving = receiving

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._receiving.close()


async def open_fifos(reading: Path, writing: Path) -> Line:
    """The VMM holds both FIFOs open for both ends, so that neither hangs up when we go; nor when we come is anything lost
    that was said in between. Raises OSError."""
    loop = asyncio.get_running_loop()
    incoming = os.fdopen(os.open(reading, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", 0)
    try:
        outgoing = os.fdopen(os.open(writing, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC), "wb", 0)
    except BaseException:
        incoming.close()
        raise
    reader = asyncio.StreamReader()
    receiving, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), incoming)
    sending, protocol = await loop.connect_write_pipe(lambda: _Sending(receiving), outgoing)
    return reader, asyncio.StreamWriter(sending, protocol, reader, loop)
