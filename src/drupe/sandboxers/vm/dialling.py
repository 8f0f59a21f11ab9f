"""Connections to ports of guests' loopbacks, carried by their agents."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from drupe.errors import DrupeError
from drupe.rpc.guest import guest_pb2 as pb
from drupe.sandboxers.vm.agent import Agent

_MAX_BYTES = 64 * 1024


class Dialler:
    """Keeps them for as long as both of their ends do."""

    def __init__(self) -> None:
        self._carrying: set[asyncio.Task[None]] = set()

    async def dial(self, agent: Agent, port: int) -> socket.socket:
        """The caller's end of one. Raises what the agent says where nobody listens."""
        answer = await agent.guest("Connect", pb.ConnectRequest(port=port), pb.ConnectResponse)
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        carrying = asyncio.ensure_future(_carry(agent, answer.exec_id, theirs))
        self._carrying.add(carrying)
        carrying.add_done_callback(self._carrying.discard)
        return ours

    def close(self) -> None:
        for carrying in self._carrying:
            carrying.cancel()


async def _carry(agent: Agent, connection: str, end: socket.socket) -> None:
    """Until both directions have ended, or one cannot go on. When the daemon closes, the agent sees its line end."""
    reader, writer = await asyncio.open_connection(sock=end)
    both = (_send(agent, connection, reader), _take(agent, connection, writer))
    ways = [asyncio.ensure_future(way) for way in both]
    try:
        with contextlib.suppress(DrupeError, OSError):
            await asyncio.gather(*ways)
    finally:
        for way in ways:
            way.cancel()
        writer.close()
    with contextlib.suppress(DrupeError):
        await agent.guest("Disconnect", pb.DisconnectRequest(exec_id=connection))


async def _send(agent: Agent, connection: str, reader: asyncio.StreamReader) -> None:
    """What the caller writes, and its end."""
    data = b"-"
    while data:
        data = await reader.read(_MAX_BYTES)
        request = pb.WriteInputRequest(exec_id=connection, data=data, close=not data)
        await agent.guest("WriteInput", request, timeout_s=None)


async def _take(agent: Agent, connection: str, writer: asyncio.StreamWriter) -> None:
    """What the guest's program writes, and its end."""
    offset, is_over = 0, False
    while not is_over:
        request = pb.ReadOutputRequest(exec_id=connection, stream=pb.STDOUT, max_bytes=_MAX_BYTES, offset=offset)
        answer = await agent.guest("ReadOutput", request, pb.ReadOutputResponse, timeout_s=None)
        if answer.offset != offset or not (answer.data or answer.end):
            agent.nonsense("an answer to ReadOutput that is none")
            return
        offset, is_over = offset + len(answer.data), answer.end
        writer.write(answer.data)
        await writer.drain()
    writer.write_eof()
