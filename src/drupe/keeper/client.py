"""The daemon's side of the keeper: one method per op of docs/keeper.md."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec

from drupe import errors
from drupe.keeper.attachments import Attached, Attachments
from drupe.keeper.connection import Connection, open_socket
from drupe.keeper.escrow import Escrow, Held
from drupe.keeper.records import Answer, Created, Exit, Io, LogFile, Mount, RunResult, TaskInfo
from drupe.linux.memfd import memory_file
from drupe.rpc.timeouts import timeout

PROTOCOL = 1
DEFAULT_TIMEOUT_S = 10.0
HELPER_TIMEOUT_S = 30.0
_MARGIN_S = 5.0  # the keeper's own deadline comes first; this is for a keeper that hangs

_THEIRS = "their_"  # descriptors of an answer that are for who runs the task

Callback = TypeVar("Callback", bound=Callable[..., None])


class Keeper:
    """A connection to the keeper of one runtime root. Make it with `ensure_keeper` (start.py) or `connect`.

    Every method raises the drupe error that fits the keeper's answer (`NotFound`, `AlreadyExists`, `HelperFailed` with
    the helper's output as `cause`…), `DeadlineExceeded`, or `Unavailable` when the keeper has gone.
    """

    def __init__(self, run_dir: Path, escrow: Escrow) -> None:
        self.run_dir = run_dir
        self.escrow = escrow
        self.pid = 0
        self.version = ""
        self._connection: Connection | None = None
        self._exit_callbacks: list[Callable[[Exit], None]] = []
        self._detached_callbacks: list[Callable[[str, int, str], None]] = []
        self._lost_callbacks: list[Callable[[], None]] = []
        self._attachments = Attachments()
        self._settled = asyncio.Event()
        self._settled.set()

    @classmethod
    async def connect(cls, run_dir: Path | str, *, escrow: Escrow | None = None) -> Keeper:
        """Connects to the keeper that serves `run_dir` and subscribes to its events.

        Raises Unavailable when none does, or when it speaks another protocol.
        """
        keeper = cls(Path(run_dir), escrow or Escrow())
        await keeper.open()
        return keeper

    async def open(self) -> None:
        """Connects; after a loss, to the next keeper: callbacks and escrow stay. Raises what `connect` raises."""
        try:
            sock = open_socket(self.run_dir)
        except OSError as error:
            raise errors.Unavailable(f"no keeper serves {self.run_dir}", cause=error.strerror or "") from None
        self._connection = Connection(sock, self._event, self._lost)
        try:
            hello = (await self._request("hello", protocol=PROTOCOL)).ok
            await self._request("subscribe")
            self.pid, self.version = int(hello["pid"]), str(hello["version"])
            self._hold_mount_namespace()
        except BaseException:
            self._connection.close()  # else its loss would be told when there is another already
            raise

    async def call(
        self,
        op: str,
        *,
        fds: Mapping[str, int] | None = None,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        on_answer: Callable[[Answer], None] | None = None,
        **fields: Any,
    ) -> Answer:
        """One request of docs/keeper.md. Fields that are None are left out. fds: sent by name, still the caller's.

        on_answer: takes the answer and its descriptors before any event that follows it. After the death of a keeper
        it waits until the next has taken over.
        """
        if not self._settled.is_set():
            with suppress(TimeoutError):
                async with timeout(DEFAULT_TIMEOUT_S):
                    await self._settled.wait()
        return await self._request(op, fds=fds, timeout_s=timeout_s, on_answer=on_answer, **fields)

    async def _request(
        self,
        op: str,
        *,
        fds: Mapping[str, int] | None = None,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        on_answer: Callable[[Answer], None] | None = None,
        **fields: Any,
    ) -> Answer:
        if self._connection is None:
            raise errors.Unavailable("the keeper's connection is closed")
        given = {name: value for name, value in fields.items() if value is not None}
        return await self._connection.call(op, given, fds or {}, timeout_s, on_answer)

    @property
    def connected(self) -> bool:
        return self._connection is not None and not self._connection.closed

    def close(self) -> None:
        """Closes the connection and keeps the escrow: tasks go on, `on_lost` is not called."""
        if self._connection is not None:
            self._connection.close()
        self._attachments.keeper_lost()
        self.settled()

    # ── events ──

    def on_exit(self, callback: Callable[[Exit], None]) -> None:
        """Calls back for each task that has ended and whose output is drained and logged."""
        self._exit_callbacks.append(callback)

    def on_detached(self, callback: Callable[[str, int, str], None]) -> None:
        """Calls back with (task, attachment, reason) when one of our attachments is over, its last byte written."""
        self._detached_callbacks.append(callback)

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Calls back once when the connection closes under us: the keeper has died."""
        self._lost_callbacks.append(callback)

    async def wait_detached(self, attachment: int) -> str:
        """Waits for an attachment's end: "exit", "closed", "detach", or "lost" when its keeper died and none goes on.

        NotFound when there is no such attachment, its end was told before, or its task was forgotten.
        """
        try:
            end = self._attachments[attachment].end
        except KeyError:
            raise errors.NotFound(f"no attachment {attachment}") from None
        try:
            return await asyncio.shield(end)
        finally:
            if end.done():
                self._attachments.forget(attachment)

    def _event(self, packet: dict[str, Any]) -> None:
        match packet.pop("event"):
            case "exit":
                self.escrow.drop(packet["task"])
                record = msgspec.convert(packet, Exit)
                _call_all(self._exit_callbacks, record)
            case "detached":
                if (attachment := self._attachments.find(packet["attachment"])) is not None:
                    self._attachments.end(attachment, packet["reason"])
                    _call_all(self._detached_callbacks, packet["task"], attachment, packet["reason"])
            case "stdin_closed":
                self.escrow.close_stdin(packet["task"])
                for attached in self._attachments.of(packet["task"]):
                    attached.close("stdin")

    def _lost(self) -> None:
        self._attachments.keeper_lost()
        if self._lost_callbacks:
            self._settled.clear()
        _call_all(self._lost_callbacks)

    def settled(self) -> None:
        """A new keeper has taken over what it could, or none will: requests go on, other attachments have ended."""
        self._attachments.end_unknown()
        self._settled.set()

    def _hold_mount_namespace(self) -> None:
        """Keeps the keeper's mounts alive beyond its own life, for the next keeper to go on in."""
        held, self.escrow.mount_namespace = self.escrow.mount_namespace, None
        if held is not None:
            os.close(held)
        try:
            self.escrow.mount_namespace = os.open(f"/proc/{self.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise errors.Unavailable("the keeper has gone", cause=error.strerror or "") from None

    # ── namespaces and mounts ──

    async def create_namespaces(
        self,
        dir: Path | str,
        types: Sequence[str],
        *,
        hostname: str | None = None,
        sysctls: Mapping[str, str] | None = None,
        uid_map: Sequence[tuple[int, int, int]] | None = None,
        gid_map: Sequence[tuple[int, int, int]] | None = None,
        userns: Path | str | None = None,
        netns: Path | str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> int | None:
        """Makes namespaces ("net", "ipc", "uts", "user", "pid", "cgroup") and binds them to ``dir/<type>``. netns,
        userns: namespaces to join, which are bound to ``dir/net`` and ``dir/user``.

        With "pid": returns the pid of the process that is the namespace's first and keeps it until `release`.
        """
        answer = await self.call(
            "namespaces",
            dir=str(dir),
            types=list(types),
            hostname=hostname,
            sysctls=sysctls or None,
            uid_map=uid_map or None,
            gid_map=gid_map or None,
            userns=userns and str(userns),
            netns=netns and str(netns),
            timeout_s=timeout_s,
        )
        return answer.ok.get("init_pid")

    async def release(self, dir: Path | str) -> None:
        """Undoes `create_namespaces`; nothing there is fine."""
        await self.call("release", dir=str(dir))

    async def netns_socket(self, netns: Path | str, family: int, type: int, protocol: int = 0) -> int:
        """The descriptor of a socket made inside a network namespace."""
        answer = await self.call("netns_socket", netns=str(netns), family=family, type=type, protocol=protocol)
        return answer.fds["socket"]

    async def netns_open(self, netns: Path | str, path: str) -> int:
        """The descriptor of a file opened, for reading and writing, inside a network namespace."""
        answer = await self.call("netns_open", netns=str(netns), path=path)
        return answer.fds["file"]

    async def mount(
        self,
        mounts: Sequence[Mount],
        *,
        fds: Mapping[str, int] | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        """Mounts in order, below the keeper's root; all or none. fds: the trees, by name."""
        await self.call("mount", mounts=list(mounts), fds=fds, timeout_s=timeout_s)

    async def umount(self, targets: Sequence[Path | str], *, lazy: bool = False) -> None:
        """Unmounts in order; what is not mounted is fine. lazy: detaches what is busy."""
        await self.call("umount", targets=[str(target) for target in targets], lazy=lazy)

    # ── helpers and tasks ──

    async def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | str | None = None,
        netns: Path | str | None = None,
        stdin: str | None = None,
        timeout_s: float = HELPER_TIMEOUT_S,
        fds: Mapping[str, int] | None = None,
        check: bool = False,
    ) -> RunResult:
        """Runs a helper program to its end. fds: handed on as 3, 4… in this order.

        check: raises HelperFailed unless it exits with 0, DeadlineExceeded when it was killed at `timeout_s`.
        """
        passed: dict[str, Any] = {"pass": list(fds)} if fds else {}
        answer = await self.call(
            "run",
            argv=list(argv),
            env=env,
            cwd=cwd and str(cwd),
            netns=netns and str(netns),
            stdin=stdin,
            timeout_ms=round(timeout_s * 1000),
            fds=fds,
            timeout_s=timeout_s + _MARGIN_S,
            **passed,
        )
        result = msgspec.convert(answer.ok, RunResult)
        if check and (result.exit or result.timed_out):
            _raise_failed(argv[0], result, timeout_s)
        return result

    async def create_task(
        self,
        task: str,
        argv: Sequence[str],
        *,
        pidfile: Path | str,
        exit_file: Path | str,
        io: Io,
        log: LogFile | None = None,
        log_file: Path | str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | str | None = None,
        fds: Mapping[str, int] | None = None,
        extra_fds: Sequence[str] = (),
        join: Sequence[str] = (),
        hold: bool = False,
        attach: Mapping[str, int] | None = None,
        close_stdin: bool = False,
        timeout_s: float = HELPER_TIMEOUT_S,
    ) -> Created:
        """Runs argv (``crun create …`` or ``crun exec --detach …``) and adopts the process in `pidfile` as `task`.

        fds: stdin, stdout, stderr for io mode "fds", and those that `extra_fds` names (handed on as 3, 4…).
        join: cgroups that the helper moves into before it starts (`Cgroups.join_files`).
        hold: do not read the output before `flow`.
        log_file: where the helper writes its own errors (crun's ``--log``); quoted in the error when it fails.
        attach: stdin, stdout, stderr to attach from the first byte on, as `attach` does.
        The duplicates of the task's streams are kept in `escrow`.
        """
        return await self._make_task(
            "create",
            task,
            argv=list(argv),
            pidfile=str(pidfile),
            exit_file=str(exit_file),
            io=io,
            log=log,
            log_file=log_file and str(log_file),
            env=env,
            cwd=cwd and str(cwd),
            extra_fds=list(extra_fds) or None,
            join=list(join) or None,
            hold=hold or None,
            attach=attach,
            close_stdin=close_stdin,
            fds=fds,
            timeout_s=timeout_s,
        )

    async def exec_task(
        self,
        task: str,
        container: str,
        process: Mapping[str, Any],
        *,
        exit_file: Path | str,
        io: Io,
        join: Sequence[str],
        seccomp: Path | None = None,
        fds: Mapping[str, int] | None = None,
        attach: Mapping[str, int] | None = None,
        timeout_s: float = HELPER_TIMEOUT_S,
    ) -> Created:
        """Starts a further process in the container whose first process is the task `container`.

        process: what it is to be, as docs/keeper.md has it. io: mode "fds" or "tty". join: cgroups that it moves itself
        into. seccomp: file with its BPF program. fds, attach: as of `create_task`.
        """
        content = memory_file("process", msgspec.json.encode(process))  # it may be longer than a packet
        try:
            return await self._make_task(
                "exec",
                task,
                container=container,
                exit_file=str(exit_file),
                io=io,
                join=list(join),
                seccomp=seccomp and str(seccomp),
                attach=attach,
                close_stdin=False,
                fds={**(fds or {}), "process": content},
                timeout_s=timeout_s,
            )
        finally:
            os.close(content)

    async def hold_streams(
        self,
        task: str,
        *,
        stdin: bool,
        exit_file: Path | str,
        log: LogFile | None = None,
        attach: Mapping[str, int] | None = None,
        close_stdin: bool = False,
    ) -> Created:
        """Holds the streams of a task that is no process of this kernel: `take_streams` gives whoever runs it their
        other ends, `end_task` tells its end.

        stdin: one that is written to, instead of /dev/null. attach, close_stdin, log, exit_file: as of `create_task`.
        """
        return await self._make_task(
            "streams",
            task,
            exit_file=str(exit_file),
            io=Io(mode="pipes", stdin=stdin),
            log=log,
            attach=attach,
            close_stdin=close_stdin,
            fds=None,
            timeout_s=None,
        )

    async def take_streams(self, task: str) -> dict[str, int]:
        """The other ends of the streams of `hold_streams`, once: stdin, stdout, stderr, which the caller owns.

        Raises InvalidState when they were taken before.
        """
        answer = await self.call("take_streams", task=task)
        self.escrow.let_go(task, answer.fds)
        return {name.removeprefix(_THEIRS): fd for name, fd in answer.fds.items()}

    async def end_task(self, task: str, *, code: int, signal: int) -> None:
        """Says how a task of `hold_streams` has ended. code: 128 + signal for one that a signal ended.

        Its end is told like any other once its output is complete. Idempotent: the first time counts.
        """
        await self.call("ended", task=task, code=code, signal=signal)

    async def _make_task(
        self,
        op: str,
        task: str,
        *,
        exit_file: str,
        io: Io,
        log: LogFile | None = None,
        attach: Mapping[str, int] | None,
        close_stdin: bool,
        fds: Mapping[str, int] | None,
        timeout_s: float | None,
        **fields: Any,
    ) -> Created:
        sent = dict(fds or {})
        sent.update({f"attach_{name}": fd for name, fd in (attach or {}).items()})
        kept = {"io": Io(mode=io.mode), "exit_file": exit_file} | ({"log": log} if log else {})

        def keep(answer: Answer) -> None:
            told = {name: answer.ok[name] for name in ("pid", "started_at")}
            self.escrow.hold(Held(task, kept | told, answer.fds))
            if number := answer.ok.get("attachment"):
                attachments.append(self._attachments.add(task, attach or {}, number, close_stdin=close_stdin))

        attachments: list[int] = []
        answer = await self.call(
            op,
            task=task,
            exit_file=exit_file,
            io=io,
            log=log,
            attach={"close_stdin": close_stdin} if attach else None,
            timeout_ms=None if timeout_s is None else round(timeout_s * 1000),
            fds=sent,
            timeout_s=(timeout_s or 0.0) + _MARGIN_S,
            on_answer=keep,
            **fields,
        )
        return Created(int(answer.ok["pid"]), attachments[0] if attachments else None)

    async def attach(self, task: str, fds: Mapping[str, int], *, close_stdin: bool = False) -> int:
        """Joins stdin, stdout, stderr (those given) to a task; returns the attachment's number.

        close_stdin: at the end of the given stdin, close the task's. See `wait_detached`.
        """
        made: list[int] = []

        def keep(answer: Answer) -> None:  # before its end can be told
            made.append(self._attachments.add(task, fds, int(answer.ok["attachment"]), close_stdin=close_stdin))

        await self.call("attach", task=task, close_stdin=close_stdin, fds=fds, on_answer=keep)
        return made[0]

    async def flow(self, task: str) -> None:
        """Read the output of a task that was created with `hold`."""
        await self.call("flow", task=task)

    async def detach(self, task: str, attachment: int) -> None:
        try:
            number = self._attachments[attachment].number
        except KeyError:
            raise errors.NotFound(f"no attachment {attachment}") from None
        await self.call("detach", task=task, attachment=number)

    async def close_stdin(self, task: str) -> None:
        """Ends the task's stdin after what was written to it so far."""
        await self.call("close_stdin", task=task)
        self.escrow.close_stdin(task)

    async def resize(self, task: str, rows: int, cols: int) -> None:
        await self.call("resize", task=task, rows=rows, cols=cols)

    async def kill(self, task: str, signal: int) -> None:
        """Signals the task's first process; NotFound once it has ended."""
        await self.call("kill", task=task, signal=int(signal))

    async def reopen_log(self, task: str) -> None:
        await self.call("reopen_log", task=task)

    async def list(self) -> list[TaskInfo]:
        """All tasks, those that ended and were not forgotten too, by name."""
        found: list[TaskInfo] = []
        while True:
            answer = await self.call("list", after=found[-1].task if found else None)
            found += msgspec.convert(answer.ok["tasks"], list[TaskInfo])
            if not answer.ok["more"]:
                return found

    async def take_escrow(self, task: str) -> None:
        """Takes duplicates of a task's streams into `escrow`: what a new daemon does for each task that lives."""
        await self.call("escrow", task=task, on_answer=lambda answer: self.escrow.hold(Held(task, *answer)))

    async def adopt(self, held: Held) -> None:
        """Hands a task of an earlier keeper to this one, and what clients had attached to it: the first from the first
        byte on. The escrow keeps its duplicates until the task's end is told."""
        attached = list(self._attachments.of(held.task))
        first = attached[0] if attached else None

        def keep(answer: Answer) -> None:  # not after the answer: an end that follows at once has dropped it by then
            self.escrow.held.setdefault(held.task, held)
            if first is not None:
                first.number = int(answer.ok["attachment"])

        fds = held.fds | ({f"attach_{name}": fd for name, fd in first.fds.items()} if first else {})
        attach = {"close_stdin": first.close_stdin} if first else None
        await self._request("adopt", task=held.task, fds=fds, attach=attach, on_answer=keep, **held.fields)
        for other in attached[1:]:
            await self._attach_again(other)

    async def _attach_again(self, attached: Attached) -> None:
        def keep(answer: Answer) -> None:
            attached.number = int(answer.ok["attachment"])

        wish = {"task": attached.task, "close_stdin": attached.close_stdin}
        with suppress(errors.DrupeError):  # its end is told with the rest
            await self._request("attach", fds=attached.fds, timeout_s=DEFAULT_TIMEOUT_S, on_answer=keep, **wish)

    async def forget(self, task: str) -> None:
        """Drops the record of a task that has ended; InvalidState while it lives."""
        await self.call("forget", task=task)
        self.escrow.drop(task)
        self._attachments.forget_task(task)

    async def shutdown(self, *, force: bool = False) -> None:
        """Ends the keeper; InvalidState with live tasks unless `force`. `on_lost` is not called."""
        await self.call("shutdown", force=force)
        self.close()
        self.escrow.close()


def _call_all(callbacks: Sequence[Callable[..., None]], *arguments: Any) -> None:
    """Calls each; one that raises does not keep the rest (nor the reader of the socket) from going on."""
    for callback in callbacks:
        try:
            callback(*arguments)
        except Exception as error:
            context = {"message": "a keeper callback failed", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)


def _raise_failed(program: str, result: RunResult, timeout_s: float) -> NoReturn:
    output = "\n".join(text.strip() for text in (result.stderr, result.stdout) if text.strip())
    if result.timed_out:
        raise errors.DeadlineExceeded(f"{program} took longer than {timeout_s} s", cause=output, may_have_run=True)
    how = f"was killed by signal {result.signal}" if result.signal else f"exited with {result.exit}"
    raise errors.HelperFailed(f"{program} {how}", cause=output, may_have_run=True)
