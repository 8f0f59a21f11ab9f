"""QMP, the control channel of QEMU and its kin, with drupe's errors and deadlines. The protocol itself is qemu.qmp's.

https://www.qemu.org/docs/master/interop/qmp-spec.html
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qemu.qmp import EventListener, ExecInterruptedError, ExecuteError, Message, QMPClient, QMPError

from drupe.errors import DeadlineExceeded, HelperFailed, Unavailable
from drupe.hypervisors.words import readable
from drupe.linux.unix_sockets import short_name
from drupe.rpc.pace import Pace
from drupe.rpc.timeouts import timeout

ANSWERS_WITHIN_S = 10.0
_EVENTS = ("SHUTDOWN", "RESET", "GUEST_PANICKED", "DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR", "STOP", "RESUME")

_EVENTS_PER_S, _EVENTS_AT_ONCE = 100.0, 1000.0

# From ValueError on: a line without an end or nested without one, and what is no message, of which the library takes no
# care.
_LOST = (
    ExecInterruptedError,
    QMPError,
    OSError,
    EOFError,
    ValueError,
    RecursionError,
    TypeError,
    KeyError,
    AttributeError,
    AssertionError,
)


class Events(EventListener):
    """Those that matter here. A monitor that floods us waits."""

    def __init__(self) -> None:
        super().__init__(names=_EVENTS)
        self._pace = Pace(_EVENTS_PER_S, _EVENTS_AT_ONCE)

    async def put(self, event: Message) -> None:
        await self._pace.take()
        await super().put(event)


class Qmp:
    """One connection. Every call raises Unavailable when the monitor has gone, DeadlineExceeded when it hangs,
    HelperFailed with its own words when it refuses."""

    def __init__(self, client: QMPClient, listener: EventListener) -> None:
        self._client = client
        self._listener = listener
        self._hanging_up = asyncio.ensure_future(self._hang_up())
        self._leaving: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, path: Path, *, timeout_s: float) -> Qmp:
        """To a monitor's socket; only one client has it at a time."""
        client = QMPClient(path.parent.name)
        client.logger = logging.getLogger("drupe.qmp")
        client.logger.propagate = False  # it logs each lost connection, which is told as an error here
        client.logger.addHandler(logging.NullHandler())
        listener = Events()
        client.register_listener(listener)
        with _translated("qmp_capabilities", timeout_s), short_name(path) as name:
            async with timeout(timeout_s):
                try:
                    await client.connect(name)
                except AssertionError:  # what ends the session came along with what began it
                    await client.disconnect()
                    raise
        return cls(client, listener)

    async def call(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: float = ANSWERS_WITHIN_S
    ) -> Any:
        """One command and its result."""
        with _translated(command, timeout_s):
            async with timeout(timeout_s):
                return await self._client.execute(command, dict(arguments or {}))

    async def give(self, name: str, descriptor: int) -> None:
        """Hand a descriptor over, to be named in the next commands (getfd)."""
        with _translated("getfd", ANSWERS_WITHIN_S):
            self._client.send_fd_scm(descriptor)
            async with timeout(ANSWERS_WITHIN_S):
                await self._client.execute("getfd", {"fdname": name})

    async def add_fd(self, descriptor: int) -> int:
        """Hand a descriptor over as a set of its own, /dev/fdset/N; answers N."""
        with _translated("add-fd", ANSWERS_WITHIN_S):
            self._client.send_fd_scm(descriptor)
            async with timeout(ANSWERS_WITHIN_S):
                told: Any = await self._client.execute("add-fd", {})
        return int(told["fdset-id"])

    async def event(self) -> Mapping[str, Any]:
        """The next event. Unavailable when the monitor has gone."""
        waiting = asyncio.ensure_future(self._listener.get())
        lost = asyncio.ensure_future(self._lost())
        try:
            await asyncio.wait({waiting, lost}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise Unavailable("the monitor has gone")
            return dict(waiting.result())
        finally:
            waiting.cancel()
            lost.cancel()

    async def _lost(self) -> None:
        from qemu.qmp import Runstate

        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()

    async def _hang_up(self) -> None:
        """As soon as it is lost, also while nobody asks: else the library's tasks end with errors that nobody takes,
        each of which the event loop logs with a traceback, at the word of a hostile monitor."""
        await self._lost()
        await self._leave()

    async def _leave(self) -> None:
        """Disconnect, once, whoever asks and goes away meanwhile: the library's own wait for that, when it is
        cancelled, leaves an error that nobody takes."""
        if self._leaving is None:
            self._leaving = asyncio.ensure_future(self._disconnect())
        await asyncio.shield(self._leaving)

    async def _disconnect(self) -> None:
        with contextlib.suppress(*_LOST):
            await self._client.disconnect()

    async def close(self) -> None:
        """Hang up. Idempotent."""
        self._hanging_up.cancel()
        with contextlib.suppress(TimeoutError):
            async with timeout(ANSWERS_WITHIN_S):
                await self._leave()


@contextlib.contextmanager
def understood() -> Iterator[None]:
    """HelperFailed for answers that have not the form which the reference gives them."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise HelperFailed(
            "the monitor answered what it never does",
            stage="vmm",
            cause=readable(f"{type(error).__name__}: {error}", chars=200),
        ) from None


@contextlib.contextmanager
def _translated(command: str, timeout_s: float) -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise DeadlineExceeded(f"the monitor did not answer {command} within {timeout_s:g} s", stage="vmm") from None
    except ExecuteError as error:
        raise HelperFailed(f"the monitor refused {command}", stage="vmm", cause=readable(str(error))) from None
    except _LOST as error:
        raise Unavailable("the monitor of the machine has gone", stage="vmm", cause=readable(str(error))) from None
