"""Bundles of others in sandboxes that the daemon keeps: each is a pod with an owner, and a stand-in of its maker's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from drupe.errors import DrupeError, InvalidState, NotFound
from drupe.oci.runtime_spec import SPEC_VERSION
from drupe.runtime.container import Container
from drupe.runtime.core import Core
from drupe.runtime.pod import Pod
from drupe.sandboxers.bundles import BundleProgram
from drupe.sandboxers.runc.criu import Criu
from drupe.sandboxers.runc.program import RuntimeProgram, find_runtime
from drupe.services.oci.standing import BundleRecord, StandIn, make_raw
from drupe.spec.container import ExecSpec
from drupe.spec.status import KILLED
from drupe.state.machine import State

RECORDS = "oci-bundle"
OWNER = "oci"
_DRAIN_S = 5.0  # a reader that has stalled does not keep a container from ending for ever
_STATUS = {State.CREATING: "creating", State.READY: "created", State.RUNNING: "running", State.PAUSED: "paused"}


class Kept:
    """One container. stand_in: None once it has ended."""

    def __init__(self, node_of: Core, record: BundleRecord, pod: Pod, stand_in: StandIn | None) -> None:
        self.core = node_of
        self.record = record
        self.pod = pod
        self.container: Container = next(iter(pod.containers.values()))
        self.stand_in = stand_in
        self.execs: dict[str, StandIn] = {}
        self._starting = False  # its stand-in is started next, and hears then what it is told now

    @property
    def status(self) -> str:
        """In the specification's words."""
        return _STATUS.get(self.container.state, "stopped")

    def state(self) -> dict[str, Any]:
        """As the specification has it, with what runc adds."""
        record = self.record
        return {
            "ociVersion": SPEC_VERSION,
            "id": record.id,
            "pid": self.stand_in.pid if self.stand_in is not None and self.status != "stopped" else 0,
            "status": self.status,
            "bundle": record.bundle,
            "rootfs": record.rootfs,
            "created": record.created,
            "annotations": record.annotations,
            "owner": "root",
        }

    def save(self) -> None:
        self.core.node.journal.put_record(RECORDS, self.pod.id, msgspec.to_builtins(self.record))

    # -- its life -----------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Have its stand-in and its workload end together, and what the one is sent reach the other."""
        if self.stand_in is None:
            self._gone()
            return
        self.stand_in.watch(self._signalled, self._gone)
        self.core.node.spawn(self._tell_end(), f"end of bundle {self.record.id}")

    async def _tell_end(self) -> None:
        exit_ = await self.container.wait()
        await self._drained()
        if self.stand_in is None:
            return
        self.stand_in.tell_end(exit_.code)
        if not self.record.started and not self._starting:
            self.stand_in.kill()  # it does not listen, and never will

    async def _drained(self) -> None:
        """Its maker reads what it wrote, and takes the end of the stand-in for the end of all that."""
        attachment = self.container.attachment
        if attachment is not None:
            with contextlib.suppress(DrupeError, TimeoutError):
                await asyncio.wait_for(_all_of(attachment), _DRAIN_S)

    def _signalled(self, number: int) -> None:
        self.core.node.spawn(self._pass_on(number), f"signal for bundle {self.record.id}")

    async def _pass_on(self, number: int) -> None:
        with contextlib.suppress(DrupeError):  # it has ended, or just begun to be made
            if number != signal.SIGWINCH:
                await self.container.kill(str(number))
            elif self.stand_in is not None and self.record.terminal:
                rows, columns = self.stand_in.window()
                await self.container.tasks.resize(self.container.id, rows, columns)

    def _gone(self) -> None:
        """Nothing stands for the workload any more: nobody would learn of its end."""
        self.stand_in = None
        if self.container.is_live or self.container.state is State.READY:
            self.core.node.spawn(self._end(), f"end of bundle {self.record.id}")

    async def _end(self) -> None:
        with contextlib.suppress(DrupeError):
            await self.container.stop(force=True)

    async def start(self) -> None:
        """Run the workload on the stand-in's streams. Raises what a start raises; then the stand-in ends."""
        if self.container.state is not State.READY:
            raise InvalidState(f"cannot start a container that is {self.status}")
        if self.stand_in is None:
            raise InvalidState(f"container {self.record.id} has been killed")
        stand_in, fds = self.stand_in, self.stand_in.streams()
        self._starting = True
        try:
            if self.record.terminal:
                make_raw(fds)
                self.container.window = stand_in.window()
            async with self.pod.lock:
                await self.pod.start(fds)
        except BaseException:
            stand_in.kill()
            raise
        finally:
            close_all(fds)

    async def begun(self) -> None:
        """The stand-in runs, too."""
        if self.stand_in is not None:
            await self.stand_in.ready()
        self.record.started = True
        self.save()

    async def kill(self, number: int, *, everything: bool) -> None:
        """As kill(2) for its first process, or for all."""
        state = self.container.state
        if state is State.READY and self.stand_in is not None:
            self.stand_in.kill(number)  # it is all that there is to kill
            return
        if not self.container.is_live:
            raise InvalidState("container not running")
        await self.container.kill(str(number), everything=everything)

    async def checkpoint(self, path: Path, *, ends: bool) -> None:
        """Write its memory to a directory. ends: it is killed then. Raises what the kind's `checkpoint` does."""
        self.container.check_allowed("a checkpoint of", {"checkpoint"})
        async with self.pod.lock:
            await self.container.tasks.checkpoint(self.container.id, path)
        if ends:
            await self.container.kill("KILL")
            await self.container.wait()

    async def delete(self) -> None:
        """Remove it, whatever its state. The stand-in's container is its maker's to remove."""
        if not self.container.is_live:
            await self._drained()
        await self.core.delete_pod(self.pod, force=True)
        for stand_in in self.execs.values():
            stand_in.tell_end(KILLED)
        for stand_in in [*([self.stand_in] if self.stand_in else []), *self.execs.values()]:
            stand_in.close()
        self.stand_in = None
        self.core.node.journal.delete_record(RECORDS, self.pod.id)

    # -- further processes --------------------------------------------------------------------------------------------

    async def execute(
        self, process: Mapping[str, Any], stand_in: StandIn, *, terminal: bool, size: Mapping[str, int] | None = None
    ) -> None:
        """Start a process, for which `stand_in` (taken over) stands. size: of its terminal, where that is said
        (`process.consoleSize`)."""
        fds = stand_in.streams()
        try:
            rows, columns = stand_in.window() if terminal else (0, 0)
            if terminal and size:
                rows, columns = size["height"], size["width"]
            if terminal:
                make_raw(fds)
            spec = ExecSpec(argv=tuple(process["args"]), tty=terminal, rows=rows, cols=columns)
            ours, _ = await self.container.execs.start(spec, fds, process=dict(process))
            record = stand_in.record(ours)
        except BaseException:
            stand_in.close()
            raise
        finally:
            close_all(fds)
        self.record.execs[ours] = record
        self.save()
        self.watch_exec(ours, stand_in, terminal=terminal)
        stand_in.keep()
        await stand_in.ready()

    def watch_exec(self, ours: str, stand_in: StandIn, *, terminal: bool) -> None:
        """Have the two end together."""
        self.execs[ours] = stand_in

        def passed(number: int) -> None:
            self.core.node.spawn(self._pass_to_exec(ours, number, terminal=terminal), "signal for an exec")

        stand_in.watch(passed, lambda: self._exec_gone(ours))
        self.core.node.spawn(self._tell_exec_end(ours), f"end of exec {ours}")

    async def _tell_exec_end(self, ours: str) -> None:
        try:
            code = (await self.container.execs.wait(ours)).code
        except NotFound:  # it ended while there was no daemon
            code = 255
        if (stand_in := self.execs.get(ours)) is not None:
            stand_in.tell_end(code)
        self.container.execs.forget(ours)
        self.record.execs.pop(ours, None)
        if self.pod.id in self.core.pods:
            self.save()

    async def _pass_to_exec(self, ours: str, number: int, *, terminal: bool) -> None:
        with contextlib.suppress(DrupeError):
            if number != signal.SIGWINCH:
                await self.container.execs.kill(ours, number)
            elif terminal and (stand_in := self.execs.get(ours)) is not None:
                rows, columns = stand_in.window()
                await self.container.tasks.resize(self.container.id, rows, columns, exec_id=ours)

    def _exec_gone(self, ours: str) -> None:
        self.execs.pop(ours, None)
        if ours in self.container.execs.running():
            self.core.node.spawn(self._pass_to_exec(ours, signal.SIGKILL, terminal=False), "end of an exec")


