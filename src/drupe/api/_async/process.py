"""A process in a container, with its streams."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from drupe.api._async.pipes import AsyncPump, AsyncReader, AsyncWriter, close_all, stdio_pipes
from drupe.api.result import Output, Result, Timing, make_result
from drupe.errors import CommandTimeout, DeadlineExceeded, DrupeError, InvalidArgument, InvalidState, NotFound
from drupe.rpc.connection import AsyncConnection, AsyncRunningCall
from drupe.spec.container import ExecSpec
from drupe.spec.control import ExecKill, ExecStart, Kill, Resize, Wait
from drupe.spec.status import ExitStatus, PodStatus

_KILL_GRACE_S = 5.0  # how long past a command's own timeout the daemon may take to end it


class AsyncProcess:
    """A running process; get one from `popen`, `attach` or `start(attach=True)`.

    stdin, stdout, stderr: our ends of its streams (None where there is none; with a tty all output is on stdout).
    pid: as the host sees it. As a context manager it and what it started are killed at the end of the block if
    it still runs.
    """

    def __init__(
        self,
        connection: AsyncConnection,
        running: AsyncRunningCall,
        *,
        ref: str,
        argv: Sequence[str] = (),
        exec_id: str = "",
        pid: int = 0,
        stdin: AsyncWriter | None = None,
        stdout: AsyncReader | None = None,
        stderr: AsyncReader | None = None,
    ) -> None:
        self.argv = tuple(argv)
        self.exec_id = exec_id
        self.pid = pid
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self._connection = connection
        self._running = running
        self._ref = ref
        self._status: ExitStatus | None = None

    def __repr__(self) -> str:
        state = "running" if self._status is None else f"exit {self._status.code}"
        return f"<{type(self).__name__} {' '.join(self.argv)!r} pid {self.pid}, {state}>"

    @property
    def status(self) -> ExitStatus | None:
        """How it ended; None as long as that is not known (`wait`, `poll`)."""
        return self._status

    @property
    def exit_code(self) -> int | None:
        """Exit code, or 128 + signal; None as long as it is not known."""
        return None if self._status is None else self._status.code

    @property
    def returncode(self) -> int | None:
        """The exit code, under the name that subprocess gives it; 128 + signal, where subprocess has -signal."""
        return self.exit_code

    async def poll(self) -> int | None:
        """The exit code if it has ended, without waiting."""
        if self._status is None and await self._running.advance(0):
            self._status = self._running.result
        return self.exit_code

    async def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; the exit code. Raises DeadlineExceeded after `timeout` seconds; it runs on then."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._status is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise DeadlineExceeded(f"{self._what()} has not ended within {timeout:g} s", may_have_run=True)
            if await self._running.advance(left):
                self._status = self._running.result
        return self._status.code

    async def communicate(self, input: bytes | str | None = None) -> tuple[bytes, bytes]:
        """Write `input`, read all output, wait for the end; (stdout, stderr)."""
        stdout, stderr = Output(), Output()
        await self.pump(input, stdout, stderr)
        return bytes(stdout.data), bytes(stderr.data)

    async def kill(self, signal: str | int = "KILL", *, tree: bool = False) -> None:
        """Send a signal, by name or number; tree: to all it started too. Nothing happens when it has ended."""
        if await self.poll() is not None:
            return
        name = str(signal)
        try:
            if self.exec_id:
                params = ExecKill(ref=self._ref, exec_id=self.exec_id, signal=name, tree=tree)
                await self._connection.call("exec.kill", params)
            else:
                await self._connection.call("container.kill", Kill(ref=self._ref, signal=name, all=tree))
        except (NotFound, InvalidState):
            return  # it ended meanwhile, or its container did

    async def terminate(self) -> None:
        """Send SIGTERM."""
        await self.kill("TERM")

    async def resize(self, rows: int, cols: int) -> None:
        """Set its terminal's size."""
        await self._connection.call(
            "container.resize", Resize(ref=self._ref, rows=rows, cols=cols, exec_id=self.exec_id)
        )

    async def close(self) -> None:
        """Close our ends of the streams and stop listening; the process runs on."""
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                await stream.close()
        await self._running.close()

    async def pump(
        self, input: bytes | str | None, stdout: Output, stderr: Output, *, limit_s: float | None = None
    ) -> bool:
        """Feed `input`, collect output until the end. False when `limit_s` passed before."""
        data = input.encode() if isinstance(input, str) else input or b""
        if data and self.stdin is None:
            raise InvalidArgument(f"{self._what()} has no standard input to give input to")
        pump = AsyncPump(self._running, self.stdin, data)
        pairs = [(self.stdout, stdout), (self.stderr, stderr)]
        done = await pump.run([(reader, output) for reader, output in pairs if reader is not None], limit_s)
        if done:
            self._status = self._running.result
            stdout.finish()
            stderr.finish()
        return done

    async def __aenter__(self) -> AsyncProcess:
        return self

    async def __aexit__(self, *exc: object) -> None:
        try:
            if await self.poll() is None:
                await self.kill(tree=True)
                await self._see_it_end()
        finally:
            await self.close()

    async def _see_it_end(self) -> None:
        with suppress(DrupeError):  # not in time, or the runtime went away: it was killed all the same
            await self.wait(_KILL_GRACE_S)

    def _what(self) -> str:
        return self.argv[0] if self.argv else f"the process of {self._ref}"


