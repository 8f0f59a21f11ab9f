"""Pods that are written down by their kernel, with all that runs in them, and what goes on from there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from drupe.errors import DataLoss, DrupeError, Unsupported
from drupe.sandboxers.appkernel.line import PROTOCOL, KernelLine
from drupe.sandboxers.appkernel.pods import KernelPod

FILES = ("state", "memory")
_WITHIN_S = 600.0
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL


@contextlib.contextmanager
def _opened(directory: Path, flags: int) -> Iterator[dict[str, int]]:
    """The two files of a snapshot: what there is, and the pages."""
    with contextlib.ExitStack() as opened:
        fds: dict[str, int] = {}
        for name in FILES:
            try:
                fds[name] = os.open(directory / name, flags | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                raise DataLoss(f"the snapshot has no {name}", stage="restore") from None
            opened.callback(os.close, fds[name])
        yield fds


async def save(
    pod: KernelPod, directory: Path, meanwhile: Callable[[], Awaitable[None]], *, goes_on: bool = True
) -> str:
    """Have the kernel write everything down while it stands still; it goes on afterwards if that is said. Returns what
    can read it. Unsupported says what cannot be saved, and whose it is."""
    line = pod.require()
    hello = await line.call("hello", protocol=PROTOCOL)
    with _opened(directory, _NEW) as fds:
        pod.saving = True
        try:
            with _explained():
                await line.call("save", fds=fds, timeout_s=_WITHIN_S)
            try:
                await meanwhile()
            finally:
                if goes_on:
                    await line.call("go_on")
        finally:
            pod.saving = False
    return f"drupe-appkernel {hello['version']}"


async def restore(
    line: KernelLine, directory: Path, containers: list[dict[str, Any]], fds: Mapping[str, int]
) -> dict[str, int]:
    """Have a kernel that has run nothing go on from there, each container once `go_on` says so. containers: as of its
    op `start`, with `id` and `old`. Returns the pids of their first processes."""
    with _opened(directory, os.O_RDONLY) as files, _explained():
        config = {"containers": containers}
        answer = await line.call("restore", config=config, fds={**fds, **files}, timeout_s=_WITHIN_S)
    return dict(answer["pids"])


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except DrupeError as error:
        errno = error.details.get("errno")
        if errno == "EOPNOTSUPP":
            raise Unsupported(
                "the pod cannot be saved, or cannot go on", kind="appkernel", feature="snapshot", cause=str(error)
            ) from None
        if errno == "EBADMSG":
            raise DataLoss(str(error), stage="restore") from None
        raise
