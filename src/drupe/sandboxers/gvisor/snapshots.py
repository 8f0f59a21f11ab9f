"""Checkpoints of whole sandboxes, as runsc writes and reads them, and the identity of what is restored."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from drupe.errors import DrupeError, HelperFailed
from drupe.linux.hostname_program import hostname_program
from drupe.sandboxers.gvisor.pods import GvisorPod, Pods
from drupe.sandboxers.gvisor.records import TaskRecord
from drupe.sandboxers.kept.records import Record
from drupe.sandboxers.kept.words import last_message

_TIMEOUT_S = 300.0
MEMORY = "checkpoint.img"  # what runsc calls the file


class Guests(Record, kw_only=True):
    """What runsc called the containers: by the ids that they had."""

    names: dict[str, str]

    @staticmethod
    def path(directory: Path) -> Path:
        """Beside the image: runsc knows nothing of it."""
        return directory / "guests.json"


async def write(
    pods: Pods, pod: GvisorPod, tasks: list[TaskRecord], directory: Path, meanwhile: Callable[[], Awaitable[None]]
) -> str:
    """Stop the guest, write its memory and what belongs to the moment, and let it go on. Returns runsc's version."""
    image = directory / "image"
    image.mkdir(mode=0o700)
    await write_memory(pods, pod, image, meanwhile)
    Guests(names={task.id: task.guest for task in tasks}).write(Guests.path(directory))
    return await version(pods)


async def _nothing() -> None:
    """Nothing else belongs to the moment."""


async def write_memory(
    pods: Pods,
    pod: GvisorPod,
    image: Path,
    meanwhile: Callable[[], Awaitable[None]] = _nothing,
    *,
    goes_on: bool = True,
) -> None:
    """Write the guest's memory to a directory, while it stands still; it goes on if that is said."""
    log = pod.state / "checkpoint.log"
    await pod.sentry.call("containerManager.Pause")
    try:
        await pods.keeper.run(pods.command.checkpoint(pod.record, image, log), timeout_s=_TIMEOUT_S, check=True)
        await meanwhile()
    except HelperFailed as error:
        said = last_message(log.read_text(errors="replace")) if log.exists() else error.cause
        raise HelperFailed("gVisor cannot checkpoint the pod", stage="snapshot", cause=said) from None
    finally:
        if goes_on:
            with contextlib.suppress(DrupeError):
                await pod.sentry.call("containerManager.Resume")


async def version(pods: Pods) -> str:
    """The first line of `runsc --version`."""
    said = await pods.keeper.run([str(pods.command.program), "--version"], check=True)
    return said.stdout.splitlines()[0]


async def rename(pod: GvisorPod, guest: str, hostname: str) -> None:
    """Give a restored sandbox its new host name: its memory has the old one."""
    process = {
        "user": {"uid": 0, "gid": 0},
        "args": ["hostname", hostname],
        "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        "cwd": "/",
        "capabilities": {name: ["CAP_SYS_ADMIN"] for name in ("permitted", "effective", "bounding")},
    }
    null, program = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), hostname_program()
    try:
        streams = [null] * 3
        pid = await pod.sentry.execute(guest, process, streams, program=program)
        status = await pod.sentry.wait_pid(guest, pid)
    finally:
        for descriptor in [null] if program is None else [null, program]:
            os.close(descriptor)
    if status:
        raise HelperFailed("the restored pod did not take its host name", stage="restore", cause=f"status {status}")
