"""Puts a runtime together from its parts: the one place that knows every implementation."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import BinaryIO

from drupe.errors import AlreadyExists, DrupeError, Unsupported
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
from drupe.runtime.settling import end_lost, finish_deletions
from drupe.runtime.storage import Storage
from drupe.sandboxers.contract import Sandboxer
from drupe.sandboxers.kinds import KINDS, Means, kind_of
from drupe.services.nodeconfig import kind_options, load_config
from drupe.services.records import JournalRecords
from drupe.spec.base import Spec
from drupe.spec.node import NodeConfig
from drupe.state.journal import Journal

JournalFactory = Callable[[Path], Journal]
_LOCK_TIMEOUT_S = 1.0


@contextlib.asynccontextmanager
async def open_core(
    paths: Paths, *, journal: JournalFactory = Journal, config: Path | None = None
) -> AsyncIterator[Core]:
    """A recovered core; on exit it is closed and its pods go on running under the keeper, which ends with the last.

    config: the node's configuration file. Raises AlreadyExists when another process has this runtime open, and what
    `load_config` raises.
    """
    settings = load_config(config)
    paths.make()
    with await _locked(paths):
        keeper = await ensure_keeper(paths.run, log=paths.run / "keeper.log")
        core = _assemble(paths, journal(paths.journal), keeper, settings)
        closing = asyncio.Event()
        reviving = asyncio.Lock()
        keeper.on_lost(lambda: None if closing.is_set() else _keeper_lost(core, keeper, reviving))
        core.node.spawn(asyncio.to_thread(compiled_for, "default", DEFAULT), "compiling the seccomp profile")
        _open_used(core.node)
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


async def _locked(paths: Paths) -> contextlib.ExitStack:
    """Both directories are ours: two runtimes with one journal would each take the other's pods for lost."""
    with contextlib.ExitStack() as locks:
        for directory in (paths.run, paths.root):
            lock = await _lock(directory / "runtime.lock")
            if lock is None:
                raise AlreadyExists(
                    f"another drupe has {directory} open", hint="use that daemon, or give another --root and --run"
                )
            locks.enter_context(lock)
        return locks.pop_all()


async def _lock(path: Path) -> BinaryIO | None:
    """The runtime's lock; one that was killed a moment ago may hold it still, until the kernel has cleaned up."""
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while (lock := lock_or_none(path)) is None and time.monotonic() < deadline:  # noqa: ASYNC110 - nobody tells us
        await asyncio.sleep(0.01)
    return lock


def _assemble(paths: Paths, journal: Journal, keeper: Keeper, config: NodeConfig) -> Core:
    storage = Storage(
        paths=paths, keeper=keeper, images=ImageStore(paths.images), volumes=Volumes(paths.volumes, journal)
    )
    network = NetworkManager(run=paths.run, records=JournalRecords(journal), keeper=keeper)
    node = Node(
        paths=paths,
        journal=journal,
        events=EventBus(journal),
        cgroups=detect(),
        storage=storage,
        network=network,
        config=config,
    )
    node.notes += journal.notes
    core = Core(node)
    node.open_kind = lambda name: _open_kind(core, keeper, kind_options(config, name), name)
    node.probe = lambda name: _probe(name, paths, kind_options(config, name))
    return core


def _open_kind(core: Core, keeper: Keeper, options: Spec, name: str) -> Sandboxer:
    """A kind's sandboxer. InvalidArgument for a name that is no kind; Unsupported with the cause where it cannot be."""
    kind, node = kind_of(name), core.node
    means = Means(
        keeper=keeper,
        cgroups=node.cgroups,
        on_exit=core.process_ended,
        run=node.paths.run,
        root=node.paths.root,
        options=options,
        images=node.storage.images,
    )
    try:
        sandboxer = kind.open(means)
    except DrupeError as error:
        raise Unsupported(
            f"sandbox kind {name!r} is not available on this host",
            kind=name,
            cause=str(error),
            hint=error.hint or "drupe doctor says what is missing; an explicit kind is never weakened",
        ) from error
    sandboxer.on_failed = core.sandbox_failed
    return sandboxer


async def _probe(name: str, paths: Paths, options: Spec) -> str:
    """Why a kind cannot run here, "" when it can."""
    from drupe.services.doctor import why_not  # it is not asked for often, and loads what starts programs

    kind = kind_of(name)
    fault = await asyncio.to_thread(why_not, kind, cache=paths.run / "doctor.json")
    return fault or kind.lacks(paths.root, options)


def _open_used(node: Node) -> None:
    """The kinds that may have left something since the host started; others are opened by their first pod."""
    for name in KINDS:
        if name == "runc" or (node.paths.run / name).exists():
            try:
                node.sandboxer(name)
            except DrupeError as error:
                node.note(f"no {name} sandboxes: {error.cause or error}")


def _keeper_lost(core: Core, keeper: Keeper, reviving: asyncio.Lock) -> None:
    core.node.note(f"the keeper (pid {keeper.pid}) died; another takes over its tasks")
    core.node.spawn(_revive(core, keeper, reviving), "a new keeper")


async def _revive(core: Core, keeper: Keeper, reviving: asyncio.Lock) -> None:
    """One after the other: a keeper that dies before it has all tasks must not have the rest taken for lost."""
    async with reviving:
        if keeper.connected:
            keeper.settled()
        else:
            await _replace(core, keeper)


async def _replace(core: Core, keeper: Keeper) -> None:
    """Start another keeper, which goes on in the old one's mounts and adopts its tasks from our duplicates."""
    try:
        await ensure_keeper(core.node.paths.run, previous=keeper, log=core.node.paths.run / "keeper.log")
    except BaseException:
        keeper.settled()
        raise

    async def tasks() -> set[str]:
        living = {entry.task for entry in await keeper.list()}
        return living.union(*(sandboxer.tasks().apart() for sandboxer in core.node.sandboxers.values()))

    await end_lost(core, tasks)
    await finish_deletions(core)
    core.node.events.publish("daemon", "keeper-restart", str(keeper.pid))
