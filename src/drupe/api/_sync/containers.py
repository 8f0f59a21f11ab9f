# Written by scripts/unasync.py from api/_async/containers.py; change that file, not this one.
"""Containers: a handle on one, and the collection."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, overload

from drupe.api._sync import process
from drupe.api._sync.files import Files
from drupe.api._sync.process import Process
from drupe.api.result import Result
from drupe.api.specs import exec_spec, limits
from drupe.rpc.connection import Connection
from drupe.spec.container import ContainerSpec
from drupe.spec.control import (
    ContainerCreate,
    ContainerList,
    ContainerStart,
    Delete,
    Kill,
    ListFilter,
    LogLine,
    Logs,
    ProcessList,
    Ref,
    Resize,
    StatsList,
    StatsRequest,
    Stop,
    Update,
    Wait,
)
from drupe.spec.resources import Resources
from drupe.spec.status import ContainerStatus, ExitStatus, ProcessInfo, Stats


class Container:
    """A container by id or name. Making the handle asks nobody; each method is one call to the runtime."""

    def __init__(self, connection: Connection, ref: str) -> None:
        self.id = ref
        self.files = Files(connection, ref)
        self._connection = connection

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    def status(self) -> ContainerStatus:
        """State, exit, ids, times. Raises NotFound."""
        return self._status_of("container.status", Ref(ref=self.id))

    def inspect(self) -> Any:
        """All that is known, as plain data: status, spec, OCI config, paths."""
        return self._connection.call("container.inspect", Ref(ref=self.id))

    def start(self) -> ContainerStatus:
        """Start its main process. Raises InvalidTransition when it runs already."""
        return self._status_of("container.start", ContainerStart(ref=self.id))

    def start_attached(self, *, stdin: bool = False, tty: bool = False, rows: int = 0, cols: int = 0) -> Process:
        """Start it with its main process's streams in our hands from the first byte. tty: as its spec says."""
        params = ContainerStart(ref=self.id, rows=rows, cols=cols)
        _, main = process.start_main(self._connection, "container.start", params, stdin=stdin, tty=tty)
        return main

    def stop(self, *, timeout: float | None = None, force: bool = False) -> ContainerStatus:
        """Stop signal, then SIGKILL after `timeout` seconds (None: the container's own grace; force: at once)."""
        return self._status_of("container.stop", Stop(ref=self.id, timeout_s=timeout, force=force))

    def kill(self, signal: str | int = "KILL", *, all: bool = False) -> None:
        """Send a signal to the main process, or with `all` to every process."""
        self._connection.call("container.kill", Kill(ref=self.id, signal=str(signal), all=all))

    def pause(self) -> ContainerStatus:
        """Freeze every process."""
        return self._status_of("container.pause", Ref(ref=self.id))

    def resume(self) -> ContainerStatus:
        """Thaw what `pause` froze."""
        return self._status_of("container.resume", Ref(ref=self.id))

    def wait(self, *, condition: str = "stopped", timeout: float | None = None) -> ExitStatus:
        """Wait for its end ("stopped") or removal ("removed"). Raises DeadlineExceeded after `timeout` seconds."""
        params = Wait(ref=self.id, condition=condition, timeout_s=timeout)
        ended: ExitStatus = self._connection.call("container.wait", params)
        return ended

    def update(
        self,
        resources: Resources | None = None,
        *,
        memory: str | int | None = None,
        cpus: str | float | None = None,
        pids: int | None = None,
    ) -> ContainerStatus:
        """Change limits while it runs; what is not named stays. memory: bytes or "256M"."""
        changed = limits(resources, memory=memory, cpus=cpus, pids=pids)
        return self._status_of("container.update", Update(ref=self.id, resources=changed))

    def delete(self, *, force: bool = False, volumes: bool = True) -> None:
        """Delete it; `force` stops it first. volumes: its anonymous volumes too."""
        self._connection.call("container.delete", Delete(ref=self.id, force=force, volumes=volumes))

    def processes(self) -> list[ProcessInfo]:
        """Its processes, ids as the host sees them."""
        found: ProcessList = self._connection.call("container.processes", Ref(ref=self.id))
        return found.processes

    def stats(self) -> Stats:
        """Counters of CPU, memory, I/O, processes, network."""
        answer: StatsList = self._connection.call("container.stats", StatsRequest(refs=(self.id,)))
        return answer.items[0].stats

    def stats_stream(self, *, interval: float = 1.0) -> Iterator[Stats]:
        """Counters each `interval` seconds until the iteration is closed."""
        params = StatsRequest(refs=(self.id,), stream=True, interval_s=interval)
        with self._connection.stream("container.stats", params) as stream:
            for item in stream:
                yield item.stats

    def logs(
        self,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: float | None = None,
        until: float | None = None,
    ) -> Iterator[LogLine]:
        """Its output lines so far; with `follow` until it ends."""
        params = Logs(ref=self.id, follow=follow, tail=tail, since=since, until=until)
        with self._connection.stream("container.logs", params) as stream:
            for line in stream:
                yield line

    def attach(self, *, stdin: bool = False, tty: bool = False) -> Process:
        """Connect to its main process's streams. tty: it has a terminal, so there is no separate stderr."""
        return process.open_process(
            self._connection, "container.attach", Ref(ref=self.id), ref=self.id, argv=(), stdin=stdin, tty=tty
        )

    def resize(self, rows: int, cols: int) -> None:
        """Set the size of its terminal."""
        self._connection.call("container.resize", Resize(ref=self.id, rows=rows, cols=cols))

    def close_stdin(self) -> None:
        """End its standard input."""
        self._connection.call("container.close_stdin", Ref(ref=self.id))

    def popen(
        self,
        argv: Sequence[str],
        *,
        cwd: str | None = None,
        env: dict[str, str] | Iterable[str] | None = None,
        user: str | None = None,
        stdin: bool = True,
        tty: bool = False,
        rows: int = 0,
        cols: int = 0,
        timeout: float | None = None,
        privileged: bool = False,
    ) -> Process:
        """Run a further process with its streams in our hands; returns once it runs.

        timeout: seconds after which it is killed. env adds to the container's. Raises InvalidState when the container
        does not run, NotFound when there is no such program.
        """
        spec = exec_spec(
            argv, cwd=cwd, env=env, user=user, timeout=timeout, tty=tty, rows=rows, cols=cols, privileged=privileged
        )
        return process.popen(self._connection, self.id, spec, stdin=stdin)

    @overload
    def run(
        self,
        argv: Sequence[str],
        *,
        text: Literal[False] = False,
        timeout: float | None = ...,
        check: bool = ...,
        input: bytes | str | None = ...,
        cwd: str | None = ...,
        env: dict[str, str] | Iterable[str] | None = ...,
        user: str | None = ...,
        on_stdout: Callable[[bytes], object] | None = ...,
        on_stderr: Callable[[bytes], object] | None = ...,
        max_output_bytes: int | None = ...,
    ) -> Result[bytes]: ...

    @overload
    def run(
        self,
        argv: Sequence[str],
        *,
        text: Literal[True],
        timeout: float | None = ...,
        check: bool = ...,
        input: bytes | str | None = ...,
        cwd: str | None = ...,
        env: dict[str, str] | Iterable[str] | None = ...,
        user: str | None = ...,
        on_stdout: Callable[[str], object] | None = ...,
        on_stderr: Callable[[str], object] | None = ...,
        max_output_bytes: int | None = ...,
    ) -> Result[str]: ...

    def run(
        self,
        argv: Sequence[str],
        *,
        text: bool = False,
        timeout: float | None = None,
        check: bool = False,
        input: bytes | str | None = None,
        cwd: str | None = None,
        env: dict[str, str] | Iterable[str] | None = None,
        user: str | None = None,
        on_stdout: Callable[[Any], object] | None = None,
        on_stderr: Callable[[Any], object] | None = None,
        max_output_bytes: int | None = None,
    ) -> Result[Any]:
        """Run a command to its end, as subprocess.run does; output and exit code are never lost.

        timeout: seconds; then the command and its children are killed and CommandTimeout carries the output so far.
        check: an exit code other than 0 raises CommandFailed, which carries the Result. input: for its stdin.
        on_stdout, on_stderr: called with each piece as it comes. text: output as str. max_output_bytes: keep no more
        of each stream (the rest is read and dropped, Result.truncated says so). A background child that holds the
        streams after the command's end is waited for no longer than it writes.
        """
        return process.run(
            self._connection,
            self.id,
            exec_spec(argv, cwd=cwd, env=env, user=user, timeout=timeout),
            input=input,
            check=check,
            text=text,
            on_stdout=on_stdout,
            on_stderr=on_stderr,
            max_output_bytes=max_output_bytes,
        )

    def _status_of(self, method: str, params: Any) -> ContainerStatus:
        status: ContainerStatus = self._connection.call(method, params)
        return status


class Containers:
    """All containers of a runtime."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def create(self, pod: str, spec: ContainerSpec) -> Container:
        """Add a container to pod `pod` (id or name)."""
        status = self._connection.call("container.create", ContainerCreate(pod=pod, spec=spec))
        return Container(self._connection, status.id)

    def get(self, ref: str) -> Container:
        """A container by id, unique id prefix or name. Raises NotFound."""
        status = self._connection.call("container.status", Ref(ref=ref))
        return Container(self._connection, status.id)

    def list(
        self, *, labels: Sequence[str] = (), states: Sequence[str] = (), pod: str | None = None
    ) -> list[ContainerStatus]:
        """Containers with all of `labels` ("k" or "k=v"), in any of `states`, of one `pod`."""
        wanted = ListFilter(labels=tuple(labels), states=tuple(states), pod=pod)
        found: ContainerList = self._connection.call("container.list", wanted)
        return found.containers
