"""Containers of Wasm sandboxes: each process is a child of the zygote, and the keeper holds it as any other task."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from drupe.errors import AlreadyExists, DrupeError, InvalidState, NotFound, Unavailable
from drupe.keeper.client import Keeper
from drupe.keeper.escrow import Held
from drupe.keeper.start import mounts_root
from drupe.resources.cgroups import Cgroups
from drupe.resources.limits import apply_verified
from drupe.sandboxers.contract import ExecConfig, TaskConfig
from drupe.sandboxers.kept.fifo import release
from drupe.sandboxers.kept.tasks import KeptTasks, log_file
from drupe.sandboxers.wasm import settings, streams
from drupe.sandboxers.wasm.cache import Entry
from drupe.sandboxers.wasm.compiler import Compiler
from drupe.sandboxers.wasm.job import Call, Job, Place
from drupe.sandboxers.wasm.launch import Coming, Launcher, has_ended
from drupe.sandboxers.wasm.modules import open_module
from drupe.sandboxers.wasm.place import place_of, place_of_exec
from drupe.sandboxers.wasm.ready import ReadyChildren
from drupe.sandboxers.wasm.zygotes import Zygotes
from drupe.spec.resources import Resources
from drupe.spec.status import ExitStatus

FIFO = "start.fifo"
WORDS = "trap"
ARRIVES_WITHIN_S = 10.0


class WasmTasks(KeptTasks):
    """See the contract. What it holds of a container is its configuration; all else lives in keeper and kernel."""

    def __init__(self, *, keeper: Keeper, cgroups: Cgroups, zygotes: Zygotes, compiler: Compiler, engine: str) -> None:
        super().__init__(keeper=keeper, cgroups=cgroups)
        self._engine = engine
        self._compiler = compiler
        self._launcher = Launcher(keeper, cgroups, zygotes)
        self._ready = ReadyChildren(self._launcher)
        self._coming: dict[str, Coming] = {}  # made here, and not started yet
        self._oci_of: dict[str, dict[str, Any]] = {}
        self._killing: set[asyncio.Future[int]] = set()

    # -- containers -----------------------------------------------------------------------------------------------

    async def create(self, task: TaskConfig) -> int:
        if task.id in self._cgroup_of:
            raise AlreadyExists(f"container {task.id} exists")
        self.know(task.id, cgroup=task.cgroup, bundle=task.bundle)
        self._ended.discard(task.id)
        self._oci_of[task.id] = task.oci
        (task.bundle / "config.json").write_bytes(msgspec.json.encode(task.oci))
        code = await self._code(task.oci, task.oci["process"])
        self._make_cgroup(task.cgroup, task.resources)
        os.mkfifo(task.bundle / FIFO, 0o600)
        made = streams.terminal(None, None) if task.tty else streams.pipes(stdin=task.stdin)
        held = Held(task.id, {"exit_file": str(task.exit_file)})
        if (log := log_file(task.log)) is not None:
            held.fields["log"] = log
        job = self._job(task.oci, task.oci["process"], code, self._launcher.place_in(place_of(task.oci), task.cgroup))
        job = replace(job, fifo=str(task.bundle / FIFO), words=str(task.bundle / WORDS), tty=task.tty)
        coming = await self._launcher.launch(job, made, held, self._engine_of(task.oci))
        self._coming[task.id] = coming
        if job.place.binds:  # their sources are there only while it is made
            await coming.arrived()
        return coming.child.pid

    def _make_cgroup(self, cgroup: str, resources: Resources) -> None:
        """With its limits, read back before anything is in it."""
        self._cgroups.create(cgroup, Resources())
        if resources != Resources():
            apply_verified(self._cgroups, cgroup, resources)

    async def start(self, task_id: str) -> None:
        bundle = self._bundle_of.get(task_id)
        if bundle is None:
            raise NotFound(f"container {task_id} is not here")
        coming = self._coming.pop(task_id, None)
        if coming is not None:
            try:
                await coming.arrived()
            finally:
                coming.close()
        if not await self._released(task_id, bundle / FIFO):
            raise InvalidState(f"container {task_id} does not wait to be started", hint="it runs, or has ended")

    async def _released(self, task_id: str, fifo: Path) -> bool:
        """One that an earlier daemon made may still be on its way there."""
        deadline = time.monotonic() + ARRIVES_WITHIN_S
        while not (there := release(fifo)) and fifo.exists() and task_id not in self._ended:
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.01)
        return there

    def was_started(self, task_id: str) -> bool:
        """Whether it does not wait any more."""
        bundle = self._bundle_of.get(task_id)
        return bundle is None or not (bundle / FIFO).exists()

    async def delete(self, task_id: str) -> None:
        cgroup = self._cgroup_of.pop(task_id, None)
        bundle = self._bundle_of.pop(task_id, None)
        over = task_id in self._ended
        self._ended.discard(task_id)
        self._oci_of.pop(task_id, None)
        self._ready.drop(task_id)
        if (coming := self._coming.pop(task_id, None)) is not None:
            coming.kill()
        if cgroup is not None:
            await asyncio.to_thread(self._drop_all, cgroup)
        await self._forget(task_id, kill=not over)
        if bundle is not None:
            for name in (FIFO, WORDS):
                (bundle / name).unlink(missing_ok=True)

    def _drop_all(self, cgroup: str) -> None:
        if self._cgroups.pids(cgroup):
            with contextlib.suppress(DrupeError):  # a frozen process cannot die
                self._cgroups.thaw(cgroup)
            self._cgroups.kill_all(cgroup, signal.SIGKILL)
        self._cgroups.delete(cgroup)

    # -- execs ----------------------------------------------------------------------------------------------------

    async def exec(self, config: ExecConfig) -> int:
        oci = self._oci(config.task)
        code = await self._code(oci, config.process)
        main = self._main(config.task)
        place = place_of_exec(oci, main.fields["pid"])
        job = self._job(oci, config.process, code, self._launcher.place_in(place, self._cgroup(config.task)))
        job = replace(job, tty=config.tty, hold=True)
        key = self._exec_key(config)
        held = Held(key, {"exit_file": str(config.dir / f"exec-{config.id}.exit")})
        try:
            pid = await self._call(config, job, held, main, self._engine_of(oci))
        except DrupeError:
            self.forget_exec(key)
            await self._launcher.forget(key)
            raise
        if not config.tty:
            self._ready.prepare(config.task, job, self._engine_of(oci))
        return pid

    async def _call(self, config: ExecConfig, job: Job, held: Held, main: Held, engine: str) -> int:
        """In the child that waits for just this, or in a new one."""
        made = streams.terminal(config.rows, config.cols) if config.tty else streams.given(config.fds)
        coming = None if config.tty else self._ready.take(config.task, job)
        if coming is not None:
            return await self._call_ready(coming, job, made, held)
        coming = await self._launcher.launch(job, made, held, engine)
        try:
            await coming.arrived()
            if self._main(config.task).fields["pid"] != main.fields["pid"]:  # it may have joined what has its pid now
                raise InvalidState(f"container {config.task} has just ended")
            if config.tty and config.fds:  # before the first byte
                await self._keeper.attach(held.task, config.fds, close_stdin=False)
            coming.child.begin(b"1")
            return coming.child.pid
        except BaseException:
            coming.kill()
            raise
        finally:
            coming.close()

    async def _call_ready(self, coming: Coming, job: Job, made: streams.Streams, held: Held) -> int:
        try:
            coming.child.begin(msgspec.json.encode(Call(job.argv, job.env)), made.theirs)
            await self._launcher.adopt(coming.child, made, held)
            return coming.child.pid
        except BaseException:
            coming.kill()
            raise
        finally:
            made.close()
            coming.close()

    def _main(self, task_id: str) -> Held:
        held = self._keeper.escrow.held.get(task_id)
        if held is None or has_ended(held.fds["pidfd"]):
            raise InvalidState(f"container {task_id} does not run")
        return held

    # -- what both are --------------------------------------------------------------------------------------------

    async def _code(self, oci: dict[str, Any], process: dict[str, Any]) -> Entry | None:
        """None for the idle process, which runs no module."""
        if self._is_idle(oci, process):
            return None
        annotations = oci.get("annotations", {})
        program = process["args"][0]
        module = self._open(oci, process)
        try:
            engine, fuel = self._engine_of(oci), bool(settings.limits_of(annotations).fuel)
            return await self._compiler.code(module, program, engine=engine, fuel=fuel)
        finally:
            os.close(module)

    def _engine_of(self, oci: dict[str, Any]) -> str:
        return settings.engine_of(oci.get("annotations", {}), self._engine)

    def _is_idle(self, oci: dict[str, Any], process: dict[str, Any]) -> bool:
        return oci.get("annotations", {}).get(settings.IDLE) == "true" and process is oci["process"]

    def _open(self, oci: dict[str, Any], process: dict[str, Any]) -> int:
        env = process.get("env", ())
        path = next((word[5:] for word in env if word.startswith("PATH=")), "")
        root = self._root(oci.get("root", {}).get("path", ""))
        try:
            cwd = process.get("cwd", "/")
            return open_module(root, process["args"][0], path=path, cwd=cwd, own=settings.own_module(oci))
        finally:
            if root >= 0:
                os.close(root)

    def _root(self, directory: str) -> int:
        """-1 for none. Unavailable while the keeper, in whose mounts it is, has died and is replaced."""
        try:
            return os.open(f"{mounts_root(self._keeper)}{directory}", os.O_PATH | os.O_CLOEXEC) if directory else -1
        except OSError as error:
            raise Unavailable("the root of the container cannot be reached now", cause=error.strerror or "") from None

    def _job(self, oci: dict[str, Any], process: dict[str, Any], code: Entry | None, place: Place) -> Job:
        user = process.get("user", {})
        return Job(
            kind="run" if code is not None else "idle",
            fds=streams.NAMES,
            place=place,
            uid=user.get("uid", 0),
            gid=user.get("gid", 0),
            groups=tuple(user.get("additionalGids", ())),
            rlimits=settings.rlimits_of(process),
            oom_score_adj=process.get("oomScoreAdj"),
            umask=settings.umask_of(user),
            name=os.path.basename(process["args"][0]),  # noqa: PTH119 - a guest's path
            form=code.form if code is not None else "",
            code=str(code.directory) if code is not None else "",
            argv=tuple(process["args"]),
            env=tuple(process.get("env", ())),
            network=True,
            limits=settings.limits_of(oci.get("annotations", {})),
        )

    def _oci(self, task_id: str) -> dict[str, Any]:
        if task_id not in self._oci_of:
            bundle = self._bundle_of.get(task_id)
            if bundle is None:
                raise NotFound(f"container {task_id} is not here")
            self._oci_of[task_id] = json.loads((bundle / "config.json").read_text())
        return self._oci_of[task_id]

    async def pids(self, task_id: str) -> list[int]:
        waiting = self._ready.pids(task_id)
        return [pid for pid in await super().pids(task_id) if pid not in waiting]

    def close(self) -> None:
        """Let go of all that only saves time."""
        self._ready.close()
        for coming in self._coming.values():
            coming.close()
        self._coming.clear()

    # -- ends -----------------------------------------------------------------------------------------------------

    def note_end(self, task_id: str) -> None:
        """Without a PID namespace the kernel does not end what ran beside the first process."""
        super().note_end(task_id)
        self._ready.drop(task_id)
        cgroup = self._cgroup_of.get(task_id)
        if cgroup is not None and self._cgroups.pids(cgroup):
            work = asyncio.ensure_future(asyncio.to_thread(self._cgroups.kill_all, cgroup, signal.SIGKILL))
            self._killing.add(work)
            work.add_done_callback(self._killing.discard)

    def mark_oom(self, task_id: str, status: ExitStatus) -> None:
        super().mark_oom(task_id, status)
        bundle = self._bundle_of.get(task_id)
        if status.signal == signal.SIGABRT and bundle is not None:
            status.reason = "Trap"
            with contextlib.suppress(OSError):
                status.message = _words(bundle / WORDS)


def _words(path: Path) -> str:
    """What the child wrote down; its guest may have forged it, so: one short line."""
    text = path.read_bytes()[:1024].decode(errors="replace")
    return "".join(char if char.isprintable() else " " for char in text)
