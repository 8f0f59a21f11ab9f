"""Streams in the place of FIFOs (`io_type = "streaming"`): containerd calls
`containerd.services.streaming.v1.Streaming` where the tasks are served and names a stream; Create and Exec name the
same one as their input or output.

Data goes one way (containerd.types.transfer.Data), and containerd waits for WindowUpdates the other way before it
sends. Its own for us are read and not waited for: it counts wrong when it reads less at once than was sent, and then
gives none any more. Each stream has a connection of its own, whose fullness holds the workload back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError

from drupe.errors import AlreadyExists, InvalidArgument
from drupe.rpc.containerd.streaming_pb2 import StreamInit
from drupe.rpc.containerd.transfer_streaming_pb2 import Data, WindowUpdate
from drupe.rpc.ttrpc import Call, ServerStream, Services, streaming
from drupe.services.containerd.events import packed
from drupe.services.containerd.peers import Door, Peer

NAME = "containerd.services.streaming.v1.Streaming"
_CHUNK_BYTES = 32 * 1024
_WINDOW_BYTES = 64 * 1024

Key = tuple[str, str, str]
Stream = ServerStream[AnyMessage, AnyMessage]


class Place:
    """A stream that a task or a caller has named; both meet here. fd: our end of the pipe; input: it is written to."""

    def __init__(self) -> None:
        self.fd = -1
        self.input = False
        self.taken = asyncio.Event()  # by a task
        self.carrying = asyncio.Lock()  # one caller at a time: containerd calls again after its restart
        self.unsent = b""

    def close(self) -> None:
        """The other end of the pipe sees the end."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Streams:
    """All of them, by containerd, namespace and id."""

    def __init__(self) -> None:
        self._places: dict[Key, Place] = {}

    def open(self, key: Key, *, input_: bool) -> int:
        """The task's end of a stream. Raises AlreadyExists when another has it."""
        place = self._places.setdefault(key, Place())
        if place.taken.is_set():
            raise AlreadyExists(f"stream {key[2]!r} is in use")
        reading, writing = os.pipe2(os.O_CLOEXEC)
        place.fd, theirs = (writing, reading) if input_ else (reading, writing)
        os.set_blocking(place.fd, False)
        place.input = input_
        place.taken.set()
        return theirs

    def close_input(self, key: Key) -> None:
        """No more comes."""
        if (place := self._places.get(key)) is not None and place.input:
            self._forget(key, place)

    def forget(self, key: Key) -> None:
        """Its task is gone. What is under way to a caller still arrives."""
        if (place := self._places.get(key)) is not None and (place.input or not place.carrying.locked()):
            self._forget(key, place)

    def _forget(self, key: Key, place: Place) -> None:
        if self._places.get(key) is place:
            del self._places[key]
        place.close()

    async def carry(self, key: Key, stream: Stream) -> None:
        """Until one side ends."""
        place = self._places.setdefault(key, Place())
        async with place.carrying:
            try:
                await stream.send(packed(Empty()))  # it may begin
                await place.taken.wait()
                await (_take(place, stream) if place.input else _give(place, stream))
                self._forget(key, place)
            except OSError:  # the workload reads no more
                self._forget(key, place)
            finally:
                if not place.taken.is_set():
                    self._forget(key, place)


class StreamService:
    """The streams of one containerd's namespace."""

    def __init__(self, streams: Streams, peer: Peer, door: Door) -> None:
        self._streams = streams
        self._peer = peer.key
        self._namespace = door.namespace

    def services(self) -> Services:
        """For a ttrpc server."""
        return {NAME: {"Stream": streaming(AnyMessage, self._stream, requests=True, answers=True)}}

    async def _stream(self, _: Call, stream: Stream) -> None:
        first = await stream.receive()
        init = StreamInit()
        with contextlib.suppress(DecodeError):
            if first is not None and first.type_url.endswith("StreamInit"):
                init = StreamInit.FromString(first.value)
        if not init.id:
            raise InvalidArgument("a stream begins with its id")
        await self._streams.carry((self._peer, self._namespace, init.id), stream)


async def _give(place: Place, stream: Stream) -> None:
    """What the workload writes, to its end. A caller that goes is seen by `send`; what it was not sent stays."""
    updates = asyncio.ensure_future(_drop_updates(stream))
    try:
        while True:
            place.unsent = place.unsent or await _read(place.fd)
            if not place.unsent:
                return
            await stream.send(packed(Data(data=place.unsent)))
            place.unsent = b""
    finally:
        updates.cancel()
        await asyncio.wait([updates])


async def _drop_updates(stream: Stream) -> None:
    async for _ in stream:
        pass


async def _take(place: Place, stream: Stream) -> None:
    """What the caller sends, to its end."""
    window = 0
    while True:
        if window < _WINDOW_BYTES:
            await stream.send(packed(WindowUpdate(update=_WINDOW_BYTES)))
            window += _WINDOW_BYTES
        message = await stream.receive()
        if message is None:
            return
        data = _data_of(message)
        window -= len(data)
        await _write(place, data)


def _data_of(message: AnyMessage) -> bytes:
    try:
        return Data.FromString(message.value).data if message.type_url.endswith("Data") else b""
    except DecodeError:
        raise InvalidArgument("a stream's data cannot be read") from None


async def _read(fd: int) -> bytes:
    while True:
        try:
            return os.read(fd, _CHUNK_BYTES)
        except BlockingIOError:
            loop = asyncio.get_running_loop()
            await _ready(loop.add_reader, loop.remove_reader, fd)


async def _write(place: Place, data: bytes) -> None:
    while data:
        if place.fd < 0:
            raise BrokenPipeError
        try:
            data = data[os.write(place.fd, data) :]
        except BlockingIOError:
            loop = asyncio.get_running_loop()
            await _ready(loop.add_writer, loop.remove_writer, place.fd)


async def _ready(add: Callable[..., None], remove: Callable[[int], object], fd: int) -> None:
    ready = asyncio.Event()
    add(fd, ready.set)
    try:
        await ready.wait()
    finally:
        remove(fd)