class Bundles:
    """All of them, of all roots."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self._kept: dict[str, Kept] = {}
        self._being_made: set[tuple[str, str]] = set()
        self._crun: RuntimeProgram | None = None
        self._programs: dict[str, BundleProgram] = {}
        self.criu = Criu(core.node.storage.keeper)

    def standing_for(self, kind: str) -> BundleProgram:
        """What makes stand-ins for sandboxes of a kind: crun. NotFound."""
        if self._crun is None:
            self._crun = RuntimeProgram(find_runtime("crun"))
        crun, keeper = self._crun, self.core.node.storage.keeper
        if kind not in self._programs:
            self._programs[kind] = BundleProgram(
                kind, crun.name, path=str(crun.path), executable=crun.executable, keeper=keeper, stands=True
            )
        return self._programs[kind]

    def recover(self) -> None:
        """After a restart of the daemon: know what is there, and go on watching it."""
        for key, data in self.core.node.journal.records(RECORDS).items():
            record = msgspec.convert(data, BundleRecord)
            pod = self.core.pods.get(record.pod)
            if pod is None or not pod.containers:
                self.core.node.journal.delete_record(RECORDS, key)
                continue
            self.add(Kept(self.core, record, pod, StandIn.of(record.stand_in)))

    def add(self, kept: Kept) -> None:
        """Know it, and watch it."""
        self._kept[kept.pod.id] = kept
        kept.save()
        kept.watch()
        for ours, record in list(kept.record.execs.items()):
            if (stand_in := StandIn.of(record)) is not None:
                kept.watch_exec(ours, stand_in, terminal=False)

    def remove(self, kept: Kept) -> None:
        """Forget one that was deleted."""
        self._kept.pop(kept.pod.id, None)

    def of(self, root: str) -> Iterator[Kept]:
        """Those below a root."""
        return (kept for kept in list(self._kept.values()) if kept.record.root == root)

    @contextlib.contextmanager
    def making(self, root: str, id_: str) -> Iterator[None]:
        """While one is made: whoever deletes it waits for what becomes of it."""
        self._being_made.add((root, id_))
        try:
            yield
        finally:
            self._being_made.discard((root, id_))

    def is_being_made(self, root: str, id_: str) -> bool:
        return (root, id_) in self._being_made

    def find(self, root: str, id_: str) -> Kept | None:
        return next((kept for kept in self.of(root) if kept.record.id == id_), None)

    def close(self) -> None:
        """Let go of all; they go on."""
        if self._crun is not None:
            self._crun.close()
        for kept in self._kept.values():
            for stand_in in [*([kept.stand_in] if kept.stand_in else []), *kept.execs.values()]:
                stand_in.close()


async def _all_of(attachment: object) -> None:
    await attachment  # type: ignore[misc]


def close_all(fds: Mapping[str, int]) -> None:
    """Let go of them."""
    for fd in fds.values():
        with contextlib.suppress(OSError):
            os.close(fd)
