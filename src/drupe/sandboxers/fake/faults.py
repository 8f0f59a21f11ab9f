"""Failures and delays that a test asks the fake for."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from drupe.errors import HelperFailed


class Killed(BaseException):
    """The process that calls is dead: nothing it still tries has an effect."""


class Faults:
    """Each call of the fake passes here under its name: "create", "start"… of sandboxes, "task.create"… of tasks.

    calls: the names of all calls so far, in order.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.dead = False
        self._errors: dict[str, list[BaseException]] = defaultdict(list)
        self._gates: dict[str, asyncio.Event] = {}

    def fail(self, call: str, error: BaseException | None = None, *, times: int = 1) -> None:
        """Let the next `times` calls of that name raise `error` (HelperFailed when not given) and do nothing."""
        self._errors[call] += [error or HelperFailed(f"{call} failed as the test wants")] * times

    def hold(self, call: str) -> asyncio.Event:
        """Let calls of that name wait until the returned event is set."""
        return self._gates.setdefault(call, asyncio.Event())

    def clear(self) -> None:
        """Nothing fails or waits any more."""
        self._errors.clear()
        for gate in self._gates.values():
            gate.set()
        self._gates.clear()

    def alive(self) -> None:
        """Raise Killed once the caller was declared dead (`dead`)."""
        if self.dead:
            raise Killed

    async def passing(self, call: str) -> None:
        """Note the call; wait or raise as asked."""
        self.alive()
        self.calls.append(call)
        if call in self._gates:
            await self._gates[call].wait()
        if self._errors[call]:
            raise self._errors[call].pop(0)
