"""What is known of a task that its container does not say: whose it is, its streams, its execs. In the journal."""

from __future__ import annotations

from typing import Any

import msgspec

from drupe.rpc.containerd.task_v2_pb2 import CreateTaskRequest, ExecProcessRequest
from drupe.spec.status import ExitStatus
from drupe.state.journal import Journal

RECORDS = "containerd-task"


class Streams(msgspec.Struct, kw_only=True):
    """As they were named."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False

    @classmethod
    def of(cls, request: CreateTaskRequest | ExecProcessRequest) -> Streams:
        return cls(stdin=request.stdin, stdout=request.stdout, stderr=request.stderr, terminal=request.terminal)

    def plain(self) -> dict[str, Any]:
        """As fields of a message."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        return fields


class ExecRecord(msgspec.Struct, kw_only=True):
    """A further process. process: of the runtime specification. ours: the name that we started it by, "" until then.
    exit: its end, once that was told."""

    streams: Streams
    process: dict[str, Any]
    ours: str = ""
    pid: int = 0
    rows: int = 0
    cols: int = 0
    exit: ExitStatus | None = None


class TaskRecord(msgspec.Struct, kw_only=True):
    """peer: key of its containerd. id: containerd's, unique in its namespace; container: ours, unique everywhere.
    pod: ours. whole: the pod was made for it, and goes with it. exit_told: its end was put among the events."""

    peer: str
    namespace: str
    id: str
    pod: str
    container: str
    bundle: str
    streams: Streams
    whole: bool
    pid: int = 0
    exit_told: bool = False
    execs: dict[str, ExecRecord] = {}

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.peer, self.namespace, self.id)

    def save(self, journal: Journal) -> None:
        journal.put_record(RECORDS, self.container, msgspec.to_builtins(self))

    def remove(self, journal: Journal) -> None:
        journal.delete_record(RECORDS, self.container)


def load(journal: Journal) -> list[TaskRecord]:
    """All of them."""
    return [msgspec.convert(data, TaskRecord) for data in journal.records(RECORDS).values()]
