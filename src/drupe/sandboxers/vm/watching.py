"""Watches over machines: what was stopped or does not answer has failed, though none of its processes has ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

from google.protobuf.empty_pb2 import Empty

from drupe.errors import DeadlineExceeded, DrupeError
from drupe.rpc.guest import guest_pb2 as pb
from drupe.sandboxers.vm.pods import VmPod
from drupe.sandboxers.vm.records import SHARE, VMM

LOOK_EVERY_S = 0.5
_ASK_EVERY = 20  # looks
_ANSWERS_WITHIN_S = 30.0
_NAMES = {VMM: "the virtual machine monitor", SHARE: "virtiofsd"}

Lost = Callable[[VmPod, str], None]


class Watch:
    """One machine, until it is lost or `stop`."""

    def __init__(self, pod: VmPod, on_lost: Lost) -> None:
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
            for suffix, pid in self._pod.pids.items():
                if is_stopped(pid):
                    self._lose(f"{_NAMES[suffix]} (pid {pid}) was stopped by a signal")
                    return

    async def _ask(self) -> None:
        """A guest whose agent does not answer for long hangs."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S * _ASK_EVERY)
            if self._pod.record.paused:
                continue
            try:
                await self._pod.agent.guest("Metrics", Empty(), pb.MetricsResponse, timeout_s=_ANSWERS_WITHIN_S)
            except DeadlineExceeded:
                if not self._pod.record.paused:
                    self._lose(f"the guest's agent did not answer within {_ANSWERS_WITHIN_S:g} s")
                    return
            except DrupeError:
                with contextlib.suppress(DrupeError):
                    await self._pod.agent.again()

    def _lose(self, cause: str) -> None:
        if not self._pod.ending:
            self._on_lost(self._pod, cause)


def is_stopped(pid: int) -> bool:
    """Whether a process stands still because of a signal (proc_pid_stat(5), state T)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except (OSError, IndexError):
        return False
