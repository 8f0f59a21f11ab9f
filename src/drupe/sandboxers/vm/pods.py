"""One machine, in memory."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from drupe.errors import Unavailable
from drupe.hypervisors.contract import Machine
from drupe.sandboxers.vm.agent import Agent
from drupe.sandboxers.vm.records import PodRecord
from drupe.sandboxers.vm.share import Share


@dataclass(slots=True)
class VmPod:
    """ending: its end is our own work. pids: of the programs that run it, by their suffix. changing: held while devices
    come and go, and while it grows and shrinks."""

    record: PodRecord
    agent: Agent
    share: Share
    machine: Machine | None = None
    ending: bool = False
    pids: dict[str, int] = field(default_factory=dict)
    starting: asyncio.Lock = field(default_factory=asyncio.Lock)
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def console(self) -> Path:
        return self.record.home / "console.log"

    def content(self, name: str) -> bytes:
        """A file of the pod's for the guest's /etc; nothing when there is none."""
        try:
            return (Path(self.record.dir) / name).read_bytes()
        except OSError:
            return b""

    def require(self) -> Machine:
        """The machine that runs. Unavailable says why there is none."""
        if self.record.failed:
            raise Unavailable(f"the machine of the pod is lost: {self.record.failed}", stage="vmm")
        if self.machine is None:
            raise Unavailable("the machine of the pod does not run", stage="vmm")
        return self.machine
