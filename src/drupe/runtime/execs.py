"""Further processes in a container: started, waited for, killed with their descendants when their time is up."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from drupe.errors import NotFound
from drupe.runtime.plan import check_timeout
from drupe.sandboxers.capabilities import needed_by_exec
from drupe.sandboxers.contract import ExecConfig
from drupe.spec.container import ExecSpec
from drupe.spec.status import KILLED, ExitStatus
from drupe.state.machine import State, require

if TYPE_CHECKING:
    from drupe.runtime.container import Container

LIMIT = "exec_limit"  # records in the journal
KEPT_ENDED = 32  # ended, detached execs whose exit status may still be asked for


class Execs:
    """The execs of one container. Nothing is allocated until the first."""

    __slots__ = ("_container", "_ended", "_ended_detached", "_limits", "_pids", "_recorded", "_starting", "_timed_out")

    def __init__(self, container: Container) -> None:
        self._container = container
        self._ended: dict[str, asyncio.Future[ExitStatus]] = {}
        self._ended_detached: list[str] = []
        self._pids: dict[str, int] = {}
        self._starting: dict[str, ExecSpec] = {}  # not announced yet
        self._limits: dict[str, asyncio.TimerHandle] = {}
        self._recorded: set[str] = set()  # those whose limit is in the journal
        self._timed_out: dict[str, float] = {}  # those killed for it → their limit in seconds

    async def start(
        self, spec: ExecSpec, fds: Mapping[str, int], *, process: dict[str, Any] | None = None, exec_id: str = ""
    ) -> tuple[str, int]:
        """Run it; returns (exec id, host pid). InvalidState unless pod and container run. Its time limit holds whether
        anybody waits for it or not. process: all of it in the OCI's words, instead of what `spec` says. exec_id: a
        name that the caller has chosen, unique everywhere."""
        container = self._container
        check_timeout(spec.timeout_s)
        require(container.pod.what, container.pod.state, State.RUNNING, to="exec")
        require(container.what, container.state, State.RUNNING, to="exec")
        container.check_allowed("exec in", needed_by_exec(spec))
        process = process or await container.node.storage.exec_process(container, spec)
        exec_id = exec_id or secrets.token_hex(8)
        self._record_limit(exec_id, spec.timeout_s)
        self._ended[exec_id] = asyncio.get_running_loop().create_future()
        self._starting[exec_id] = spec
        config = ExecConfig(
            id=exec_id,
            task=container.id,
            process=process,
            dir=container.bundle,
            tty=spec.tty,
            fds=fds,
            rows=spec.rows or None,
            cols=spec.cols or None,
        )
        try:
            pid = await container.tasks.exec(config)
        except BaseException:
            del self._ended[exec_id]
            self._starting.pop(exec_id, None)
            self._drop_limit(exec_id)
            raise
        if not self._ended[exec_id].done():
            self._pids[exec_id] = pid
        self._announce(exec_id)
        if spec.timeout_s is not None:
            self._limit(exec_id, spec.timeout_s)
        return exec_id, pid

    def _announce(self, exec_id: str) -> None:
        """Once, and before its end, which may be told first."""
        spec = self._starting.pop(exec_id, None)
        if spec is not None:
            self._event("exec_start", exec_id, command=" ".join(spec.argv))

    async def wait(self, exec_id: str, *, timeout_s: float | None = None) -> ExitStatus:
        """Its end. When `timeout_s` passes it and its descendants are killed and the reason is "Timeout"."""
        future = self._future(exec_id)
        if timeout_s is not None:
            self._limit(exec_id, timeout_s)
        return await asyncio.shield(future)

    def when_ended(self, exec_id: str, told: Callable[[ExitStatus], None]) -> None:
        """Call back at its end, before the keeper forgets that. NotFound."""
        self._future(exec_id).add_done_callback(lambda end: told(end.result()))

    def _limit(self, exec_id: str, timeout_s: float, *, left_s: float | None = None) -> None:
        """Have it killed when its time is up: `timeout_s` after its start, which is `left_s` from now."""
        if not self._future(exec_id).done():
            loop = asyncio.get_running_loop()
            delay_s = timeout_s if left_s is None else max(0.0, left_s)
            self._limits[exec_id] = loop.call_later(delay_s, self._time_is_up, exec_id, timeout_s)

    def _record_limit(self, exec_id: str, timeout_s: float | None) -> None:
        """Have the limit outlive the daemon, as the process does. Written before there is a process."""
        if timeout_s is not None:
            record = {"ends_at": time.time() + timeout_s, "timeout_s": timeout_s}
            self._container.node.journal.put_record(LIMIT, exec_id, record)
            self._recorded.add(exec_id)

    def _time_is_up(self, exec_id: str, timeout_s: float) -> None:
        self._timed_out[exec_id] = timeout_s
        self._container.node.spawn(self.kill_tree(exec_id), f"time limit of exec {exec_id}")

    def _drop_limit(self, exec_id: str) -> None:
        if (timer := self._limits.pop(exec_id, None)) is not None:
            timer.cancel()
        if exec_id in self._recorded:
            self._recorded.discard(exec_id)
            self._container.node.journal.delete_record(LIMIT, exec_id)

    async def kill(self, exec_id: str, signal: int, *, tree: bool = False) -> None:
        self._future(exec_id)
        if tree:
            await self.kill_tree(exec_id, signal)
            return
        await self._container.tasks.kill(self._container.id, signal, exec_id=exec_id)

    async def kill_tree(self, exec_id: str, signal: int = 9) -> None:
        """Send the signal to the process and all it started, within the container."""
        container, pid = self._container, self._pids.get(exec_id, 0)
        await container.tasks.kill_tree(container.id, signal, exec_id=exec_id, pid=pid)

    def ended(self, exec_id: str, status: ExitStatus) -> None:
        """Told by the sandboxer, after the last byte of output."""
        future = self._ended.get(exec_id)
        if future is None or future.done():
            return
        self._pids.pop(exec_id, None)
        self._drop_limit(exec_id)
        limit_s = self._timed_out.pop(exec_id, None)
        if limit_s is not None and status.code == KILLED:
            status.reason, status.message = "Timeout", f"after {limit_s:g} s"
        future.set_result(status)
        self._announce(exec_id)
        self._event("exec_die", exec_id, exit_code=str(status.code))

    def keep_end(self, exec_id: str) -> None:
        """Nobody waits for it: its end is kept to be asked for, among the last KEPT_ENDED."""
        self._future(exec_id).add_done_callback(lambda _: self._ended_detached.append(exec_id))
        for old in self._ended_detached[:-KEPT_ENDED]:
            self.forget(old)
        del self._ended_detached[:-KEPT_ENDED]

    def running(self) -> list[str]:
        """Those whose end has not been told."""
        return [exec_id for exec_id, future in self._ended.items() if not future.done() and exec_id in self._pids]

    def forget(self, exec_id: str) -> None:
        self._ended.pop(exec_id, None)
        self._pids.pop(exec_id, None)

    def pid(self, exec_id: str) -> int | None:
        """Its process, 0 once that has ended and been told of; None: there is no such exec."""
        return self._pids.get(exec_id, 0) if exec_id in self._ended else None

    def restore(self, exec_id: str, pid: int, exit_: ExitStatus | None = None) -> None:
        """Know an exec that lived through a restart of the daemon, or ended meanwhile."""
        self._ended[exec_id] = asyncio.get_running_loop().create_future()
        self._pids[exec_id] = pid
        if exit_ is not None:
            self._ended[exec_id].set_result(exit_)
            self.keep_end(exec_id)
            return
        record = self._container.node.journal.get_record(LIMIT, exec_id)
        if record is not None:
            self._recorded.add(exec_id)
            self._limit(exec_id, record["timeout_s"], left_s=record["ends_at"] - time.time())
        self.keep_end(exec_id)

    def forget_all(self) -> None:
        for exec_id in list(self._limits):
            self._drop_limit(exec_id)
        for future in self._ended.values():
            if not future.done():
                future.set_result(ExitStatus(code=137, signal=9, reason="Deleted"))
        self._pids.clear()

    def _future(self, exec_id: str) -> asyncio.Future[ExitStatus]:
        try:
            return self._ended[exec_id]
        except KeyError:
            raise NotFound(f"{self._container.what} has no exec {exec_id}") from None

    def _event(self, action: str, exec_id: str, **attributes: str) -> None:
        container = self._container
        container.node.events.publish(
            "container", action, container.id, name=container.name, exec_id=exec_id, **attributes
        )
