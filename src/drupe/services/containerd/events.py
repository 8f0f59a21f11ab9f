"""Events on their way to a containerd: in order, each until it was taken, across restarts of either.

No call ever waits for one: while containerd starts it asks for the state of its tasks and takes no events yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from drupe.errors import DeadlineExceeded, DrupeError, Unavailable
from drupe.keeper.client import Keeper
from drupe.linux.memfd import memory_file
from drupe.rpc.containerd.event_pb2 import Envelope
from drupe.rpc.containerd.forward_pb2 import ForwardRequest
from drupe.rpc.ttrpc import Client
from drupe.runtime.node import Node
from drupe.services.containerd.peers import Peer

RECORDS = "containerd-event"
KEPT = 10_000
_SERVICE = "containerd.services.events.ttrpc.v1.Events"
_CALL_TIMEOUT_S = 10.0
_LONGEST_WAIT_S = 5.0


def stamp(at: float) -> Timestamp:
    """A time in seconds since 1970 as protobuf has it."""
    return Timestamp(seconds=int(at), nanos=int(at % 1 * 1_000_000_000))


def packed(message: Message) -> AnyMessage:
    """A message of containerd's as an Any: its type's bare name is the URL, as containerd's typeurl has it."""
    return AnyMessage(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


class Outbox:
    """The events of one containerd that it has not taken yet; they are in the journal, too."""

    def __init__(self, peer: Peer, node: Node, keeper: Keeper) -> None:
        self._peer = peer
        self._node = node
        self._keeper = keeper
        self._waiting: dict[int, Envelope] = {}
        self._last = 0
        self._news = asyncio.Event()
        self._client: Client | None = None
        self._restore()
        self._sending = node.spawn(self._send_all(), f"events for containerd at {peer.grpc}")

    def _restore(self) -> None:
        for key, data in sorted(self._node.journal.records(f"{RECORDS}-{self._peer.key}").items()):
            self._last = int(key)
            self._waiting[self._last] = Envelope.FromString(data["envelope"])
        if self._waiting:
            self._news.set()

    def put(self, namespace: str, topic: str, event: Message) -> None:
        """Have it told after all those before it."""
        self._last += 1
        envelope = Envelope(timestamp=stamp(time.time()), namespace=namespace, topic=topic, event=packed(event))
        self._waiting[self._last] = envelope
        with contextlib.suppress(DrupeError):  # a full disk: it is told all the same, unless we die before
            data = {"envelope": envelope.SerializeToString()}
            self._node.journal.put_record(f"{RECORDS}-{self._peer.key}", f"{self._last:016d}", data)
        if len(self._waiting) > KEPT:
            self._node.note(f"containerd at {self._peer.grpc} takes no events; the oldest are dropped")
            self._drop(next(iter(self._waiting)))
        self._news.set()

    async def close(self) -> None:
        """What is left is told by the next daemon."""
        self._sending.cancel()
        if self._client is not None:
            await self._client.close()

    def _drop(self, number: int) -> None:
        self._waiting.pop(number, None)
        with contextlib.suppress(DrupeError):
            self._node.journal.delete_record(f"{RECORDS}-{self._peer.key}", f"{number:016d}")

    async def _send_all(self) -> None:
        wait_s = 0.05
        while True:
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                number, envelope = next(iter(self._waiting.items()))
                try:
                    await self._send(envelope)
                    wait_s = 0.05
                except (Unavailable, DeadlineExceeded):
                    await asyncio.sleep(wait_s)
                    wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
                    continue
                except DrupeError as error:  # it was read, and is not wanted
                    self._node.note(f"containerd at {self._peer.grpc} refused event {envelope.topic}: {error}")
                self._drop(number)

    async def _send(self, envelope: Envelope) -> None:
        if not self._peer.ttrpc:
            await self._publish(envelope)
            return
        if self._client is None:
            self._client = await Client.connect(self._peer.ttrpc.removeprefix("unix://"))
        try:
            request = ForwardRequest(envelope=envelope)
            await self._client.call(_SERVICE, "Forward", request, Empty, timeout_s=_CALL_TIMEOUT_S)
        except (Unavailable, DeadlineExceeded):
            client, self._client = self._client, None
            await client.close()
            raise

    async def _publish(self, envelope: Envelope) -> None:
        """By containerd's own program, which takes the event on standard input."""
        peer, event = self._peer, memory_file("event", envelope.event.SerializeToString())
        words = ["-address", peer.grpc, "publish", "--topic", envelope.topic, "--namespace", envelope.namespace]
        try:
            argv = ["sh", "-c", 'exec "$@" <&3', "sh", peer.publish, *words]
            await self._keeper.run(argv, fds={"event": event}, timeout_s=_CALL_TIMEOUT_S, check=True)
        finally:
            os.close(event)
