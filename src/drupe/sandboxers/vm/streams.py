"""The streams of one process in a machine: its output is pulled from the agent, logged, and given to who attached."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

from drupe.errors import DrupeError, Unavailable
from drupe.rpc.guest import guest_pb2 as pb
from drupe.rpc.pace import Pace
from drupe.sandboxers.vm.agent import Agent
from drupe.sandboxers.vm.attachments import VmAttachment
from drupe.sandboxers.vm.logs import LogWriter, Place
from drupe.spec.container import LogSpec

_MAX_BYTES = 256 * 1024
_QUIET_S, _LATEST_S = 0.5, 5.0  # as the keeper's: what outlives the process may hold its output open
_FLUSH_S = 0.5
# Output that trickles, a word at a time, is taken in larger parts after the first ones.
_FEW_BYTES, _OFTEN_PER_S, _AT_ONCE = 4096, 100.0, 100.0


class Streams:
    """Those of a container's first process (exec_id "") or of an exec. place: file for what another daemon needs."""

    def __init__(
        self, agent: Agent, guest: str, exec_id: str, *, tty: bool, log: LogSpec | None, place: Path | None
    ) -> None:
        self._agent = agent
        self._guest = guest
        self._exec = exec_id
        self._tty = tty
        self._path = place
        self._place = (Place.read(place) if place is not None else None) or Place()
        self._log = LogWriter(log, self._place)
        self._attached: list[VmAttachment] = []
        self._pulling: list[asyncio.Task[None]] = []
        self._heard = asyncio.Event()
        self.on_first: Callable[[], None] = lambda: None  # called when the first byte is here
        self._pace = Pace(_OFTEN_PER_S, _AT_ONCE)

    def attach(self, fds: Mapping[str, int], *, close_stdin: bool) -> VmAttachment:
        attachment = VmAttachment(fds, feed=self.feed, close_stdin=close_stdin)
        self._attached = [one for one in self._attached if not one.is_over]
        self._attached.append(attachment)
        if self._pulling:
            attachment.begin()
        return attachment

    def begin(self) -> None:
        """The process runs, or may have ended already: take its output."""
        self._note()
        streams = ("stdout",) if self._tty else ("stdout", "stderr")
        self._pulling = [asyncio.ensure_future(self._pull(stream)) for stream in streams]
        for attachment in self._attached:
            attachment.begin()

    def offsets(self) -> dict[str, int]:
        """Bytes of each stream that were taken."""
        return dict(self._place.offsets)

    def skip(self, offsets: Mapping[str, int]) -> None:
        """What comes begins there: the process has gone on from another's."""
        self._place.offsets.update(offsets)

    async def feed(self, data: bytes, close: bool) -> None:
        """Standard input."""
        for start in range(0, max(len(data), 1), _MAX_BYTES):
            part = data[start : start + _MAX_BYTES]
            request = pb.WriteInputRequest(id=self._guest, exec_id=self._exec, data=part, close=close)
            await self._agent.guest("WriteInput", request, timeout_s=None)

    async def _pull(self, stream: str) -> None:
        number = pb.STDOUT if stream == "stdout" else pb.STDERR
        while True:
            offset = self._place.offsets.get(stream, 0)
            request = pb.ReadOutputRequest(
                id=self._guest, exec_id=self._exec, stream=number, max_bytes=_MAX_BYTES, offset=offset
            )
            try:
                answer = await self._agent.guest("ReadOutput", request, pb.ReadOutputResponse, timeout_s=None)
            except Unavailable:
                if not await self._agent.again():
                    return
                continue
            except DrupeError:  # nobody knows the process any more
                return
            if answer.offset != offset or not (answer.data or answer.end):
                self._agent.nonsense("an answer to ReadOutput that is none")
                return
            if answer.data:
                await self._take(stream, answer.data, offset + len(answer.data))
            if answer.end:
                return
            if len(answer.data) < _FEW_BYTES:
                await self._pace.take()

    async def _take(self, stream: str, data: bytes, offset: int) -> None:
        self._heard.set()
        self.on_first()
        self.on_first = lambda: None
        self._log.write(stream, data)
        self._place.offsets[stream] = offset
        self._note()
        for attachment in self._attached:
            await attachment.put(stream, data)

    def _note(self) -> None:
        if self._path is not None:
            with contextlib.suppress(OSError):  # a full disk costs lines after a crash, not the workload
                self._place.write(self._path)

    async def finish(self) -> None:
        """The process has ended: wait for the rest of its output."""
        loop = asyncio.get_running_loop()
        latest = loop.time() + _LATEST_S
        while loop.time() < latest and any(not one.done() for one in self._pulling):
            self._heard.clear()
            done, _ = await asyncio.wait(self._pulling, timeout=_QUIET_S)
            if len(done) < len(self._pulling) and not self._heard.is_set():
                break
        await asyncio.gather(*(one.finish(within_s=_FLUSH_S) for one in self._attached))
        self._log.end()
        self.drop()

    def drop(self) -> None:
        """Let go of everything; what was attached has ended."""
        for pulling in self._pulling:
            pulling.cancel()
        for attachment in self._attached:
            attachment.let_go("exit")
        self._attached.clear()
        self._log.close()

    def forget(self) -> None:
        """Remove what was written down."""
        self.drop()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
