"""Watches over kernels: one that was stopped, or does not answer, has failed, though its process has not ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from drupe.errors import DeadlineExceeded, DrupeError
from drupe.sandboxers.appkernel.line import PROTOCOL
from drupe.sandboxers.appkernel.pods import KernelPod
from drupe.sandboxers.vm.watching import is_stopped

LOOK_EVERY_S = 0.5
_ASK_EVERY = 20  # looks
_ANSWERS_WITHIN_S = 30.0

Lost = Callable[[KernelPod, str], None]


class Watch:
    """One kernel, until it is lost or `stop`."""

    def __init__(self, pod: KernelPod, on_lost: Lost) -> None:
        self._pod = pod
        self._on_lost = on_lost
        self._watching = [asyncio.ensure_future(self._look()), asyncio.ensure_future(self._ask())]

    def stop(self) -> None:
        for watching in self._watching:
            if watching is not asyncio.current_task():
                watching.cancel()

    async def _look(self) -> None:
        """A stopped process ends nothing and says nothing: its state is read."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if self._pod.pid and is_stopped(self._pod.pid):
                self._lose(f"the kernel of the pod (pid {self._pod.pid}) was stopped by a signal")
                return

    async def _ask(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S * _ASK_EVERY)
            if self._pod.frozen or self._pod.saving or not self._pod.runs:
                continue
            try:
                await self._pod.line.call("hello", protocol=PROTOCOL, timeout_s=_ANSWERS_WITHIN_S)
            except DeadlineExceeded:
                if not (self._pod.frozen or self._pod.saving):
                    self._lose(f"the kernel of the pod did not answer within {_ANSWERS_WITHIN_S:g} s")
                    return
            except DrupeError:
                with contextlib.suppress(DrupeError):
                    await self._pod.line.connect()

    def _lose(self, cause: str) -> None:
        if not self._pod.ending and self._pod.runs:
            self._on_lost(self._pod, cause)
