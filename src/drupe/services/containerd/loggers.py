"""`binary://` as a container's output: a program of the user's reads it (containerd's docs/logging, "binary").

The program has standard output and error as descriptors 3 and 4, and closes 5 when it is ready. It ends by itself,
when the output does.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from drupe.errors import DeadlineExceeded, InvalidArgument
from drupe.keeper.client import Keeper
from drupe.keeper.records import RunResult
from drupe.runtime.node import Node
from drupe.services.containerd.stdio import close_streams

SCHEME = "binary://"
_READY_TIMEOUT_S = 10.0
_TOLD_S = 0.05  # an answer that is here has some turns of the loop to be seen
_LONGEST_S = 10 * 365 * 86400.0


async def start_logger(node: Node, keeper: Keeper, uri: str, *, id_: str, namespace: str) -> dict[str, int]:
    """Run the program; its streams' other ends, `stdout` and `stderr`. Raises InvalidArgument when it cannot be run,
    DeadlineExceeded when it is not ready in time."""
    argv = _argv(uri)
    await keeper.umount([])  # nothing: while one keeper takes over from another, it waits
    ends = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
    theirs = {"stdout": ends[0][0], "stderr": ends[1][0], "ready": ends[2][1]}
    ours = {"stdout": ends[0][1], "stderr": ends[1][1]}
    env = {"CONTAINER_ID": id_, "CONTAINER_NAMESPACE": namespace}
    work = keeper.run(argv, env=env, fds=theirs, timeout_s=_LONGEST_S, check=True)
    running = node.spawn(work, f"logger {argv[0]} of {id_}")
    await asyncio.sleep(0)  # now they are sent
    close_streams(theirs)
    try:
        await _ready(running, ends[2][0], argv[0], keeper)
    except BaseException:
        close_streams(ours)  # with its input it ends
        raise
    finally:
        close_streams({"ready": ends[2][0]})
    return ours


def _argv(uri: str) -> list[str]:
    """The program, then the names and values of the URI's query."""
    try:
        parts = urlsplit(uri)
        path, words = unquote(parts.path), parse_qsl(parts.query, keep_blank_values=True)
    except ValueError as error:
        raise InvalidArgument(f"stream {uri!r} is no URI: {error}") from None
    argv = [path, *(word for pair in words for word in pair)]
    if not path.startswith("/") or any("\0" in word for word in argv):
        raise InvalidArgument(f"stream {uri!r} names no program by an absolute path")
    return argv


async def _ready(running: asyncio.Task[RunResult], fd: int, program: str, keeper: Keeper) -> None:
    """Until it has closed the other end of `fd`, which a program that cannot be run does as well."""
    loop, closed = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(fd, closed.set)
    waiting = asyncio.ensure_future(closed.wait())
    try:
        wanted: set[asyncio.Future[Any]] = {waiting, running}
        done, _ = await asyncio.wait(wanted, timeout=_READY_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        loop.remove_reader(fd)
    if not done:
        raise DeadlineExceeded(f"the logger {program} was not ready within {_READY_TIMEOUT_S:g} s")
    await keeper.umount([])  # nothing: the keeper answers in turn, so by now it has told of such a program
    await asyncio.wait([running], timeout=_TOLD_S)
    if running.done() and (error := running.exception()) is not None:
        raise InvalidArgument(f"the logger {program} cannot be run", cause=str(error))
