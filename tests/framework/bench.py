"""A whole runtime on the fake: Core, journal and recovery are the real ones, everything below is in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from drupe.runtime.container import Container
from drupe.runtime.core import Core
from drupe.runtime.events import EventBus
from drupe.runtime.node import Node
from drupe.runtime.paths import Paths
from drupe.runtime.pod import Pod
from drupe.runtime.recovery import recover
from drupe.sandboxers.contract import Sandboxer
from drupe.sandboxers.fake import FakeSandboxer, FakeWorld, Killed
from drupe.sandboxers.kinds import Kind, Means
from drupe.spec import ContainerSpec, Event, ExitStatus, NodeConfig, PodSpec
from drupe.spec.base import decode
from drupe.state.journal import Journal
from framework.fakes import MemoryCgroups, MemoryNetwork, MemoryStorage

SETTLE_S = 2.0


def _never(means: Means) -> Sandboxer:
    raise AssertionError("the bench has its sandboxer")


class Clock:
    """Stands in for asyncio in a module that sleeps: nobody wakes before `tick`. delays: what was asked for."""

    def __init__(self) -> None:
        self.delays: list[float] = []
        self._ticks = asyncio.Semaphore(0)

    async def sleep(self, seconds: float) -> None:
        self.delays.append(seconds)
        await self._ticks.acquire()

    def tick(self) -> None:
        """Wake the one who has slept longest."""
        self._ticks.release()


class Bench:
    """core: what is tested. fake, storage, network, cgroups: what it stands on. faults: where failures are asked for.

    Make one per test; `close` fails when something is left that no pod owns.
    """

    def __init__(
        self,
        directory: Path,
        *,
        journal: Callable[[Path], Journal] = Journal,
        without: Iterable[str] = (),
        after: Bench | None = None,
    ) -> None:
        self.paths = Paths(root=directory / "root", run=directory / "run")
        self.paths.make()
        self.journal = journal(self.paths.journal)
        self.abandoned = False
        self.core: Core
        self.fake = FakeSandboxer(on_exit=self._ended, world=after.world if after else FakeWorld(), without=without)
        self.faults = self.fake.faults
        self.cgroups = after.cgroups if after else MemoryCgroups(self.faults)
        self.storage = after.storage if after else MemoryStorage(self.paths, self.faults)
        self.network = after.network if after else MemoryNetwork(self.faults)
        self.storage.faults = self.network.faults = self.cgroups.faults = self.faults
        means: dict[str, Any] = {"cgroups": self.cgroups, "storage": self.storage, "network": self.network}
        self.node = Node(paths=self.paths, journal=self.journal, events=EventBus(self.journal), **means)
        self.node.sandboxers["fake"] = self.fake
        self.node.config = NodeConfig(sandbox="fake")
        self.node.kinds = {"fake": Kind("fake", "namespaces", "nothing", able=self.fake.capabilities, open=_never)}
        self.core = Core(self.node)

    @property
    def world(self) -> FakeWorld:
        return self.fake.world

    def _ended(self, exit_: Any) -> None:
        with contextlib.suppress(Killed):
            self.core.process_ended(exit_)

    # -- short words for what tests say often -------------------------------------------------------------------

    def spec(self, *programs: str, **pod: Any) -> PodSpec:
        """A pod spec with one container per program line ("sleep 60")."""
        container = pod.pop("container", {})
        made = tuple(ContainerSpec(image="busybox", argv=tuple(line.split()), **container) for line in programs)
        return PodSpec(**{"sandbox": "fake", "containers": made, **pod})

    async def create(self, *programs: str, **pod: Any) -> Pod:
        return await self.core.create_pod(self.spec(*programs, **pod))

    async def run(self, *programs: str, **pod: Any) -> Pod:
        return await self.core.run_pod(self.spec(*programs, **pod))

    async def start(self, *programs: str, **pod: Any) -> Pod:
        """Created and started, but not by `run`: it stays when its containers end."""
        made = await self.create(*programs, **pod)
        async with made.lock:
            await made.start()
        return made

    async def end_of(self, container: Container, condition: str = "stopped") -> ExitStatus:
        return await asyncio.wait_for(container.wait(condition), SETTLE_S)

    async def settle(self) -> None:
        """Let the background work that is due come to its end."""
        for _ in range(50):
            await asyncio.sleep(0)

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for something that is due now; fails after SETTLE_S."""
        async with asyncio.timeout(SETTLE_S):
            while not condition():  # noqa: ASYNC110 any condition, not one that could tell of itself
                await asyncio.sleep(0.001)

    def events(self, type_: str = "", action: str = "") -> list[Event]:
        """Events kept by the journal."""
        found = [decode(Event, data, where="event") for data in self.journal.events(since=0.0)]
        return [e for e in found if type_ in ("", e.type) and action in ("", e.action)]

    async def delete_all(self) -> None:
        for pod in list(self.core.pods.values()):
            await self.core.delete_pod(pod, force=True)

    # -- restart and end ----------------------------------------------------------------------------------------

    async def restart(self, *, journal: Callable[[Path], Journal] = Journal) -> Bench:
        """Drop everything the daemon had in memory and come up again on what is left."""
        await self.abandon()
        again = Bench(self.paths.root.parent, journal=journal, after=self)
        await recover(again.core)
        return again

    async def abandon(self) -> None:
        """The daemon's memory and background work are gone; the world goes on, unheard."""
        self.faults.dead = True
        self.world.on_exit = None
        await self.core.close()
        self.journal.close()
        self.abandoned = True

    async def close(self) -> None:
        """Delete all pods; whatever is left then was leaked."""
        self.faults.clear()
        await self.delete_all()
        await self.core.close()
        left = self.left()
        self.journal.close()
        assert left == {}, f"left behind: {left}"

    def left(self) -> dict[str, Any]:
        """Kind of thing to what is there beyond the pods that the core knows."""
        pods = set(self.core.pods)
        containers = {c for p in self.core.pods.values() for c in p.containers}
        found = {
            "sandboxes": set(self.world.sandboxes) - pods,
            "tasks": set(self.world.tasks) - containers,
            "cgroups": set(self.cgroups.children(self.paths.cgroup)) - pods,
            "roots": self.storage.mounted - containers,
            "volumes": self.storage.volumes - containers,
            "shm": self.storage.shm - pods,
            "networks": set(self.network.attached) - pods,
            "pod directories": {entry.name for entry in self.paths.pods.iterdir()} - pods,
            "layers": {entry.name for entry in (self.paths.root / "containers").iterdir()} - containers,
            "pod rows": {row.id for row in self.journal.rows("pod")} - pods,
            "container rows": {row.id for row in self.journal.rows("container")} - containers,
        }
        return {kind: what for kind, what in found.items() if what}
