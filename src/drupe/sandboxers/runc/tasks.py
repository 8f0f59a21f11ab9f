"""Containers of runc sandboxes: crun makes them, the keeper is their parent, cgroups limit, freeze and count them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from drupe.errors import AlreadyExists, DrupeError, HelperFailed, InvalidState, NotFound, ResourceExhausted
from drupe.keeper.client import Keeper
from drupe.keeper.records import Io
from drupe.oci.programs import no_program, not_executable
from drupe.resources.cgroups import Cgroups
from drupe.resources.limits import apply_verified
from drupe.sandboxers.contract import Attachment, ExecConfig, TaskConfig
from drupe.sandboxers.kept.fifo import release
from drupe.sandboxers.kept.tasks import KeptAttachment, KeptTasks, log_file
from drupe.sandboxers.kept.words import last_message
from drupe.sandboxers.runc import checkpoints
from drupe.sandboxers.runc.checkpoints import Checkpoints, Resuming
from drupe.sandboxers.runc.command import RuntimeCommand
from drupe.sandboxers.runc.entering import process_fields
from drupe.spec.resources import Resources

HELPER_TIMEOUT_S = 30.0
_NO_ROOM = "clone: Resource temporarily unavailable"
_NOT_EXECUTABLE = ("permission denied", "exec format error", "is a directory", "open executable")


class RuncTasks(KeptTasks):
    """See the contract. Holds what could start and end without crun; everything else lives in crun and the keeper."""

    joins_by_pid: ClassVar[bool] = True

    def __init__(self, *, keeper: Keeper, command: RuntimeCommand, cgroups: Cgroups, checkpoints: Checkpoints) -> None:
        super().__init__(keeper=keeper, cgroups=cgroups)
        self._command = command
        self._checkpoints = checkpoints
        self._resuming: dict[str, Resuming] = {}
        self._attached: dict[str, tuple[Mapping[str, int], Attachment]] = {}  # at creation, to whom
        self._plain: set[str] = set()  # made here, by crun, without hooks: no crun is needed to start and delete them

    async def create(self, task: TaskConfig) -> int:
        self.know(task.id, cgroup=task.cgroup, bundle=task.bundle)
        self._ended.discard(task.id)
        join: list[str] = []
        if self._command.program.name == "crun" and not task.oci.get("hooks"):
            self._plain.add(task.id)
            join = self._cgroups.join_files(task.cgroup)
        if join:
            self._cgroups.create(task.cgroup, Resources())
        (task.bundle / "config.json").write_bytes(msgspec.json.encode(task.oci))
        if task.restores:
            self._plain.discard(task.id)
            self._resuming[task.id] = Resuming(task)
            return 0
        try:
            try:
                return await self._make(task, join)
            except HelperFailed as error:
                if not (join and _NO_ROOM in error.cause):
                    raise
            return await self._make(task, [])  # the pod's limit of processes has no room for crun: it works outside
        except HelperFailed as error:
            raise explain(error, task.oci["process"]) from None
        except AlreadyExists:  # whoever has this id is not ours to end
            raise
        except BaseException:
            await self.end_makers({task.id})
            raise

    async def _make(self, task: TaskConfig, join: list[str]) -> int:
        """Have crun create it; join: in its cgroups, which are limited here then."""
        created = await self._keeper.create_task(
            task.id,
            self._command.create(task.id, task.bundle, tty=task.tty, in_cgroup=bool(join)),
            pidfile=task.bundle / "pid",
            io=Io(mode="tty") if task.tty else Io(mode="pipes", stdin=task.stdin),
            log=log_file(task.log),
            exit_file=task.exit_file,
            log_file=task.bundle / "create.log",
            join=join,
            attach=task.fds,
            close_stdin="stdin" in task.fds and not task.tty,
            timeout_s=HELPER_TIMEOUT_S,
        )
        if join:
            self._restrict(task)
        if created.attachment is not None:
            self._attached[task.id] = (task.fds, KeptAttachment(self._keeper, task.id, created.attachment))
        return created.pid

    async def attach(
        self, task_id: str, fds: Mapping[str, int], *, exec_id: str = "", keep_stdin: bool = False
    ) -> Attachment:
        if (resuming := self._resuming.get(task_id)) is not None and not exec_id:
            return resuming.attach(fds, keep_stdin=keep_stdin)
        known, early = self._attached.get(task_id, (None, None))
        if early is not None and known is fds:
            del self._attached[task_id]
            return early
        return await super().attach(task_id, fds, exec_id=exec_id, keep_stdin=keep_stdin)

    async def end_makers(self, task_ids: Set[str]) -> None:
        """End what is at work, unseen by the keeper, on making these."""
        await self._end_makers(partial(self._command.makes, task_ids))

    def _restrict(self, task: TaskConfig) -> None:
        """When crun is done, for it works in the container's cgroup (and device rules that come one by one, first the
        one that denies all, would keep it from opening /dev/null), and before the workload runs."""
        if rules := task.oci["linux"].get("resources", {}).get("devices"):
            self._cgroups.restrict_devices(task.cgroup, rules)
        apply_verified(self._cgroups, task.cgroup, task.resources)

    async def checkpoint(self, task_id: str, path: Path, *, words: Sequence[str] = ()) -> None:
        self._cgroup(task_id)
        await self._checkpoints.write(task_id, path, self._bundle_of[task_id] / "criu", words)

    async def go_on_from(self, task_id: str, path: Path) -> None:
        resuming = self._resuming.get(task_id)
        if resuming is None:
            raise InvalidState(f"container {task_id} was not made to go on from a checkpoint")
        resuming.check()
        await self._checkpoints.take(path, resuming.images)

    async def _go_on(self, resuming: Resuming) -> int:
        """runc makes it and has it go on at once."""
        task = resuming.task
        del self._resuming[task.id]
        try:
            created = await self._keeper.create_task(
                task.id,
                await self._checkpoints.restoring(task.id, task.bundle, resuming.images),
                pidfile=task.bundle / "pid",
                io=Io(mode="pipes", stdin=task.stdin),
                log=log_file(task.log),
                exit_file=task.exit_file,
                log_file=task.bundle / "create.log",
                env=checkpoints.path(),
                hold=True,
                timeout_s=checkpoints.TIMEOUT_S,
            )
            await resuming.join(partial(super().attach, task.id))
            await self._keeper.flow(task.id)
        except HelperFailed as error:
            raise checkpoints.explain(error, resuming.images) from None
        finally:
            resuming.drop()
            await asyncio.to_thread(shutil.rmtree, resuming.images, ignore_errors=True)
        return created.pid

    async def start(self, task_id: str) -> int | None:
        """Where there are no hooks to run, `crun start` does no more than open the fifo that its init waits at."""
        if (resuming := self._resuming.get(task_id)) is not None:
            return await self._go_on(resuming)
        if task_id in self._plain and release(self._command.root / task_id / "exec.fifo"):
            return None
        result = await self._keeper.run(self._command.start(task_id), timeout_s=HELPER_TIMEOUT_S)
        if result.exit != 0:
            failure = HelperFailed(f"container {task_id} did not start", cause=result.stderr.strip())
            raise explain(failure, _process_of(self._bundle_of.get(task_id)))
        return None

    async def exec(self, config: ExecConfig) -> int:
        key = self._exec_key(config)
        join = self._cgroups.join_files(self._cgroup(config.task))
        start = self._enter if join and self._command.program.name == "crun" else self._have_entered
        try:
            return await start(key, config, join)
        except DrupeError as error:
            self.forget_exec(key)
            raise explain(error, config.process) if isinstance(error, HelperFailed) else error from None

    async def _enter(self, key: str, config: ExecConfig, join: list[str]) -> int:
        """The keeper starts it: also where no further process may be made in the container's cgroup."""
        filter_ = self._command.root / config.task / "seccomp.bpf"
        created = await self._keeper.exec_task(
            key,
            config.task,
            process_fields(config.process),
            io=_exec_io(config),
            exit_file=config.dir / f"exec-{config.id}.exit",
            join=join,
            seccomp=filter_ if filter_.exists() else None,
            fds=None if config.tty else config.fds,
            attach=config.fds if config.tty and config.fds else None,
            timeout_s=HELPER_TIMEOUT_S,
        )
        return created.pid

    async def _have_entered(self, key: str, config: ExecConfig, _: list[str]) -> int:
        """The OCI runtime starts it."""
        base = config.dir / f"exec-{config.id}"
        base.with_suffix(".json").write_bytes(msgspec.json.encode(config.process))
        try:
            created = await self._keeper.create_task(
                key,
                self._command.exec(config.task, base, tty=config.tty),
                pidfile=base.with_suffix(".pid"),
                io=_exec_io(config),
                exit_file=base.with_suffix(".exit"),
                log_file=base.with_suffix(".log"),
                fds=None if config.tty else config.fds,
                attach=config.fds if config.tty and config.fds else None,
                timeout_s=HELPER_TIMEOUT_S,
            )
        finally:
            for suffix in (".json", ".pid", ".log"):
                base.with_suffix(suffix).unlink(missing_ok=True)
        return created.pid

    async def delete(self, task_id: str) -> None:
        """crun delete kills, runs poststop hooks and removes its state; the cgroup and the keeper's record follow. For
        a container that has ended by itself and has no hooks nothing of that needs crun."""
        cgroup = self._cgroup_of.pop(task_id, None)
        bundle = self._bundle_of.pop(task_id, None)
        over = task_id in self._plain and task_id in self._ended
        self._plain.discard(task_id)
        self._attached.pop(task_id, None)
        self._ended.discard(task_id)
        if (resuming := self._resuming.pop(task_id, None)) is not None:
            resuming.drop()
            await asyncio.to_thread(shutil.rmtree, resuming.images, ignore_errors=True)
        if not over:
            await self._delete_living(task_id, cgroup)
        if cgroup is not None:
            await asyncio.to_thread(self._drop_cgroup, cgroup)
        await self._forget(task_id, kill=not over)
        shutil.rmtree(self._command.root / task_id, ignore_errors=True)
        if bundle is not None:
            for name in ("pid", "create.log"):
                (bundle / name).unlink(missing_ok=True)

    async def _delete_living(self, task_id: str, cgroup: str | None) -> None:
        if cgroup is not None:  # a frozen process cannot die
            with contextlib.suppress(DrupeError):
                await asyncio.to_thread(self._cgroups.thaw, cgroup)
        if (self._command.root / task_id).exists():
            await self._keeper.run(self._command.delete(task_id), timeout_s=HELPER_TIMEOUT_S)


