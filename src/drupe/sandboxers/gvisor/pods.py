"""The sandboxes that are there: where each is, and how it is launched and ended."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drupe.errors import DrupeError, NotFound
from drupe.keeper.client import Keeper
from drupe.keeper.records import Created
from drupe.resources.cgroups import Cgroups
from drupe.sandboxers.gvisor import addresses
from drupe.sandboxers.gvisor.command import ROOT_ONLY, RunscCommand, entering, veiled
from drupe.sandboxers.gvisor.records import ROOT_ID, PodRecord, forget_guest
from drupe.sandboxers.gvisor.sentry import Sentry
from drupe.sandboxers.kept.dropping import drop_task

HELPER_TIMEOUT_S = 30.0
END_TIMEOUT_S = 10.0


@dataclass(slots=True)
class GvisorPod:
    """One sandbox. frozen: it stands still, so that its sentry would not answer. killed: by us."""

    record: PodRecord
    frozen: bool = False
    killed: bool = False
    sentry: Sentry = field(init=False)

    def __post_init__(self) -> None:
        self.sentry = Sentry(self.record.socket)

    @property
    def state(self) -> Path:
        return Path(self.record.state)


class Pods:
    """By id. `keeper` starts runsc, in the cgroup where its processes are to stay."""

    def __init__(self, *, keeper: Keeper, command: RunscCommand, cgroups: Cgroups, state: Path) -> None:
        self.keeper = keeper
        self.command = command
        self.cgroups = cgroups
        self._state = state
        self._pods: dict[str, GvisorPod] = {}
        self._needs_veil: bool | None = None

    def __iter__(self) -> Iterator[GvisorPod]:
        return iter(list(self._pods.values()))

    def state_of(self, pod_id: str) -> Path:
        """runsc's own directory for a sandbox."""
        return self._state / pod_id

    def add(self, record: PodRecord) -> GvisorPod:
        """Know a sandbox, and write it down."""
        pod = self._pods[record.id] = GvisorPod(record)
        pod.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        record.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        record.write(pod.state / "pod.json")
        return pod

    def note_paused(self, pod: GvisorPod, *, paused: bool) -> None:
        """Write down whether the sentry has to be told to let its guest go on."""
        pod.record.paused = paused
        pod.record.write(pod.state / "pod.json")

    def load(self, pod_id: str) -> GvisorPod | None:
        """Know a sandbox of an earlier daemon."""
        record = PodRecord.read(self.state_of(pod_id) / "pod.json")
        if record is None:
            return None
        self._pods[pod_id] = GvisorPod(record)
        return self._pods[pod_id]

    def get(self, pod_id: str) -> GvisorPod:
        """NotFound for one that is not here."""
        try:
            return self._pods[pod_id]
        except KeyError:
            raise NotFound(f"sandbox {pod_id} is not here") from None

    def find(self, pod_id: str) -> GvisorPod | None:
        return self._pods.get(pod_id)

    def forget(self, pod_id: str) -> None:
        """Remove all that was written about a sandbox. Idempotent."""
        self._pods.pop(pod_id, None)
        shutil.rmtree(self.state_of(pod_id), ignore_errors=True)

    def strangers(self, known: set[str]) -> list[str]:
        """Ids of sandboxes that something is written about and that nobody knows."""
        with contextlib.suppress(OSError):
            return [entry.name for entry in self._state.iterdir() if entry.name not in known]
        return []

    async def launch_first(self, pod: GvisorPod, key: str, argv: list[str], *, cgroup: str, **create: Any) -> Created:
        """`launch` for what makes the sandbox, and sets its network up."""
        if pod.record.netns:
            netns = pod.record.netns
            await addresses.put_back_or_note(self.keeper, netns, pod.state / "addresses.json")
            argv = veiled(argv) if await self._mistaken(netns) else argv
        return await self.launch(pod, key, argv, cgroup=cgroup, **create)

    async def _mistaken(self, netns: str) -> bool:
        """Whether runsc would take a network namespace of this kernel for the host's; asked once."""
        if self._needs_veil is None:
            found = await self.keeper.run(["test", "-e", ROOT_ONLY], netns=netns)
            self._needs_veil = found.exit == 0
        return self._needs_veil

    async def launch(self, pod: GvisorPod, key: str, argv: list[str], *, cgroup: str, **create: Any) -> Created:
        """Have the keeper run runsc in `cgroup` (made already) and hold what it starts as `key`."""
        join = self.cgroups.join_files(cgroup)
        if not join:
            argv = entering(self.cgroups.procs_file(cgroup), argv)
        created = await self.keeper.create_task(key, argv, join=join, timeout_s=HELPER_TIMEOUT_S, **create)
        pod.frozen = pod.killed = False
        return created

    async def return_addresses(self, pod: GvisorPod) -> None:
        """Give a network namespace that is not the pod's own back as it was."""
        if pod.record.netns and pod.record.joins:
            with contextlib.suppress(DrupeError):
                await addresses.put_back_or_note(self.keeper, pod.record.netns, pod.state / "addresses.json")

    async def kill(self, pod: GvisorPod, cgroup: str) -> None:
        """End sentry, gofers and all they started, whatever state they are in."""
        pod.killed = True
        await asyncio.to_thread(self.cgroups.kill_all, cgroup, 9)
        pod.frozen = False

    async def end(self, pod: GvisorPod, key: str, cgroup: str) -> None:
        """Kill it, and wait until nothing is left of it but its cgroup. What `runsc delete` does in a second or two."""
        await self.kill(pod, cgroup)
        await self.drop_task(key)
        forget_guest(pod.state, ROOT_ID)
        pod.record.socket.unlink(missing_ok=True)

    async def drop_task(self, key: str) -> None:
        """Kill a task of the keeper and have its record dropped. Idempotent."""
        await drop_task(self.keeper, key)
