"""Containers that runc writes down, with CRIU, and has go on: its verbs `checkpoint` and `restore`.

What a container wrote to and read from are pipes of the keeper's: runc notes which streams they were and gives CRIU
those of the new container in their place.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from drupe.errors import HelperFailed, InvalidArgument, Unsupported
from drupe.keeper.client import Keeper
from drupe.sandboxers.bundles import BundleProgram
from drupe.sandboxers.contract import Attachment, TaskConfig
from drupe.sandboxers.kept.pending import PendingAttachment
from drupe.sandboxers.kept.words import last_message
from drupe.sandboxers.runc.command import RuntimeCommand
from drupe.sandboxers.runc.criu import Criu

TIMEOUT_S = 300.0
_WORK = "--work-path="
_INVENTORY = "inventory.img"  # CRIU writes it last
_ERROR = re.compile(r"Error \([^)]*\): (.+)")


class Attach(Protocol):
    """`TaskService.attach`, of one container."""

    def __call__(self, fds: Mapping[str, int], /, *, keep_stdin: bool) -> Awaitable[Attachment]: ...


class Checkpoints:
    """What the node's program can, and its command lines."""

    def __init__(self, *, keeper: Keeper, command: RuntimeCommand, program: BundleProgram) -> None:
        self._keeper = keeper
        self._command = command
        self._program = program
        self._criu = Criu(keeper)

    async def flags(self) -> list[str]:
        """By which runc finds CRIU. Raises Unsupported, naming what is missing."""
        flags = await self._criu.flags(self._program, "")
        if self._program.name != "runc":
            raise Unsupported(
                f"{self._program.name} is not asked for checkpoints of pods", kind="runc", feature="checkpoint",
                hint='[kinds.runc] program = "runc" makes them by runc',
            )  # fmt: skip
        return flags

    async def write(self, task_id: str, images: Path, work: Path, words: Sequence[str]) -> None:
        """Have a container that runs, or is frozen, written down; it goes on as it was. work: a directory for CRIU's
        own files, which is removed, unless `words` name one. HelperFailed says what CRIU did not like."""
        flags = await self.flags()
        (images / _INVENTORY).unlink(missing_ok=True)
        named = [word.removeprefix(_WORK) for word in words if word.startswith(_WORK)]
        others = [word for word in words if not word.startswith(_WORK)]
        place = Path(named[-1]) if named else work
        work.mkdir(exist_ok=True)
        try:
            argv = self._command.checkpoint(task_id, images, place, criu=flags, words=others)
            done = await self._keeper.run(argv, env=path(), timeout_s=TIMEOUT_S)
            if done.exit != 0 or done.timed_out:
                cause = _cause(place / "dump.log") or last_message(done.stderr)
                raise HelperFailed("the container cannot be checkpointed", stage="checkpoint", cause=cause)
        finally:
            await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)

    async def take(self, images: Path, copy: Path) -> None:
        """A copy of what was written, for a container that is to go on from it. InvalidArgument: it is none."""
        await self.flags()
        if not (images / _INVENTORY).is_file():
            raise InvalidArgument(f"{images} holds no checkpoint of CRIU's")
        await asyncio.to_thread(shutil.copytree, images, copy, dirs_exist_ok=True)

    async def restoring(self, task_id: str, bundle: Path, images: Path) -> list[str]:
        """What has a container go on from there."""
        return self._command.restore(task_id, bundle, images, criu=await self.flags())


class Resuming:
    """A container that is made at its start, from a checkpoint. images: where its copy of that is to be."""

    def __init__(self, task: TaskConfig) -> None:
        self.task = task
        self.images = task.bundle / "checkpoint"
        self._pending: list[PendingAttachment] = []

    def check(self) -> None:
        """Raise Unsupported for what is not restored."""
        if self.task.tty:
            raise Unsupported("a container with a terminal cannot be restored", kind="runc", feature="checkpoint")

    def attach(self, fds: Mapping[str, int], *, keep_stdin: bool) -> Attachment:
        """Before it runs."""
        self._pending.append(PendingAttachment(fds, close_stdin="stdin" in fds and not keep_stdin))
        return self._pending[-1]

    async def join(self, attach: Attach) -> None:
        """It has streams now."""
        for one in self._pending:
            if one.waits:
                one.join(await attach(one.fds, keep_stdin=not one.close_stdin))

    def drop(self) -> None:
        """Let go of those who were not joined to it."""
        for one in self._pending:
            if one.waits:
                one.drop()


def explain(error: HelperFailed, images: Path) -> HelperFailed:
    """A restore that failed, in CRIU's words."""
    cause = _cause(images / "restore.log") or last_message(error.cause or error.message)
    return HelperFailed("the container cannot go on from its checkpoint", stage="restore", cause=cause)


def path() -> dict[str, str]:
    """Later runc looks for CRIU by itself: where we found it."""
    return {"PATH": os.environ.get("PATH", os.defpath)}


def _cause(log: Path) -> str:
    """The first thing that went wrong; what follows is what came of it."""
    try:
        found = _ERROR.search(log.read_text(errors="replace"))
    except OSError:
        return ""
    return found[1].strip() if found else ""
