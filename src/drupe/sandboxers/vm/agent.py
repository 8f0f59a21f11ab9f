"""The host's end of the channel to a guest's agent: one ttrpc connection, made anew when it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from drupe.errors import DeadlineExceeded, DrupeError, Unavailable, Unsupported
from drupe.hypervisors.lines import Line
from drupe.rpc.guest import guest_pb2 as pb
from drupe.rpc.timeouts import timeout
from drupe.rpc.ttrpc import Client

PROTOCOL = 1
ANSWERS_WITHIN_S = 30.0  # without an accelerator a busy guest is slow; one that hangs is found by its monitor
_GUEST, _TASK = "drupe.guest.v1.Guest", "containerd.task.v3.Task"
_TRY_AGAIN_S = 0.05
_HINT = "the guest hangs or is overloaded: drupe logs --sandbox POD"
# 0xff, and a label with its high bits set: what no message is likely to hold (native/agent/src/sync.rs)
MARK = b"\xff" + bytes(byte ^ 0x80 for byte in b"drupe agent sync")
_TOKEN_BYTES = 16
_SKIPPED_AT_MOST = 64 << 20

Resp = TypeVar("Resp", bound=Message)


class Agent:
    """open_line: connects to the agent's port or line. Calls raise what the agent answered as an error of
    drupe.errors, DeadlineExceeded when it does not answer, Unavailable when the connection or the machine has gone."""

    def __init__(self, open_line: Callable[[], Awaitable[Line]]) -> None:
        self._open_line = open_line
        self._client: Client | None = None
        self._connecting = asyncio.Lock()
        self._gone = asyncio.Event()
        self.told: pb.CheckResponse | None = None

    async def connect(self, *, timeout_s: float) -> pb.CheckResponse:
        """Reach the agent, which may be booting still: the request waits in its port. Unsupported for another
        protocol."""
        async with self._connecting:
            if self._client is not None:
                await self._drop(self._client)
            try:
                async with timeout(timeout_s):
                    client = await self._open()
            except TimeoutError:
                late = f"the guest's agent did not answer within {timeout_s:g} s"
                raise DeadlineExceeded(late, stage="agent", hint=_HINT) from None
            try:
                request = pb.CheckRequest(protocol=PROTOCOL)
                answer = await client.call(_GUEST, "Check", request, pb.CheckResponse, timeout_s=timeout_s)
            except BaseException:
                await client.close()
                raise
            self._client, self.told = client, answer
        if answer.protocol != PROTOCOL:
            raise Unsupported(
                f"the guest's agent {answer.agent_version} speaks protocol {answer.protocol}, this drupe {PROTOCOL}",
                kind="vm",
                hint="build the guest image anew: drupe guest build",
            )
        return answer

    async def _open(self) -> Client:
        """The line may have been left in the middle of a frame, in both directions: begin with a mark and bytes that
        nobody can know, and skip what comes before their answer."""
        try:
            reader, writer = await self._open_line()
        except OSError as error:
            raise Unavailable("the machine is not there", stage="agent", cause=error.strerror or "") from None
        try:
            beginning = MARK + os.urandom(_TOKEN_BYTES)
            writer.write(beginning)
            await _skip_to(reader, beginning)
        except (OSError, asyncio.IncompleteReadError):
            writer.close()
            raise Unavailable("the machine ended", stage="agent") from None
        except BaseException:
            writer.close()
            raise
        return Client(reader, writer)

    async def again(self) -> bool:
        """After Unavailable: connect anew, unless the machine has gone. Answers whether there is an agent."""
        while not self._gone.is_set():
            client = self._client
            if client is not None and client.is_open:
                return True
            try:
                await self.connect(timeout_s=ANSWERS_WITHIN_S)
            except DrupeError:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._gone.wait(), _TRY_AGAIN_S)
        return False

    async def guest(
        self,
        method: str,
        request: Message,
        answer: type[Resp] = Empty,  # type: ignore[assignment]
        *,
        timeout_s: float | None = ANSWERS_WITHIN_S,
    ) -> Resp:
        """A call of the guest service. timeout_s None: it may wait for ever."""
        return await self._call(_GUEST, method, request, answer, timeout_s)

    async def task(
        self,
        method: str,
        request: Message,
        answer: type[Resp] = Empty,  # type: ignore[assignment]
        *,
        timeout_s: float | None = ANSWERS_WITHIN_S,
    ) -> Resp:
        """A call of containerd's task service."""
        return await self._call(_TASK, method, request, answer, timeout_s)

    async def _call(
        self, service: str, method: str, request: Message, answer: type[Resp], timeout_s: float | None
    ) -> Resp:
        client = self._client
        if client is None:
            raise Unavailable("the machine has no agent now", stage="agent")
        try:
            return await client.call(service, method, request, answer, timeout_s=timeout_s)
        except DeadlineExceeded as error:
            error.stage = error.stage or "agent"
            error.hint = error.hint or _HINT
            raise

    async def events(self, after: int) -> AsyncIterator[pb.Event]:
        """Events from `after` on, until the machine has gone."""
        while not self._gone.is_set():
            client = self._client
            try:
                if client is None:
                    raise Unavailable("the machine has no agent now")
                async with client.stream(_GUEST, "Events", pb.Event, pb.EventsRequest(after=after)) as stream:
                    async for event in stream:
                        after = event.number
                        yield event
            except DrupeError:
                pass
            if not await self.again():
                return
            await asyncio.sleep(0)

    def gone(self) -> None:
        """The machine has ended: nobody tries again."""
        self._gone.set()

    async def close(self) -> None:
        """Hang up; the machine goes on."""
        self._gone.set()
        client, self._client = self._client, None
        if client is not None:
            await self._drop(client)

    async def _drop(self, client: Client) -> None:
        with contextlib.suppress(DrupeError, OSError):
            await client.close()


async def _skip_to(reader: asyncio.StreamReader, mark: bytes) -> None:
    """Read up to the end of `mark`. IncompleteReadError when the line ends before, or never comes to it."""
    seen, skipped = b"", 0
    while not seen.endswith(mark):
        data = await reader.read(1)
        skipped += len(data)
        if not data or skipped > _SKIPPED_AT_MOST:
            raise asyncio.IncompleteReadError(seen, None)
        seen = (seen + data)[-len(mark) :]
