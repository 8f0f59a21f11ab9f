"""The host's end of the channel to a guest's agent: one ttrpc connection, made anew when it is lost.

Nothing that comes from a guest is believed: not that it has an end, nor that it is well formed, nor that it is short.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from typing import TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from drupe.errors import DataLoss, DeadlineExceeded, DrupeError, HelperFailed, InternalError, Unavailable, Unsupported
from drupe.hypervisors.lines import Line
from drupe.hypervisors.words import readable
from drupe.rpc.guest import guest_pb2 as pb
from drupe.rpc.pace import Pace
from drupe.rpc.timeouts import timeout
from drupe.rpc.ttrpc import Client

PROTOCOL = 1
PUT_AWAY = "put-away"  # features
ANSWERS_WITHIN_S = 30.0  # without an accelerator a busy guest is slow; one that hangs is found by its watch
_GUEST, _TASK = "drupe.guest.v1.Guest", "containerd.task.v3.Task"
_TRY_AGAIN_S = 0.05
_VERDICT_WITHIN_S = 2.0  # whether a connection was lost with its machine
_HINT = "the guest hangs or is overloaded: drupe logs --sandbox POD"
# 0xff, and a label with its high bits set: what no message is likely to hold (native/agent/src/sync.rs)
MARK = b"\xff" + bytes(byte ^ 0x80 for byte in b"drupe agent sync")
_TOKEN_BYTES = 16
_SKIPPED_AT_MOST = 16 << 20  # a frame, what QEMU holds, and what the guest's kernel does
FRAMES_PER_S, FRAMES_AT_ONCE = 2000.0, 4000.0

Resp = TypeVar("Resp", bound=Message)


class Agent:
    """open_line: connects to the agent's port or line. Calls raise what the agent answered as an error of
    drupe.errors, DeadlineExceeded when it does not answer, Unavailable when the connection or the machine has gone.
    on_nonsense: told of bytes that no agent of ours sends."""

    def __init__(
        self, open_line: Callable[[], Awaitable[Line]], on_nonsense: Callable[[str], None] = lambda _: None
    ) -> None:
        self._open_line = open_line
        self._on_nonsense = on_nonsense
        self._client: Client | None = None
        self._connecting = asyncio.Lock()
        self._gone = asyncio.Event()
        self._cause = ""
        self.told: pb.CheckResponse | None = None

    # -- the connection ---------------------------------------------------------------------------------------------

    async def connect(self, *, timeout_s: float) -> pb.CheckResponse:
        """Reach the agent, which may be booting still: the request waits in its port. Unsupported for another
        protocol."""
        async with self._connecting:
            answer = await self._connect(timeout_s)
        if answer.protocol != PROTOCOL:
            version = readable(answer.agent_version)
            raise Unsupported(
                f"the guest's agent {version} speaks protocol {answer.protocol}, this drupe {PROTOCOL}",
                kind="vm",
                hint="build the guest image anew: drupe guest build",
            )
        return answer

    async def _connect(self, timeout_s: float) -> pb.CheckResponse:
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
            with self._checked():
                answer = await client.call(_GUEST, "Check", request, pb.CheckResponse, timeout_s=timeout_s)
        except BaseException:
            await client.close()
            raise
        self._client, self.told = client, answer
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
        return Client(reader, writer, pace=Pace(FRAMES_PER_S, FRAMES_AT_ONCE))

    async def again(self) -> bool:
        """After Unavailable: connect anew, unless the machine has gone. Answers whether there is an agent. It tries
        until then: that its machine hangs, or talks nonsense, is for its watch to say."""
        trying, gone = asyncio.ensure_future(self._try_again()), asyncio.ensure_future(self._gone.wait())
        try:
            await asyncio.wait({trying, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            trying.cancel()
            gone.cancel()
        return not self._gone.is_set()

    async def _try_again(self) -> None:
        while True:
            with contextlib.suppress(DrupeError):
                async with self._connecting:
                    if self._client is None or not self._client.is_open:  # else another has done it meanwhile
                        await self._connect(ANSWERS_WITHIN_S)
                    return
            await asyncio.sleep(_TRY_AGAIN_S)

    def gone(self, cause: str) -> None:
        """The machine has failed: nobody tries again, and all that waits is told why."""
        self._cause = cause
        self._gone.set()
        if self._client is not None:
            self._client.give_up(self._lost())

    def _lost(self) -> Unavailable:
        """For calls of a machine that has gone."""
        if self._cause:
            return Unavailable("the machine of the pod is lost", stage="vmm", cause=self._cause, may_have_run=True)
        return Unavailable("the machine of the pod has ended", stage="vmm", may_have_run=True)

    async def close(self) -> None:
        """Hang up; the machine goes on."""
        self._gone.set()
        client, self._client = self._client, None
        if client is not None:
            await self._drop(client)

    async def _drop(self, client: Client) -> None:
        with contextlib.suppress(DrupeError, OSError):
            await client.close()

    @property
    def features(self) -> Collection[str]:
        """What it can do beyond the first version of its protocol."""
        return self.told.features if self.told is not None else ()

    # -- calls ------------------------------------------------------------------------------------------------------

    async def ping(self) -> None:
        """Come back when the agent has answered, whatever it says: an older one has no such method."""
        while True:
            try:
                await self.guest("Ping", Empty(), timeout_s=None)
                return
            except Unavailable:
                if not await self.again():
                    return
            except DrupeError:
                return

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
            raise self._lost() if self._gone.is_set() else Unavailable("the machine has no agent now", stage="agent")
        try:
            with self._checked():
                return await client.call(service, method, request, answer, timeout_s=timeout_s)
        except DeadlineExceeded as error:
            error.stage = error.stage or "agent"
            error.hint = error.hint or _HINT
            raise
        except Unavailable:
            if client.is_open:  # the agent's own answer
                raise
            await self._verdict()
            if self._gone.is_set():
                raise self._lost() from None
            raise

    async def _verdict(self) -> None:
        """A connection breaks a moment before it is known that its machine has failed, and why."""
        with contextlib.suppress(TimeoutError):
            async with timeout(_VERDICT_WITHIN_S):
                await self.again()

    @contextlib.contextmanager
    def _checked(self) -> Iterator[None]:
        """Words of a guest are cut and made readable; what is no answer at all is told."""
        try:
            yield
        except DrupeError as error:
            error.message, error.cause = readable(error.message), readable(error.cause)
            if isinstance(error, DataLoss):
                self.nonsense(error.message)
            if isinstance(error, InternalError):  # the guest's, and no bug of ours
                raise HelperFailed(error.message, cause=error.cause, may_have_run=error.may_have_run) from None
            raise

    def nonsense(self, what: str) -> None:
        """The agent does not keep to the protocol."""
        if not self._gone.is_set():
            self._on_nonsense(f"the guest's agent does not keep to its protocol: {what}")

    async def events(self, after: int) -> AsyncIterator[pb.Event]:
        """Events from `after` on, until the machine has gone."""
        while not self._gone.is_set():
            client = self._client
            try:
                if client is None:
                    raise Unavailable("the machine has no agent now")
                with self._checked():
                    async with client.stream(_GUEST, "Events", pb.Event, pb.EventsRequest(after=after)) as stream:
                        async for event in stream:
                            after = event.number
                            yield event
            except DrupeError:
                pass
            if not await self.again():
                return
            await asyncio.sleep(_TRY_AGAIN_S)


async def _skip_to(reader: asyncio.StreamReader, mark: bytes) -> None:
    """Read up to the end of `mark`. IncompleteReadError when the line ends before, or never comes to it."""
    skipped = 0
    while skipped < _SKIPPED_AT_MOST:
        try:
            await reader.readuntil(mark)
            return
        except asyncio.LimitOverrunError as error:
            skipped += len(await reader.readexactly(error.consumed))
    raise asyncio.IncompleteReadError(b"", None)
