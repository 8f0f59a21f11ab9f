"""The memory alarm: what the kernel says late is told all the same."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from drupe.resources.cgroups import CgroupEvent, Cgroups
from drupe.runtime.alarm import Alarm

if TYPE_CHECKING:
    from collections.abc import Mapping


class LateCounter:
    """Version 1's order of things: a wake-up, and only later the counter of kills, with no second wake-up."""

    def __init__(self, *answers: list[CgroupEvent]) -> None:
        self._answers = list(answers)
        self._fd = os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def watch(self, path: str, *, pressure: Mapping[str, float] | None = None) -> LateCounter:
        return self

    def fileno(self) -> int:
        return self._fd

    def read(self) -> list[CgroupEvent]:
        with suppress(BlockingIOError):
            os.eventfd_read(self._fd)
        return self._answers.pop(0) if self._answers else []

    def close(self) -> None:
        os.close(self._fd)


async def heard(watcher: LateCounter, *, enough: int) -> list[str]:
    told: list[str] = []
    all_told = asyncio.Event()

    def tell(name: str) -> None:
        told.append(name)
        if len(told) == enough:
            all_told.set()

    alarm = Alarm(cast("Cgroups", watcher), "/pod", tell)
    alarm.listen()
    async with asyncio.timeout(10):
        await all_told.wait()
    alarm.close()
    return told


def test_a_kill_that_is_counted_after_the_wake_up_is_told() -> None:
    late = LateCounter([CgroupEvent.OOM], [], [CgroupEvent.OOM_KILL])
    assert asyncio.run(heard(late, enough=2)) == ["oom", "oom_kill"]


def test_a_second_one_during_the_first_is_told_too() -> None:
    late = LateCounter([CgroupEvent.OOM], [CgroupEvent.OOM, CgroupEvent.OOM_KILL], [CgroupEvent.OOM_KILL])
    assert asyncio.run(heard(late, enough=4)) == ["oom", "oom", "oom_kill", "oom_kill"]
