"""The streams of a task or an exec, in whichever of its ways containerd names them: FIFOs and files, streams that it
calls for, or a program that reads the output."""

from __future__ import annotations

from drupe.services.containerd.loggers import SCHEME, start_logger
from drupe.services.containerd.records import Streams, TaskRecord
from drupe.services.containerd.stdio import close_streams, open_streams, stream_id
from drupe.services.containerd.tasks import Tasks

Key = tuple[str, str, str]


async def of_task(tasks: Tasks, key: Key, streams: Streams) -> dict[str, int]:
    """Descriptors by name. key: of the task. Raises as `open_streams` and `start_logger`; then none is open."""
    if not streams.stdout.startswith(SCHEME):
        return of_process(tasks, key, streams)
    fds = open_streams(stdin=streams.stdin, stdout="", stderr="", terminal=streams.terminal)
    try:
        logger = await start_logger(tasks.node, tasks.keeper, streams.stdout, id_=key[2], namespace=key[1])
    except BaseException:
        close_streams(fds)
        raise
    if streams.terminal:  # which has one output
        close_streams({"stderr": logger.pop("stderr")})
    return {**fds, **logger}


def of_process(tasks: Tasks, key: Key, streams: Streams) -> dict[str, int]:
    """The same where no program can be named: of an exec."""
    try:
        return open_streams(
            **streams.plain(), named=lambda id_, input_: tasks.streams.open((key[0], key[1], id_), input_=input_)
        )
    except BaseException:
        tasks.forget_streams(key[0], key[1], streams)
        raise


def end_input(tasks: Tasks, record: TaskRecord, streams: Streams) -> None:
    """No more comes by a stream that containerd called for."""
    if id_ := stream_id(streams.stdin):
        tasks.streams.close_input((record.peer, record.namespace, id_))
