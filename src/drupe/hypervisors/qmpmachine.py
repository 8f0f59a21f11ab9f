"""What machines have in common whose program is spoken to over QMP."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from drupe.errors import DrupeError, Unavailable
from drupe.hypervisors.contract import KILLED, Machine, MachineConfig
from drupe.hypervisors.qmp import Qmp, understood
from drupe.hypervisors.words import readable

M = TypeVar("M", bound=type[Machine])


def wary(machine: M) -> M:
    """Of a class: its calls raise HelperFailed where the monitor's answers make no sense."""
    for name, call in list(vars(machine).items()):
        if inspect.iscoroutinefunction(call) and not name.startswith("_"):
            setattr(machine, name, _wary(call))
    return machine


def _wary(call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(call)
    async def asked(*arguments: Any, **named: Any) -> Any:
        with understood():
            return await call(*arguments, **named)

    return asked


class QmpMachine(Machine):
    """Its end is told by an event, or is the end of the connection."""

    def __init__(self, qmp: Qmp, config: MachineConfig) -> None:
        self._qmp = qmp
        self._config = config
        self._gone: dict[str, asyncio.Future[str]] = {}
        self._end: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._listening = asyncio.ensure_future(self._listen())

    async def wait(self) -> str:
        return await asyncio.shield(self._end)

    async def pause(self) -> None:
        await self._qmp.call("stop")

    async def resume(self) -> None:
        await self._qmp.call("cont")

    async def quit(self, *, timeout_s: float) -> None:
        with contextlib.suppress(Unavailable):
            await self._qmp.call("quit", timeout_s=timeout_s)

    async def close(self) -> None:
        self._listening.cancel()
        await self._qmp.close()

    async def _listen(self) -> None:
        why = KILLED
        with contextlib.suppress(DrupeError), understood():
            while True:
                event = await self._qmp.event()
                why = self._heard(str(event["event"]), event.get("data", {})) or why
        if not self._end.done():
            self._end.set_result(why)

    def _heard(self, name: str, data: Mapping[str, Any]) -> str:
        """What it means for the machine's end; "" when nothing."""
        device = str(data.get("device", ""))
        if name == "DEVICE_DELETED" and device in self._gone:
            self._settle(device, "")
        elif name == "DEVICE_UNPLUG_GUEST_ERROR" and device in self._gone:
            self._settle(device, "the guest refused")
        if name == "GUEST_PANICKED":
            return "panic"
        if name == "SHUTDOWN":
            reason = readable(str(data.get("reason", "shutdown")))
            return {"guest-shutdown": "shutdown", "guest-reset": "reset", "guest-panic": "panic"}.get(reason, reason)
        return ""

    def _settle(self, device: str, said: str) -> None:
        if not self._gone[device].done():
            self._gone[device].set_result(said)
