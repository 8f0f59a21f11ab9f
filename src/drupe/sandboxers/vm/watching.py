"""Watches over machines: what was stopped or does not answer has failed, though none of its processes has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from google.protobuf.empty_pb2 import Empty

from drupe.errors import DeadlineExceeded, DrupeError
from drupe.rpc.guest import guest_pb2 as pb
from drupe.sandboxers.vm.patience import Patience
from drupe.sandboxers.vm.pods import VmPod
from drupe.sandboxers.vm.records import SHARE, VMM

LOOK_EVERY_S = 0.3
_LOOK_AGAIN_S = 0.125  # while an answer is late
_PING_EVERY_S = 0.4
HANGS_AFTER_S = 0.6  # in which it could have answered, see `Patience`; after it was looked at for the first time
_EMULATED = 0.5  # what an emulated processor does in a second, in those of one that is none
_HANGS_AT_THE_LATEST_S = 30.0  # whatever the reason: its host may be as good as dead
_ASK_EVERY_S, _ANSWERS_WITHIN_S = 20.0, 30.0
_STOPPED, _TRACED = "T", "t"  # proc_pid_stat(5)
NAMES = {VMM: "the virtual machine monitor", SHARE: "virtiofsd"}

Lost = Callable[[VmPod, str], None]


class Watch:
    """One machine, from when its programs are started until it is lost or `stop`. Its processes are looked at from the
    beginning, its agent is asked from `listen` on."""

    def __init__(self, pod: VmPod, on_lost: Lost) -> None:
        self._pod = pod
        self._on_lost = on_lost
        self._stopped: set[str] = set()
        self._children: dict[int, list[int]] = {}
        self._watching = [asyncio.ensure_future(self._look())]

    def listen(self) -> None:
        """The agent is there: it has to answer. Idempotent."""
        if len(self._watching) == 1:
            self._watching += [asyncio.ensure_future(self._ping()), asyncio.ensure_future(self._ask())]

    def stop(self) -> None:
        for watching in self._watching:
            if watching is not asyncio.current_task():
                watching.cancel()

    async def _look(self) -> None:
        """A stopped process ends nothing and says nothing: its state is read. One that is seen so twice stays so."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            stopped = {suffix for suffix, pid in self._pod.pids.items() if self._is_stopped(pid)}
            for suffix in sorted(stopped & self._stopped):
                self._on_lost(self._pod, f"{NAMES[suffix]} (pid {self._pod.pids[suffix]}) was stopped by a signal")
                return
            self._stopped = stopped

    def _is_stopped(self, pid: int) -> bool:
        """It, or what it has started to do its work: virtiofsd is two processes, of which one only waits. Those that it
        traces itself stand still whenever it looks at them: so User-mode Linux runs a guest's programs."""
        if not self._children.get(pid):
            self._children[pid] = children_of(pid)
        return is_stopped(pid) or any(_state(child) == _STOPPED for child in self._children[pid])

    async def _ping(self) -> None:
        """A guest answers at once, however busy it is, or it hangs."""
        while True:
            await asyncio.sleep(_PING_EVERY_S)
            if self._pod.stands_still:
                continue
            asked = asyncio.ensure_future(self._pod.agent.ping())
            try:
                if not await self._answers(asked):
                    self._on_lost(self._pod, "the guest hangs: its agent does not answer")
                    return
            finally:
                asked.cancel()

    async def _answers(self, asked: asyncio.Future[None]) -> bool:
        """Whether it does. A machine that stands still is asked again later. Nearly each answers at once: what it costs
        to tell a slow one from one that hangs is paid for others only."""
        await asyncio.wait({asked}, timeout=_LOOK_AGAIN_S)
        if asked.done():
            return True
        counts = _EMULATED if self._pod.record.accelerator == "tcg" else 1.0
        patience = Patience(self._pod.pids.get(VMM, 0), running_counts=counts)
        for _ in range(int(_HANGS_AT_THE_LATEST_S / _LOOK_AGAIN_S)):
            await asyncio.wait({asked}, timeout=_LOOK_AGAIN_S)
            if asked.done() or self._pod.stands_still:
                return True
            if patience.had_s(at_most_s=2 * _LOOK_AGAIN_S) > HANGS_AFTER_S:
                return False
        return False

    async def _ask(self) -> None:
        """More slowly, what needs more of the agent than that it can be reached."""
        while True:
            await asyncio.sleep(_ASK_EVERY_S)
            if self._pod.stands_still:
                continue
            try:
                await self._pod.agent.guest("Metrics", Empty(), pb.MetricsResponse, timeout_s=_ANSWERS_WITHIN_S)
            except DeadlineExceeded:
                if not self._pod.stands_still:
                    self._on_lost(self._pod, f"the guest's agent did not answer within {_ANSWERS_WITHIN_S:g} s")
                    return
            except DrupeError:
                pass  # of a connection that is made anew, which `_ping` sees to


def children_of(pid: int) -> list[int]:
    """Those of its first thread (proc_pid_task_tid_children(5))."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def is_stopped(pid: int) -> bool:
    """Whether a process stands still because of a signal, or of who traces it."""
    return _state(pid) in (_STOPPED, _TRACED)


def lives(pid: int) -> bool:
    """Whether a process has not ended."""
    return _state(pid) not in "ZX"


def _state(pid: int) -> str:
    """Of its first thread (proc_pid_stat(5)); X when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as stat:  # noqa: PTH123 - often; a path costs twice that
            return stat.read().rpartition(b")")[2].split()[0].decode()
    except (OSError, IndexError):
        return "X"
