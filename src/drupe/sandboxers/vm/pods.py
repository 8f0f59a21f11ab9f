"""One machine, in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from drupe.errors import DeadlineExceeded, Unavailable, from_os_error
from drupe.hypervisors.contract import Machine
from drupe.sandboxers.vm.agent import Agent
from drupe.sandboxers.vm.records import PodRecord
from drupe.sandboxers.vm.roots import RootDisk
from drupe.sandboxers.vm.share import Share

T = TypeVar("T")


@dataclass(slots=True)
class VmPod:
    """ending: its end is our own work. saving: its processors stand still, or are about to. pids: of the
    programs that run it, by their suffix. trouble: why it is lost, since it was last started. plugging: held while
    devices come and go, and while it grows and shrinks."""

    record: PodRecord
    agent: Agent
    share: Share
    machine: Machine | None = None
    ending: bool = False
    saving: bool = False
    trouble: str = ""
    troubled: asyncio.Event = field(default_factory=asyncio.Event)
    pids: dict[str, int] = field(default_factory=dict)
    starting: asyncio.Lock = field(default_factory=asyncio.Lock)
    plugging: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def stands_still(self) -> bool:
        """Whether nothing of it can answer, as somebody wanted it so."""
        return self.saving or self.record.paused

    def begins(self) -> None:
        """It is started: what was before is over."""
        self.trouble, self.troubled = "", asyncio.Event()

    def loses(self, cause: str) -> None:
        """Whoever waits for it is told."""
        self.trouble = cause
        self.troubled.set()

    async def unless_lost(self, work: Awaitable[T], *, while_: str) -> T:
        """What comes of `work`, but no longer than there is a machine. Unavailable says what became of it."""
        working, lost = asyncio.ensure_future(work), asyncio.ensure_future(self.troubled.wait())
        try:
            await asyncio.wait({working, lost}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise Unavailable(f"the machine failed while {while_}", stage="vmm", cause=self.trouble)
            return working.result()
        finally:
            for one in (working, lost):
                one.cancel()
            await asyncio.gather(working, lost, return_exceptions=True)

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Errors of a machine that is lost meanwhile say why it is; those of a disk are ours."""
        try:
            yield
        except OSError as error:
            raise from_os_error(error) from None
        except (Unavailable, DeadlineExceeded):
            if not self.trouble:
                raise
            raise self.lost() from None

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """For as long as its processors are being stopped."""
        self.saving = True
        try:
            yield
        finally:
            self.saving = False

    def lost(self) -> Unavailable:
        """The error for whoever needs it."""
        cause = self.record.failed or self.trouble
        return Unavailable("the machine of the pod is lost", stage="vmm", cause=cause, may_have_run=True)

    @property
    def console(self) -> Path:
        return self.record.home / "console.log"

    @property
    def share_log(self) -> Path:
        """What virtiofsd wrote."""
        return self.record.home / "virtiofsd.log"

    def content(self, name: str) -> bytes:
        """A file of the pod's for the guest's /etc; nothing when there is none."""
        try:
            return (Path(self.record.dir) / name).read_bytes()
        except OSError:
            return b""

    async def plug(self, disk: RootDisk) -> None:
        """Have a disk in the machine; one that is there already is shared."""
        async with self.plugging:
            if all(one.id != disk.id for one in self.record.disks):
                await self.require().add(disk.disk())
                self.record.disks.append(disk)
                self.record.save()

    async def unplug(self, disk: RootDisk, *, timeout_s: float) -> None:
        """Take a disk away that was plugged in while it ran."""
        async with self.plugging:
            if self.machine is not None and not self.record.paused:
                await self.machine.remove(disk.id, timeout_s=timeout_s)
            self.record.disks = [one for one in self.record.disks if one.id != disk.id]
            self.record.save()

    def require(self) -> Machine:
        """The machine that runs. Unavailable says why there is none."""
        if self.record.failed:
            raise self.lost()
        if self.machine is None:
            raise Unavailable("the machine of the pod does not run", stage="vmm")
        return self.machine