def _exec_io(config: ExecConfig) -> Io:
    return Io(mode="tty", rows=config.rows, cols=config.cols) if config.tty else Io(mode="fds")


def _process_of(bundle: Path | None) -> dict[str, Any]:
    if bundle is None:
        return {}
    process: dict[str, Any] = json.loads((bundle / "config.json").read_text())["process"]
    return process


def explain(error: HelperFailed, process: dict[str, Any]) -> DrupeError:
    """Turn the runtime's words into the error a user can act on (exit codes 126 and 127 of Docker derive from it)."""
    text = last_message(error.cause or error.message)
    program = (process.get("args") or ["?"])[0]
    if "executable file" in text and "not found" in text:
        return no_program(program)
    if "No such file or directory" in text and program in text:
        hint = "is it in the image, and what its first line (#!) or its dynamic linker names, too?"
        return NotFound(f"program {program!r} cannot be found", cause=text, hint=hint, exit_code="127")
    if any(words in text.lower() for words in _NOT_EXECUTABLE):
        return not_executable(program, cause=text)
    if "cwd" in text or "chdir" in text:
        return NotFound(f"working directory {process.get('cwd')!r} cannot be entered", cause=text)
    if text.endswith(("is not running", "is paused")):
        return InvalidState("the container has just ended or been paused", cause=text)
    return _refused(text, error.details)


def _refused(text: str, details: dict[str, str]) -> DrupeError:
    if "Too many open files" in text:
        return ResourceExhausted("there is no room for another process", cause=text, hint="raise the limit: ulimit -n")
    refused = HelperFailed("the OCI runtime refused the container", stage="start", cause=text)
    refused.details.update(details)
    return refused
