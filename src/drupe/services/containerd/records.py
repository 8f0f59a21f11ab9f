"""What is known of a task that its container does not say: whose it is, its streams, its execs; and how those that were
deleted last had ended. In the journal."""

from __future__ import annotations

from typing import Any

import msgspec

from drupe.rpc.containerd.task_v2_pb2 import CreateTaskRequest, ExecProcessRequest
from drupe.spec.resources import Resources
from drupe.spec.status import ExitStatus
from drupe.state.journal import Journal

RECORDS = "containerd-task"
GRAVES = "containerd-deleted"
KEPT_GRAVES = 64


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
    """A further process. process: of the runtime specification. planned: the name that we will start it by; ours: the
    same, "" until then. exit: its end, once that was told."""

    streams: Streams
    process: dict[str, Any]
    planned: str
    ours: str = ""
    pid: int = 0
    rows: int = 0
    cols: int = 0
    exit: ExitStatus | None = None


class TaskRecord(msgspec.Struct, kw_only=True):
    """peer: key of its containerd. id: containerd's, unique in its namespace; container: ours, unique everywhere.
    pod: ours. whole: the pod was made for it, and goes with it. limits: what the pod is held to for it, where it is not
    limited by itself. start_told, exit_told: put among the events."""

    peer: str
    namespace: str
    id: str
    pod: str
    container: str
    bundle: str
    streams: Streams
    whole: bool
    pid: int = 0
    limits: Resources = Resources()
    start_told: bool = False
    exit_told: bool = False
    execs: dict[str, ExecRecord] = {}

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.peer, self.namespace, self.id)

    def save(self, journal: Journal) -> None:
        journal.put_record(RECORDS, self.container, msgspec.to_builtins(self))

    def remove(self, journal: Journal) -> None:
        journal.delete_record(RECORDS, self.container)


class Grave(msgspec.Struct, frozen=True, kw_only=True):
    """Of a task, or of an exec of one, that is or will be deleted."""

    key: tuple[str, str, str]
    exec_id: str
    pid: int
    exit: ExitStatus | None


class Graves:
    """The last `KEPT_GRAVES`: whoever asks a second time for a deletion wants to know the end that it had."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._known = {key: msgspec.convert(data, Grave) for key, data in sorted(journal.records(GRAVES).items())}
        self._last = int(next(reversed(self._known), "0"))

    def dig(self, grave: Grave) -> None:
        """To be called before anything is removed."""
        self._last += 1
        key = f"{self._last:016d}"
        self._known[key] = grave
        self._journal.put_record(GRAVES, key, msgspec.to_builtins(grave))
        if len(self._known) > KEPT_GRAVES:
            oldest = next(iter(self._known))
            del self._known[oldest]
            self._journal.delete_record(GRAVES, oldest)

    def find(self, peer: str, namespace: str, id_: str, exec_id: str) -> Grave | None:
        """The newest of that name."""
        wanted = ((peer, namespace, id_), exec_id)
        return next((grave for grave in reversed(self._known.values()) if (grave.key, grave.exec_id) == wanted), None)


def load(journal: Journal) -> list[TaskRecord]:
    """All of them."""
    return [msgspec.convert(data, TaskRecord) for data in journal.records(RECORDS).values()]
