"""Finding the keeper's program and starting it."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from pathlib import Path

from drupe import errors
from drupe.keeper.client import Keeper
from drupe.keeper.escrow import Escrow
from drupe.keeper.programs import START_TIMEOUT_S, begin, find_program
from drupe.linux.memfd import sealed_copy

PROGRAM = "drupe-keeper"


def find_binary() -> Path:
    """The keeper's program: $DRUPE_KEEPER, else where `find_program` finds it. Raises NotFound."""
    if named := os.environ.get("DRUPE_KEEPER"):
        if os.access(named, os.X_OK):
            return Path(named)
        raise errors.NotFound(f"no program {named}", hint="mend or unset the variable DRUPE_KEEPER")
    return find_program(PROGRAM)


async def ensure_keeper(
    run_dir: Path | str, *, previous: Keeper | None = None, log: Path | str | None = None
) -> Keeper:
    """A connection to the keeper of `run_dir`, which is started if none serves it.

    previous: the connection to a keeper that died. The new one goes on in its mount namespace and adopts its tasks from
    the escrow; `previous` itself is connected again and returned. log: file for the keeper's own messages.

    Raises NotFound (no program), Unavailable (it cannot start or speaks another protocol).
    """
    run_dir = Path(run_dir)
    keeper = previous or Keeper(run_dir, Escrow())
    try:
        await keeper.open()
        return keeper
    except errors.Unavailable as error:
        if error.details.get("errno"):  # it answered, and refused
            error.hint = "stop the other version's daemon and keeper first"
            raise
    await _start_and_open(keeper, log)
    for held in list(keeper.escrow.held.values()):
        with suppress(errors.DrupeError):  # made meanwhile, or lost: that must not take the rest along
            if keeper.escrow.held.get(held.task) is held:  # else its descriptors are closed
                await keeper.adopt(held)
    if keeper.connected:  # else this one has died, too, and the next takes over
        keeper.settled()
    return keeper


async def _start_and_open(keeper: Keeper, log: Path | str | None) -> None:
    """One that was just killed may still hold the lock, or take a connection that it will never answer: try again."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        await _start(keeper.run_dir, keeper.escrow.mount_namespace, log)
        try:
            return await keeper.open()
        except errors.Unavailable as error:
            if error.details.get("errno") or time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.02)


async def _start(run_dir: Path, mount_namespace: int | None, log: Path | str | None) -> None:
    """Runs the program, which exits once its daemon accepts connections.

    It runs from a sealed copy in memory: an exec is a fork of the keeper until it becomes the program asked for, and no
    container may get at a file of the host through it (CVE-2019-5736).
    """
    program = find_binary()
    argv = [str(program), "--run-dir", str(run_dir)]
    argv += ["--log", str(log)] if log else []
    passed = [copy := sealed_copy(program)]
    if mount_namespace is not None:
        argv += ["--mount-namespace", str(mount_namespace)]
        passed.append(mount_namespace)
    try:
        await begin(argv, what=f"the keeper of {run_dir}", executable=f"/proc/self/fd/{copy}", pass_fds=passed)
    finally:
        os.close(copy)


def mounts_root(keeper: Keeper) -> Path:
    """The root directory as the keeper sees it: below it are the mounts that the host does not have (proc(5))."""
    return Path(f"/proc/{keeper.pid}/root")
