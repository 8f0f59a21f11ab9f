"""The host's end of a guest agent's line in tests: the mark that begins a connection, and calls by name."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from drupe.rpc.containerd import task_v3_pb2 as task_pb
from drupe.rpc.guest import guest_pb2 as pb
from drupe.rpc.ttrpc import Client

MARK = b"\xff" + bytes(byte ^ 0x80 for byte in b"drupe agent sync")
GUEST, TASK = "drupe.guest.v1.Guest", "containerd.task.v3.Task"


class Line:
    """Calls of both services; the names of methods are the protocols'."""

    def __init__(self, client: Client) -> None:
        self.client = client

    @classmethod
    async def connect(cls, path: Path, *, mark: bool = True, timeout_s: float = 60) -> Line:
        """To an agent's socket, or to the VMM's for its port: there the agent may be still to come."""
        return await cls.over(*await asyncio.open_unix_connection(str(path)), mark=mark, timeout_s=timeout_s)

    @classmethod
    async def over(
        cls, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, mark: bool = True, timeout_s: float = 60
    ) -> Line:
        """On a connection that is there."""
        if mark:
            beginning = MARK + os.urandom(16)
            writer.write(beginning)
            await asyncio.wait_for(reader.readuntil(beginning), timeout_s)
        return cls(Client(reader, writer))

    async def close(self) -> None:
        await self.client.close()

    async def guest(self, method: str, request: Message | None = None, *, timeout_s: float | None = 60) -> Any:
        """A call of the guest service; its answer's type goes by the descriptor."""
        return await self._call(GUEST, pb.DESCRIPTOR.services_by_name["Guest"], pb, method, request, timeout_s)

    async def task(self, method: str, *, timeout_s: float | None = 60, **fields: Any) -> Any:
        """A call of the Task service, its request by fields."""
        described = task_pb.DESCRIPTOR.services_by_name["Task"]
        request = getattr(task_pb, described.methods_by_name[method].input_type.name)(**fields)
        return await self._call(TASK, described, task_pb, method, request, timeout_s)

    async def _call(
        self, service: str, described: Any, module: Any, method: str, request: Message | None, timeout_s: float | None
    ) -> Any:
        answer = getattr(module, described.methods_by_name[method].output_type.name, Empty)
        return await self.client.call(service, method, request or Empty(), answer, timeout_s=timeout_s)

    async def output(self, container: str, exec_id: str = "", *, error: bool = False, max_bytes: int = 0) -> bytes:
        """The whole of a stream, to its end."""
        data, stream = b"", pb.STDERR if error else pb.STDOUT
        while True:
            part = await self.guest(
                "ReadOutput",
                pb.ReadOutputRequest(
                    id=container, exec_id=exec_id, stream=stream, offset=len(data), max_bytes=max_bytes
                ),
            )
            assert part.offset == len(data)
            data += part.data
            if part.end:
                return data

    async def copy_in(self, container: str, path: str, tar: bytes) -> None:
        """Unpack a tar stream in a directory of a container."""
        async with self.client.stream(GUEST, "CopyIn", Empty, timeout_s=60) as stream:
            await stream.send(pb.CopyChunk(id=container, path=path))
            for begin in range(0, len(tar), 100_000):
                await stream.send(pb.CopyChunk(data=tar[begin : begin + 100_000]))
            await stream.end()
            await stream.result()

    async def copy_out(self, container: str, path: str) -> bytes:
        """A file or tree of a container as a tar stream."""
        request = pb.CopyOutRequest(id=container, path=path)
        async with self.client.stream(GUEST, "CopyOut", pb.CopyChunk, request, timeout_s=60) as stream:
            return b"".join([chunk.data async for chunk in stream])
