"""What containerd's shim asks the daemon: the control API's methods containerd.start and containerd.delete."""

from __future__ import annotations

from drupe.spec.base import Record, Spec


class ShimStart(Spec):
    """A shim was called to start. name: what it was called by, without its directory. grpc, ttrpc: addresses of its
    containerd. publish: containerd's program."""

    name: str
    namespace: str
    id: str
    grpc: str
    ttrpc: str = ""
    publish: str = ""


class ShimStarted(Record):
    """Where the Task service is: "unix://…", ttrpc."""

    address: str


class ShimDelete(Spec):
    """A shim was called to remove what is left of a task."""

    namespace: str
    id: str
    grpc: str
    ttrpc: str = ""


class ShimDeleted(Record):
    """How the task ended, if it was still there: else as if it was killed now. exited_at: seconds since 1970."""

    pid: int = 0
    exit_status: int = 137
    exited_at: float = 0.0
