"""Puts a runtime together from its parts: the one place that knows every implementation."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from drupe.errors import AlreadyExists, DrupeError
from drupe.images.store import ImageStore
from drupe.keeper.client import Keeper
from drupe.keeper.start import ensure_keeper
from drupe.linux.flock import lock_or_none
from drupe.oci.capabilities import DEFAULT
from drupe.oci.seccomp import compiled_for
from drupe.resources.cgroups import detect
from drupe.resources.network.manager import NetworkManager
from drupe.resources.volumes import Volumes
from drupe.runtime.core import Core
from drupe.runtime.events import EventBus
from drupe.runtime.node import Node
from drupe.runtime.paths import Paths
from drupe.runtime.recovery import recover
from drupe.runtime.settling import end_lost
from drupe.runtime.storage import Storage
from drupe.sandboxers.runc.command import RuntimeCommand
from drupe.sandboxers.runc.program import RuntimeProgram, find_runtime
from drupe.sandboxers.runc.sandboxer import RuncSandboxer
from drupe.services.records import JournalRecords
from drupe.state.journal import Journal

JournalFactory = Callable[[Path], Journal]


@contextlib.asynccontextmanager
async def open_core(
    paths: Paths, *, journal: JournalFactory = Journal, oci_runtime: str = "crun"
) -> AsyncIterator[Core]:
    """A recovered core; on exit it is closed and its pods go on running under the keeper, which ends with the last.

    Raises AlreadyExists when another process has this runtime open.
    """
    paths.make()
    lock = lock_or_none(paths.run / "runtime.lock")
    if lock is None:
        raise AlreadyExists(
            f"another drupe has {paths.run} open", hint="use that daemon, or give another --root and --run"
        )
    with lock:
        keeper = await ensure_keeper(paths.run, log=paths.run / "keeper.log")
        core = _assemble(paths, journal(paths.journal), keeper, oci_runtime)
        closing = asyncio.Event()
        keeper.on_lost(lambda: None if closing.is_set() else _keeper_lost(core, keeper))
        core.node.spawn(asyncio.to_thread(compiled_for, "default", DEFAULT), "compiling the seccomp profile")
        try:
            await recover(core)
            yield core
        finally:
            await core.close()
            await core.node.network.close()
            closing.set()
            if not core.pods:
                with contextlib.suppress(DrupeError):  # it is gone, or has tasks after all: both are fine
                    await keeper.shutdown()
                with contextlib.suppress(DrupeError):
                    core.node.cgroups.delete(paths.cgroup)
            keeper.close()
            core.node.journal.close()


def _assemble(paths: Paths, journal: Journal, keeper: Keeper, oci_runtime: str) -> Core:
    cgroups = detect()
    storage = Storage(
        paths=paths, keeper=keeper, images=ImageStore(paths.images), volumes=Volumes(paths.volumes, journal)
    )
    network = NetworkManager(run=paths.run, records=JournalRecords(journal), keeper=keeper)
    node = Node(
        paths=paths,
        journal=journal,
        events=EventBus(journal),
        cgroups=cgroups,
        storage=storage,
        network=network,
    )
    node.notes += journal.notes
    core = Core(node)
    try:
        command = RuntimeCommand(program=RuntimeProgram(find_runtime(oci_runtime)), root=paths.run / "oci")
        node.sandboxers["runc"] = RuncSandboxer(
            keeper=keeper, command=command, cgroups=cgroups, on_exit=core.process_ended
        )
    except DrupeError as error:
        node.note(f"no runc sandboxes: {error}")
    return core


def _keeper_lost(core: Core, keeper: Keeper) -> None:
    core.node.note(f"the keeper (pid {keeper.pid}) died; another takes over its tasks")
    core.node.spawn(_revive(core, keeper), "a new keeper")


async def _revive(core: Core, keeper: Keeper) -> None:
    """Start another keeper, which goes on in the old one's mounts and adopts its tasks from our duplicates."""
    await ensure_keeper(core.node.paths.run, previous=keeper, log=core.node.paths.run / "keeper.log")

    async def tasks() -> set[str]:
        return {entry.task for entry in await keeper.list()}

    await end_lost(core, tasks)
    core.node.events.publish("daemon", "keeper-restart", str(keeper.pid))
