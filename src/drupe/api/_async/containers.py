"""Containers: a handle on one, and the collection."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Literal, overload

from drupe.api._async import process
from drupe.api._async.files import AsyncFiles
from drupe.api._async.process import AsyncProcess
from drupe.api.result import Result
from drupe.api.specs import exec_spec, limits
from drupe.rpc.connection import AsyncConnection
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


class AsyncContainer:
    """A container by id or name. Making the handle asks nobody; each method is one call to the runtime."""

    def __init__(self, connection: AsyncConnection, ref: str) -> None:
        self.id = ref
        self.files = AsyncFiles(connection, ref)
        self._connection = connection

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    async def status(self) -> ContainerStatus:
        """State, exit, ids, times. Raises NotFound."""
        return await self._status_of("container.status", Ref(ref=self.id))

    async def inspect(self) -> Any:
        """All that is known, as plain data: status, spec, OCI config, paths."""
        return await self._connection.call("container.inspect", Ref(ref=self.id))

    async def start(self) -> ContainerStatus:
        """Start its main process. Raises InvalidTransition when it runs already."""
        return await self._status_of("container.start", ContainerStart(ref=self.id))

    async def start_attached(
        self, *, stdin: bool = False, tty: bool = False, rows: int = 0, cols: int = 0
    ) -> AsyncProcess:
        """Start it with its main process's streams in our hands from the first byte. tty: as its spec says."""
        params = ContainerStart(ref=self.id, rows=rows, cols=cols)
        _, main = await process.start_main(self._connection, "container.start", params, stdin=stdin, tty=tty)
        return main

    async def stop(self, *, timeout: float | None = None, force: bool = False) -> ContainerStatus:
        """Stop signal, then SIGKILL after `timeout` seconds (None: the container's own grace; force: at once)."""
        return await self._status_of("container.stop", Stop(ref=self.id, timeout_s=timeout, force=force))

    async def kill(self, signal: str | int = "KILL", *, all: bool = False) -> None:
        """Send a signal to the main process, or with `all` to every process."""
        await self._connection.call("container.kill", Kill(ref=self.id, signal=str(signal), all=all))

    async def pause(self) -> ContainerStatus:
        """Freeze every process."""
        return await self._status_of("container.pause", Ref(ref=self.id))

    async def resume(self) -> ContainerStatus:
        """Thaw what `pause` froze."""
        return await self._status_of("container.resume", Ref(ref=self.id))

    async def wait(self, *, condition: str = "stopped", timeout: float | None = None) -> ExitStatus:
        """Wait for its end ("stopped") or removal ("removed"). Raises DeadlineExceeded after `timeout` seconds."""
        params = Wait(ref=self.id, condition=condition, timeout_s=timeout)
        ended: ExitStatus = await self._connection.call("container.wait", params)
        return ended

    async def update(
        self,
        resources: Resources | None = None,
        *,
        memory: str | int | None = None,
        cpus: str | float | None = None,
        pids: int | None = None,
    ) -> ContainerStatus:
        """Change limits while it runs; what is not named stays. memory: bytes or "256M"."""
        changed = limits(resources, memory=memory, cpus=cpus, pids=pids)
        return await self._status_of("container.update", Update(ref=self.id, resources=changed))

    async def delete(self, *, force: bool = False, volumes: bool = True) -> None:
        """Delete it; `force` stops it first. volumes: its anonymous volumes too."""
        await self._connection.call("container.delete", Delete(ref=self.id, force=force, volumes=volumes))

    async def processes(self) -> list[ProcessInfo]:
        """Its processes, ids as the host sees them."""
        found: ProcessList = await self._connection.call("container.processes", Ref(ref=self.id))
        return found.processes

    async def stats(self) -> Stats:
        """Counters of CPU, memory, I/O, processes, network."""
        answer: StatsList = await self._connection.call("container.stats", StatsRequest(refs=(self.id,)))
        return answer.items[0].stats

    async def stats_stream(self, *, interval: float = 1.0) -> AsyncIterator[Stats]:
        """Counters each `interval` seconds until the iteration is closed."""
        params = StatsRequest(refs=(self.id,), stream=True, interval_s=interval)
        async with await self._connection.stream("container.stats", params) as stream:
            async for item in stream:
                yield item.stats

    async def logs(
        self,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: float | None = None,
        until: float | None = None,
    ) -> AsyncIterator[LogLine]:
        """Its output lines so far; with `follow` until it ends."""
        params = Logs(ref=self.id, follow=follow, tail=tail, since=since, until=until)
        async with await self._connection.stream("container.logs", params) as stream:
            async for line in stream:
                yield line

    async def attach(self, *, stdin: bool = False, tty: bool = False) -> AsyncProcess:
        """Connect to its main process's streams. tty: it has a terminal, so there is no separate stderr."""
        return await process.open_process(
            self._connection, "container.attach", Ref(ref=self.id), ref=self.id, argv=(), stdin=stdin, tty=tty
        )

    async def resize(self, rows: int, cols: int) -> None:
        """Set the size of its terminal."""
        await self._connection.call("container.resize", Resize(ref=self.id, rows=rows, cols=cols))

    async def close_stdin(self) -> None:
        """End its standard input."""
        await self._connection.call("container.close_stdin", Ref(ref=self.id))

    async def popen(
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
    ) -> AsyncProcess:
        """Run a further process with its streams in our hands; returns once it runs.

        timeout: seconds after which it is killed. env adds to the container's. Raises InvalidState when the container
        does not run, NotFound when there is no such program.
        """
        spec = exec_spec(
            argv, cwd=cwd, env=env, user=user, timeout=timeout, tty=tty, rows=rows, cols=cols, privileged=privileged
        )
        return await process.popen(self._connection, self.id, spec, stdin=stdin)

    @overload
    async def run(
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
    async def run(
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

    async def run(
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
        return await process.run(
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

    async def _status_of(self, method: str, params: Any) -> ContainerStatus:
        status: ContainerStatus = await self._connection.call(method, params)
        return status


class AsyncContainers:
    """All containers of a runtime."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def create(self, pod: str, spec: ContainerSpec) -> AsyncContainer:
        """Add a container to pod `pod` (id or name)."""
        status = await self._connection.call("container.create", ContainerCreate(pod=pod, spec=spec))
        return AsyncContainer(self._connection, status.id)

    async def get(self, ref: str) -> AsyncContainer:
        """A container by id, unique id prefix or name. Raises NotFound."""
        status = await self._connection.call("container.status", Ref(ref=ref))
        return AsyncContainer(self._connection, status.id)

    async def list(
        self, *, labels: Sequence[str] = (), states: Sequence[str] = (), pod: str | None = None
    ) -> list[ContainerStatus]:
        """Containers with all of `labels` ("k" or "k=v"), in any of `states`, of one `pod`."""
        wanted = ListFilter(labels=tuple(labels), states=tuple(states), pod=pod)
        found: ContainerList = await self._connection.call("container.list", wanted)
        return found.containers