async def open_process(
    connection: AsyncConnection,
    method: str,
    params: Any,
    *,
    ref: str,
    argv: Sequence[str],
    stdin: bool,
    tty: bool,
) -> AsyncProcess:
    """Start a call that takes stdio descriptors and ends with the process, with pipes of which we keep our ends."""
    ours, theirs = stdio_pipes(stdin=stdin, tty=tty)
    try:
        running = await connection.stream(method, params, fds=theirs)
    except BaseException:
        close_all(ours)
        raise
    finally:
        close_all(theirs)
    return AsyncProcess(connection, running, ref=ref, argv=argv, **_streams(ours))


async def start_main(
    connection: AsyncConnection, method: str, params: Any, *, stdin: bool, tty: bool
) -> tuple[Any, AsyncProcess]:
    """A call that starts a container with our pipes as its streams: (what it answers, the main process)."""
    ours, theirs = stdio_pipes(stdin=stdin, tty=tty)
    try:
        status = await connection.call(method, params, fds=theirs)
        main = status.containers[0] if isinstance(status, PodStatus) else status
        running = await connection.stream("container.wait", Wait(ref=main.id))
    except BaseException:
        close_all(ours)
        raise
    finally:
        close_all(theirs)
    process = AsyncProcess(connection, running, ref=main.id, argv=main.argv, pid=main.pid, **_streams(ours))
    return status, process


def _streams(ours: dict[str, int]) -> dict[str, Any]:
    return {name: AsyncWriter(fd) if name == "stdin" else AsyncReader(fd) for name, fd in ours.items()}


async def popen(connection: AsyncConnection, ref: str, spec: ExecSpec, *, stdin: bool) -> AsyncProcess:
    """Run a further process in container `ref`; returns once it runs. Raises what `exec.start` answers."""
    process = await open_process(
        connection,
        "exec.start",
        ExecStart(ref=ref, spec=spec),
        ref=ref,
        argv=spec.argv,
        stdin=stdin,
        tty=spec.tty,
    )
    try:
        started = await anext(process._running)
    except BaseException:
        await process.close()
        raise
    process.exec_id, process.pid = started.exec_id, started.pid
    return process


async def run(
    connection: AsyncConnection,
    ref: str,
    spec: ExecSpec,
    *,
    input: bytes | str | None,
    check: bool,
    text: bool,
    on_stdout: Callable[[Any], object] | None,
    on_stderr: Callable[[Any], object] | None,
    max_output_bytes: int | None,
) -> Result[Any]:
    """Run a command to its end. Raises CommandTimeout (killed; with the output so far), CommandFailed."""
    began = time.monotonic()
    stdout = Output(callback=on_stdout, text=text, limit_bytes=max_output_bytes)
    stderr = Output(callback=on_stderr, text=text, limit_bytes=max_output_bytes)
    async with await popen(connection, ref, spec, stdin=input is not None) as process:
        started_s = time.monotonic() - began
        status = await _to_its_end(process, input, stdout, stderr, spec.timeout_s)
    timing = Timing(started_s=started_s, total_s=time.monotonic() - began)
    result = make_result(spec.argv, status, stdout, stderr, timing=timing, text=text)
    if result.reason == "Timeout":
        raise CommandTimeout(f"{spec.argv[0]} ran longer than {spec.timeout_s:g} s and was killed", result=result)
    return result.check() if check else result


async def _to_its_end(
    process: AsyncProcess, input: bytes | str | None, stdout: Output, stderr: Output, timeout_s: float | None
) -> ExitStatus:
    """The daemon ends it at its timeout; should it not, we do, and do not wait for ever for that either."""
    limit_s = None if timeout_s is None else timeout_s + _KILL_GRACE_S
    if not await process.pump(input, stdout, stderr, limit_s=limit_s):
        await process.kill(tree=True)
        if not await process.pump(None, stdout, stderr, limit_s=_KILL_GRACE_S):
            return ExitStatus(code=137, signal=9, reason="Timeout", message="its end was not confirmed")
        return _timed_out(process.status)
    return process.status or ExitStatus(code=137, signal=9, reason="Lost")


def _timed_out(status: ExitStatus | None) -> ExitStatus:
    code, signal = (status.code, status.signal) if status is not None else (137, 9)
    return ExitStatus(code=code, signal=signal, reason="Timeout")
