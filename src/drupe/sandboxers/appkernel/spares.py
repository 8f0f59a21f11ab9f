"""Spare kernels: a few that wait for pods to come, so that a start need not wait for one. From the first pod on, and as
many as are set; they end with the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Collection
from pathlib import Path

from drupe.errors import DrupeError
from drupe.keeper.client import Keeper
from drupe.sandboxers.appkernel.kernels import Kernels, Waiting
from drupe.sandboxers.appkernel.records import kernel_key
from drupe.sandboxers.appkernel.share import Share
from drupe.sandboxers.kept.dropping import drop_task

_PAUSE_S = 0.005
_COMES_WITHIN_S = 2.0


class Spares:
    """At most `count`. home: the directory of their directories, which they keep as kernels of pods."""

    def __init__(self, *, kernels: Kernels, home: Path, count: int) -> None:
        self._kernels = kernels
        self._home = home
        self._count = count
        self._ready: list[Waiting] = []
        self._filling: asyncio.Task[None] | None = None
        self._removing: set[asyncio.Task[None]] = set()
        self._closed = False
        self._coming: dict[str, float] = {}  # pods, and when they are late
        self._arrival = asyncio.Event()

    @property
    def keeper(self) -> Keeper:
        return self._kernels.keeper

    def __len__(self) -> int:
        return len(self._ready)

    async def take(self) -> Waiting | None:
        """One, for one pod; None when there is none. Those that ended, or came from a program that is no longer there,
        are removed."""
        while self._ready:
            spare = self._unready(self._ready[0])
            if spare.lives and spare.program == self._version():
                return spare
            await self._remove(spare)
        return None

    def _version(self) -> tuple[int, ...]:
        with contextlib.suppress(OSError):
            return self._kernels.version()
        return ()

    def expect(self, pod_id: str) -> None:
        """A pod is on its way: until it runs, or does not come soon, no spare is started, which would take its time."""
        self._coming[pod_id] = time.monotonic() + _COMES_WITHIN_S
        self._fill_soon()

    def arrived(self, pod_id: str) -> None:
        """It runs, or will not: there will be enough again."""
        self._coming.pop(pod_id, None)
        self._arrival.set()
        self._fill_soon()

    async def _rest(self) -> None:
        """Until no pod is on its way, and a moment longer: what has just been started comes first."""
        await asyncio.sleep(_PAUSE_S)
        while (left_s := max(self._coming.values(), default=0.0) - time.monotonic()) > 0:
            self._arrival.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrival.wait(), left_s)
            await asyncio.sleep(_PAUSE_S)

    def _fill_soon(self) -> None:
        if self._filling is None and not self._closed and len(self._ready) < self._count:
            self._filling = asyncio.ensure_future(self._fill())
            self._filling.add_done_callback(self._filled)

    def _filled(self, filling: asyncio.Task[None]) -> None:
        self._filling = None
        if not filling.cancelled():
            filling.exception()  # without one a pod starts as well, and says what is wrong

    async def _fill(self) -> None:
        while len(self._ready) < self._count:
            await self._rest()
            spare = await self._make()
            self._ready.append(spare)
            asyncio.get_running_loop().add_reader(spare.socket, self._gone, spare)

    def _unready(self, spare: Waiting) -> Waiting:
        """One that waits no longer."""
        self._ready.remove(spare)
        asyncio.get_running_loop().remove_reader(spare.socket)
        return spare

    def _gone(self, spare: Waiting) -> None:
        """It has ended, as it says nothing while it waits. The next pod has others made: what ends by itself would be
        made again and again."""
        removing = asyncio.ensure_future(self._remove(self._unready(spare)))
        self._removing.add(removing)
        removing.add_done_callback(self._removing.discard)

    async def _make(self) -> Waiting:
        place = self._home / os.urandom(8).hex()
        place.mkdir(mode=0o700, parents=True)
        try:
            await Share(self.keeper, place / "share").make()
            return await self._kernels.launch(place, kernel_key(place))
        except BaseException:
            await self._clear(place)
            raise

    async def _remove(self, spare: Waiting) -> None:
        spare.socket.close()
        await self._clear(spare.place)

    async def _clear(self, place: Path) -> None:
        with contextlib.suppress(DrupeError):
            await drop_task(self.keeper, kernel_key(place))
            await Share(self.keeper, place / "share").remove()
            shutil.rmtree(place, ignore_errors=True)
        for empty in (place / "share", place):  # the keeper went before there was more
            with contextlib.suppress(OSError):
                empty.rmdir()

    def close(self) -> None:
        """Let go of them, with which they end."""
        self._closed = True
        if self._filling is not None:
            self._filling.cancel()
        while self._ready:
            self._unready(self._ready[0]).socket.close()

    async def end(self) -> None:
        """All of them, now, and for good. One that is being started is waited for."""
        self._closed, self._count = True, 0
        if self._filling is not None:
            await asyncio.wait([self._filling])
        while self._ready:
            await self._remove(self._unready(self._ready[0]))
        if self._removing:
            await asyncio.wait(self._removing)

    async def recover(self, used: Collection[Path]) -> None:
        """Remove what an earlier daemon left: its spares have ended with it. used: places of pods."""
        if self._home.is_dir():
            for place in self._home.iterdir():
                if place not in used:
                    await self._clear(place)
