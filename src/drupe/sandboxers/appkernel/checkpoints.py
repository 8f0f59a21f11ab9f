"""A container that is alone with its kernel: written down with it, and gone on from.

A checkpoint is a snapshot of the kernel and the id that the container had. Where the pod is paused, as containerd has
it meanwhile, the kernel is woken to write, and rests until the pod is resumed: what is in its files then is of the same
moment.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

from drupe.errors import InvalidArgument, InvalidState, Unsupported
from drupe.sandboxers.appkernel import snapshots
from drupe.sandboxers.appkernel.pods import KernelPod, Pods
from drupe.sandboxers.appkernel.records import TaskRecord
from drupe.sandboxers.contract import refuse_words
from drupe.sandboxers.kept.records import Record

_NAME = "container.json"


class Whose(Record, kw_only=True):
    """The id that the container had."""

    id: str


async def write(pods: Pods, pod: KernelPod, record: TaskRecord, path: Path, words: Sequence[str]) -> None:
    """See the contract's `checkpoint`."""
    refuse_words("appkernel", words)
    _check_alone(pod, record.id)
    if not record.started or record.exit is not None:
        raise InvalidState(f"container {record.id} does not run")
    for name in snapshots.FILES:  # written over, as CRIU does
        (path / name).unlink(missing_ok=True)
    if not pod.frozen:
        await snapshots.save(pod, path, _nothing)
    elif pod.record.rests:
        raise InvalidState(f"container {record.id} was written down in this pause before", hint="resume it first")
    else:
        await _write_paused(pods, pod, path)
    Whose(id=record.id).write(path / _NAME)


async def _write_paused(pods: Pods, pod: KernelPod, path: Path) -> None:
    paused = pod.record.paused

    async def freeze() -> None:
        pod.record.rests = True
        await pods.freeze(pod, paused)

    await pods.thaw(pod, paused)
    try:
        await snapshots.save(pod, path, freeze, goes_on=False)
    except BaseException:
        if not pod.frozen:
            await pods.freeze(pod, paused)
        raise


async def take(pod: KernelPod, record: TaskRecord, path: Path) -> None:
    """See the contract's `go_on_from`."""
    _check_alone(pod, record.id)
    if Whose.read(path / _NAME) is None:
        raise InvalidArgument(f"{path} holds no checkpoint of the application kernel's")
    copy = Path(record.bundle) / "checkpoint"
    await asyncio.to_thread(shutil.copytree, path, copy, dirs_exist_ok=True)
    record.restore = str(copy)
    record.save()


def whose(directory: Path) -> str:
    """The id that the container had which was written to a directory."""
    found = Whose.read(directory / _NAME)
    if found is None:
        raise InvalidArgument(f"{directory} holds no checkpoint of the application kernel's")
    return found.id


async def drop(record: TaskRecord) -> None:
    """Its kernel goes on from the files that it has open."""
    copy, record.restore = record.restore, ""
    record.save()
    await asyncio.to_thread(shutil.rmtree, copy, ignore_errors=True)


def _check_alone(pod: KernelPod, task_id: str) -> None:
    if not pod.record.sole:
        raise Unsupported(
            f"container {task_id} shares its kernel with others", kind="appkernel", feature="checkpoint",
            cause="they are written down together", hint="snapshot the pod",
        )  # fmt: skip


async def _nothing() -> None:
    """Nothing else belongs to the moment."""
