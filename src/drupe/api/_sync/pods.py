# Written by scripts/unasync.py from api/_async/pods.py; change that file, not this one.
"""Pods: a handle on one, and the collection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from drupe.api._sync.containers import Container
from drupe.api._sync.process import Process, start_main
from drupe.errors import InvalidArgument, NotFound
from drupe.rpc.connection import Connection
from drupe.spec.container import ContainerSpec
from drupe.spec.control import (
    ContainerCreate,
    Delete,
    ListFilter,
    PodCreate,
    PodList,
    PodRun,
    Ref,
    Stop,
    Update,
    Wait,
)
from drupe.spec.pod import PodSpec
from drupe.spec.resources import Resources
from drupe.spec.snapshot import Fork, SnapshotCreate, SnapshotInfo
from drupe.spec.status import ExitStatus, PodStatus, Stats


class Pod:
    """A pod by id or name. Making the handle asks nobody; each method is one call to the runtime."""

    def __init__(self, connection: Connection, ref: str) -> None:
        self.id = ref
        self._connection = connection

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    def status(self) -> PodStatus:
        """State, sandbox kind, addresses, ports, containers. Raises NotFound."""
        return self._status_of("pod.status", Ref(ref=self.id))

    def start(self) -> PodStatus:
        """Start its sandbox and its containers."""
        return self._status_of("pod.start", Ref(ref=self.id))

    def stop(self, *, timeout: float | None = None, force: bool = False) -> PodStatus:
        """Stop its containers, then its sandbox. timeout: seconds of grace (None: each container's own)."""
        return self._status_of("pod.stop", Stop(ref=self.id, timeout_s=timeout, force=force))

    def pause(self) -> PodStatus:
        """Freeze every process of the pod."""
        return self._status_of("pod.pause", Ref(ref=self.id))

    def resume(self) -> PodStatus:
        """Thaw what `pause` froze."""
        return self._status_of("pod.resume", Ref(ref=self.id))

    def delete(self, *, force: bool = False, volumes: bool = True) -> None:
        """Delete it; `force` stops it first. volumes: anonymous volumes too."""
        self._connection.call("pod.delete", Delete(ref=self.id, force=force, volumes=volumes))

    def wait(self, *, condition: str = "stopped", timeout: float | None = None) -> ExitStatus:
        """Wait for the end of its containers, or its removal. Raises DeadlineExceeded after `timeout` seconds."""
        params = Wait(ref=self.id, condition=condition, timeout_s=timeout)
        ended: ExitStatus = self._connection.call("pod.wait", params)
        return ended

    def update(self, resources: Resources) -> PodStatus:
        """Change the limits of the pod as a whole."""
        return self._status_of("pod.update", Update(ref=self.id, resources=resources))

    def stats(self) -> Stats:
        """Counters of the pod as a whole."""
        answer: Stats = self._connection.call("pod.stats", Ref(ref=self.id))
        return answer

    def snapshot(self, name: str = "") -> SnapshotInfo:
        """Write it down, memory and files, while it runs. Raises Unsupported for kinds that cannot be."""
        info: SnapshotInfo = self._connection.call("snapshot.create", SnapshotCreate(ref=self.id, name=name))
        return info

    def fork(self, name: str = "") -> Pod:
        """A second pod that goes on from where this one is; this one goes on too."""
        return Pod(self._connection, (self._status_of("pod.fork", Fork(ref=self.id, name=name))).id)

    def create_container(self, spec: ContainerSpec) -> Container:
        """Add a container."""
        status = self._connection.call("container.create", ContainerCreate(pod=self.id, spec=spec))
        return Container(self._connection, status.id)

    def containers(self) -> list[Container]:
        """Handles on its containers, in the order of creation."""
        return [Container(self._connection, c.id) for c in (self.status()).containers]

    def container(self, name: str) -> Container:
        """The container called `name` in this pod. Raises NotFound."""
        for status in (self.status()).containers:
            if name in (status.name, status.id):
                return Container(self._connection, status.id)
        raise NotFound(f"pod {self.id} has no container {name!r}")

    def _status_of(self, method: str, params: Any) -> PodStatus:
        status: PodStatus = self._connection.call(method, params)
        return status


class Pods:
    """All pods of a runtime."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def create(self, spec: PodSpec) -> Pod:
        """Make a pod without starting it."""
        status = self._connection.call("pod.create", PodCreate(spec=spec))
        return Pod(self._connection, status.id)

    def run(self, spec: PodSpec) -> Pod:
        """Make a pod and start it. What was made is undone when that fails."""
        status = self._connection.call("pod.run", PodRun(spec=spec))
        return Pod(self._connection, status.id)

    def run_attached(self, spec: PodSpec, *, rows: int = 0, cols: int = 0) -> tuple[Pod, Process]:
        """As `run`, with the streams of the first container's main process in our hands from the first byte.

        Not for pods with `remove`: how the process ended would be gone with them.
        """
        if spec.remove or not spec.containers:
            raise InvalidArgument("run_attached needs a pod with a container and without `remove`")
        first, params = spec.containers[0], PodRun(spec=spec, rows=rows, cols=cols)
        status, main = start_main(self._connection, "pod.run", params, stdin=first.stdin, tty=first.tty)
        return Pod(self._connection, status.id), main

    def get(self, ref: str) -> Pod:
        """A pod by id, unique id prefix or name. Raises NotFound."""
        status = self._connection.call("pod.status", Ref(ref=ref))
        return Pod(self._connection, status.id)

    def list(
        self, *, labels: Sequence[str] = (), states: Sequence[str] = (), namespace: str | None = None
    ) -> list[PodStatus]:
        """Pods with all of `labels` ("k" or "k=v"), in any of `states`, of one `namespace`."""
        wanted = ListFilter(labels=tuple(labels), states=tuple(states), namespace=namespace)
        found: PodList = self._connection.call("pod.list", wanted)
        return found.pods
