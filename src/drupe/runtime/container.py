"""A container's life: made in steps, started, watched to its end, started again, deleted.

Locks: calls that change a container run under its pod's lock (`Pod.lock`), except kill, exec, attach, resize and reads,
which must work while a stop waits for its grace. `ended` is called by the event loop at any time and only sets state.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import msgspec

from drupe.errors import DeadlineExceeded, DrupeError, InvalidState, NotFound, Unsupported, from_os_error
from drupe.oci.signals import parse_signal
from drupe.runtime.alarm import Alarm
from drupe.runtime.execs import Execs
from drupe.runtime.memorydirs import memory_dirs
from drupe.runtime.steps import Step, do_all, undo_all
from drupe.sandboxers.capabilities import needed_by_update
from drupe.sandboxers.contract import Attachment, TaskConfig, TaskService
from drupe.spec.base import plain
from drupe.spec.container import IDLE, ContainerSpec, LogSpec
from drupe.spec.resources import Resources, merged
from drupe.spec.status import KILLED, ContainerStatus, ExitStatus, ProcessInfo, Stats
from drupe.state.machine import State, check_move, require

if TYPE_CHECKING:
    from drupe.runtime.node import Node
    from drupe.runtime.pod import Pod

KILL_DEADLINE_S = 10.0


class Container:
    """One container of a pod. `status` is the record that callers see; `state` is its state as an enum."""

    def __init__(self, node: Node, pod: Pod, *, id_: str, name: str, spec: ContainerSpec) -> None:
        self.node = node
        self.pod = pod
        self.id = id_
        self.name = name
        self.spec = spec
        self.state = State.CREATING
        self.status = ContainerStatus(
            id=id_,
            name=name,
            pod=pod.id,
            state=self.state,
            image=spec.image,
            tty=spec.tty,
            labels=dict(spec.labels),
            annotations=dict(spec.annotations),
            created_at=time.time(),
        )
        self.execs = Execs(self)
        self.oci: dict[str, Any] = {}
        self.stopping = False  # asked to stop: no restart policy applies
        self.restart_at = 0.0  # when a restart is due; 0: none
        self.keep_volumes = False  # at deletion: leave anonymous volumes
        self.timed_out = False  # its pod's time limit ended it
        self.window = (0, 0)  # rows and columns of its terminal, at this start and the next; 0: not known
        self.attachment: Attachment | None = None  # that of whoever started it last
        self.first_fds: Mapping[str, int] = {}  # those that its first start will be given
        self.trees: Mapping[str, int] = {}  # while it is made: mounts that came along with its bundle, by their place
        self.alarm: Alarm | None = None  # tells of memory running out, where there is a limit
        self._starting = False
        self._unmaking = False
        self._early_exit: ExitStatus | None = None
        self._waiters: list[asyncio.Future[ExitStatus]] = []

    # -- where things are ---------------------------------------------------------------------------------------

    @property
    def what(self) -> str:
        return f"container {self.name}"

    @cached_property
    def bundle(self) -> Path:
        return self.node.paths.bundle(self.pod.id, self.id)

    @property
    def cgroup(self) -> str:
        own = self.spec.bundle.cgroup if self.spec.bundle is not None else ""
        return own or f"{self.pod.cgroup}/{self.id}"

    @property
    def tasks(self) -> TaskService:
        return self.pod.sandboxer.tasks()

    @property
    def runs_modules(self) -> bool:
        """Whether its programs are WebAssembly modules."""
        return self.pod.sandboxer.runs_modules

    @property
    def is_live(self) -> bool:
        """Whether its process exists."""
        return self.state in (State.RUNNING, State.PAUSED)

    @property
    def stop_signal(self) -> int:
        """What asks it to end. An idle process has nothing to save."""
        return 9 if self.spec.annotations.get(IDLE) == "true" else parse_signal(self.spec.stop_signal or "TERM")

    # -- life ---------------------------------------------------------------------------------------------------

    def steps(self) -> list[Step]:
        """How it is made and unmade, in order."""
        storage = self.node.storage
        return [
            Step("files", self._make_files, self._remove_files),
            Step("rootfs", lambda: storage.mount_rootfs(self), lambda: storage.umount_rootfs(self)),
            Step("volumes", lambda: storage.attach_volumes(self), lambda: storage.detach_volumes(self)),
            Step("task", self._create_task, self.unmake_task),
        ]

    async def create(self) -> None:
        """Make everything but run nothing. On failure all is undone and the journal row removed."""
        self.save()
        try:
            await do_all(self.steps(), advance=self._advance, timings_ms=self.pod.status.timings_ms)
        except BaseException:
            self.node.journal.remove("container", self.id)
            raise
        self.set_state(State.READY)
        self._event("create", image=self.spec.image)

    async def start(self, fds: Mapping[str, int] | None = None) -> None:
        """Run the workload; `fds` are attached first. Raises InvalidState, NotFound (program), PermissionDenied."""
        require(self.pod.what, self.pod.state, State.RUNNING, to=f"start {self.what}")
        check_move(self.what, self.state, State.RUNNING)
        require(self.what, self.state, State.READY, State.STOPPED, to="start it")
        self.stopping = False
        self.restart_at = 0.0
        try:
            await self._start(fds)
        except (DrupeError, OSError) as failure:
            error = failure if isinstance(failure, DrupeError) else from_os_error(failure)
            await self._failed(error)
            raise error from None
        finally:
            self._starting = False
        self._started()

    async def _start(self, fds: Mapping[str, int] | None) -> None:
        if self.state is State.STOPPED:
            await self._create_again()
        self._advance("starting")
        self._starting = True
        self.attachment = None
        if fds:
            self.attachment = await self.tasks.attach(self.id, fds, keep_stdin=self.spec.tty)
        if self.spec.tty and all(self.window):
            await self.tasks.resize(self.id, *self.window)
        self._make_alarm()
        try:
            self.status.pid = await self.tasks.start(self.id) or self.status.pid
        finally:
            if self.tasks.binds_until == "start":
                await self.node.storage.release_binds(self)

    async def stop(self, *, timeout_s: float | None = None, force: bool = False) -> None:
        """Signal, wait for the grace, kill. No-op when it has ended. DeadlineExceeded if it cannot be killed."""
        if self.state in (State.STOPPED, State.FAILED, State.DELETED):
            self._want_stopped()
            return
        self.stopping = True
        self.restart_at = 0.0
        self._advance("stopping")
        if self.state is State.READY:
            await self.unmake_task()
            self.set_state(State.STOPPED)
            return
        if self.state is State.PAUSED:
            await self.tasks.resume(self.id)
        grace_s = self.spec.stop_grace_s if timeout_s is None else timeout_s
        if not force and grace_s > 0 and await self._ends_by(self.stop_signal, grace_s):
            return
        if not await self._ends_by(9, KILL_DEADLINE_S, everything=True):
            raise DeadlineExceeded(f"{self.what} does not die", stage="stop", hint="it may hang in the kernel")

    async def kill(self, signal: str, *, everything: bool = False) -> None:
        """Send a signal by name or number. Allowed while ready or running, as in virtcontainers."""
        number = parse_signal(signal)
        require(self.what, self.state, State.RUNNING, State.READY, State.PAUSED, to="kill it")
        if number != 9 or self.pod.others_live(self):
            self.require_pod_awake("kill it")
        if number == 9 or self.state is State.READY:
            self._want_stopped()
        self._event("kill", signal=str(number))  # before the end that it may bring about
        try:
            await self.tasks.kill(self.id, number, everything=everything)
        except NotFound:
            raise InvalidState(f"{self.what} has just ended") from None
        if number == 9 and self.state is State.PAUSED:  # a frozen process dies only once thawed
            await self.pod.thaw_for(self)

    def check_allowed(self, doing: str, features: set[str]) -> None:
        """As `Pod.check_allowed`."""
        self.pod.check_allowed(f"{doing} {self.what}", features)

    def check_seen(self, path: str) -> None:
        """Raise Unsupported for a path whose file only the sandbox sees: another one would be read or written."""
        wanted = PurePosixPath("/", path)
        for place in self.tasks.hidden(self.id) if self.is_live else ():
            if wanted.is_relative_to(place):
                raise Unsupported(
                    f"{path} cannot be reached from outside: {place} is in the memory of {self.what}'s sandbox",
                    kind=self.pod.kind,
                    feature="files",
                    hint="use exec, or a volume at that place",
                )

    async def pause(self) -> None:
        check_move(self.what, self.state, State.PAUSED)
        self.check_allowed("a pause of", {"pause"})
        self._advance("pausing")
        await self.tasks.pause(self.id)
        if not self.moved(State.RUNNING, State.PAUSED):
            raise InvalidState(f"{self.what} has just ended")
        self._event("pause")

    async def resume(self) -> None:
        require(self.what, self.state, State.PAUSED, to="resume it")
        self._advance("resuming")
        await self.tasks.resume(self.id)
        if self.moved(State.PAUSED, State.RUNNING):
            self._event("unpause")

    async def update(self, resources: Resources) -> None:
        """Change limits, verified; they also hold for the next start."""
        require(self.what, self.state, State.READY, State.RUNNING, State.PAUSED, State.STOPPED, to="update it")
        self.check_allowed("an update of", needed_by_update(resources))
        self.node.cgroups.check(resources)
        self.status.notes = []
        if self.state is not State.STOPPED:
            self.status.notes = list(await self.tasks.update(self.id, resources) or ())
        self.spec = msgspec.structs.replace(self.spec, resources=merged(self.spec.resources, resources))
        self.save()
        self._event("update")

    async def stats(self) -> Stats:
        """Counters now; network counters are the pod's. Zeros for one that does not run."""
        if not self.is_live:
            return Stats(at=time.time())
        stats = await self.tasks.stats(self.id)
        return await self.pod.with_network(stats)

    async def processes(self) -> list[ProcessInfo]:
        """What runs in it, as the host sees it."""
        self.check_allowed("a process list of", {"processes"})
        return await self.tasks.processes(self.id)

    async def delete(self) -> list[str]:
        """Undo every step. The state must allow it (`require_deletable`). Returns what could not be undone: it is then
        kept as failed, to be deleted again."""
        self.stopping = True
        self.restart_at = 0.0
        self._advance("deleting")
        self.execs.forget_all()
        notes = await undo_all(self.steps())
        if notes:
            self.status.cause = "; ".join(notes)
            self.set_state(State.FAILED, phase="deleting")
            return notes
        self.set_state(State.DELETED, save=False)
        self.node.journal.remove("container", self.id)
        if self.status.exit is not None:
            self.node.keep_end(self.id, self.status.exit)
        self._wake(self.status.exit or ExitStatus(code=0, at=time.time(), reason="Deleted"))
        self._event("destroy")
        return []

    def require_pod_awake(self, to: str) -> None:
        """Raise InvalidState while its pod is paused, if it has a process: that can neither act nor end."""
        if self.pod.state is State.PAUSED and (self.is_live or self.state is State.READY):
            raise InvalidState(f"cannot {to}: {self.pod.what} is paused", hint="resume it first")

    def require_deletable(self) -> None:
        """Raise InvalidTransition unless it is ready, stopped or failed."""
        if self.is_live:
            check_move(self.what, State.RUNNING, State.DELETED)

    async def wait(self, condition: str = "stopped") -> ExitStatus:
        """The end of the current (or, when it has ended, the last) run; "removed" waits for its deletion."""
        if condition == "stopped" and self.state in (State.STOPPED, State.FAILED, State.DELETED) and self.status.exit:
            return self.status.exit
        while True:
            waiter: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            status = await waiter
            if condition == "stopped" or self.state is State.DELETED:
                return status

    # -- what happens to it -------------------------------------------------------------------------------------

    def ended(self, exit_: ExitStatus) -> None:
        """Its first process ended. Called by the event loop; a loss, an OOM kill and an exit all come here."""
        if self._starting:
            self._early_exit = exit_
            return
        if self._unmaking or not (self.is_live or self.state is State.READY):
            return
        if self.timed_out and exit_.code == KILLED:
            exit_.reason, exit_.message = "Timeout", f"the pod's time limit of {self.pod.spec.timeout_s:g} s passed"
        self.status.exit = exit_
        self.status.finished_at = exit_.at
        self.status.pid = 0
        self.set_state(State.STOPPED)
        if exit_.oom_kills and self.alarm is None:
            self._event("oom", kills=str(exit_.oom_kills))
        self._stop_alarm()
        self._event("die", exit_code=str(exit_.code), signal=str(exit_.signal), reason=exit_.reason)
        self._wake(exit_)
        self.pod.container_ended(self)

    def set_state(self, state: State, *, save: bool = True, phase: str = "") -> None:
        self.state = state
        self.status.state = state
        if save:
            self.save(phase)

    def moved(self, old: State, new: State) -> bool:
        """Enter `new` if it is still `old`: it may have ended while it was being frozen or thawed."""
        if self.state is not old:
            return False
        self.set_state(new)
        return True

    def rename(self, name: str) -> None:
        """The caller has seen to it that the name is free in its pod."""
        old = self.name
        self.spec = msgspec.structs.replace(self.spec, name=name)
        self.name = self.status.name = name
        self.save(self.status.phase)
        self._event("rename", old_name=old)

    def save(self, phase: str = "") -> None:
        self.status.phase = phase
        data = {"spec": plain(without_secrets(self.spec)), "status": plain(self.status)}
        data["stopping"] = self.stopping
        self.node.journal.put("container", self.id, state=self.state, phase=phase, data=data)

    # -- steps --------------------------------------------------------------------------------------------------

    async def _make_files(self) -> None:
        self.pod.make_directory(self.bundle)
        layer = self.node.paths.layer(self.id)
        layer.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.spec.log.driver != "none":
            self.status.log_path = self.spec.log.path or str(layer / "log")

    async def _remove_files(self) -> None:
        await self.node.storage.remove_tree(self.bundle)
        await self.node.storage.remove_tree(self.node.paths.layer(self.id))

    async def _create_task(self) -> None:
        self.oci = await self.node.storage.bundle_config(self)
        log = self.spec.log
        task = TaskConfig(
            id=self.id,
            sandbox=self.pod.id,
            oci=self.oci,
            bundle=self.bundle,
            cgroup=self.cgroup,
            tty=self.spec.tty,
            stdin=self.spec.stdin,
            log=None if log.driver == "none" else _with_path(log, self.status.log_path),
            exit_file=self.bundle / "exit.json",
            resources=self.spec.resources,
            fds=self.first_fds,
            memory=memory_dirs(self.bundle, self.spec),
            restores=self.spec.bundle is not None and bool(self.spec.bundle.checkpoint),
            **self.node.storage.made_of(self),
            image=await self.node.storage.image_file(self) if self.pod.sandboxer.wants_image else None,
        )
        self.first_fds = {}
        try:
            self.status.pid = await self.tasks.create(task)
        finally:
            if self.tasks.binds_until == "create":
                await self.node.storage.release_binds(self)
        self.status.argv = list(self.oci["process"]["args"])

    async def unmake_task(self) -> None:
        """Kill what lives of it and forget its end. Idempotent."""
        self._unmaking = True  # its death is our own work, and no event
        try:
            await self.tasks.delete(self.id)
        finally:
            self._unmaking = False
        (self.bundle / "exit.json").unlink(missing_ok=True)

    async def _create_again(self) -> None:
        """A stopped container gets a fresh task on its old root and volumes."""
        await self.unmake_task()
        await self._make_files()
        await self.node.storage.mount_rootfs(self)
        self._advance("task")
        await self._create_task()

    def watch_memory(self) -> None:
        """Have OOM kills and memory pressure told as events while it runs, if it has a memory limit."""
        self._make_alarm()
        if self.alarm is not None:
            self.alarm.listen()

    def _make_alarm(self) -> None:
        if self.spec.resources.memory_bytes is not None and self.alarm is None:
            with contextlib.suppress(DrupeError, OSError):
                self.alarm = Alarm(self.node.cgroups, self.cgroup, self._event)

    def _stop_alarm(self) -> None:
        if self.alarm is not None:
            self.alarm.close()
            self.alarm = None

    def _started(self) -> None:
        self.watch_memory()
        self.status.started_at = time.time()
        self.status.exit = None
        self.status.cause = ""
        self.set_state(State.RUNNING)
        self._event("start")
        self.pod.container_started(self)
        early, self._early_exit = self._early_exit, None
        if early is not None:
            self.ended(early)

    async def _failed(self, error: DrupeError) -> None:
        """A start that failed leaves an object one can inspect and delete."""
        self._early_exit = None
        self._stop_alarm()
        with contextlib.suppress(DrupeError):
            await self.unmake_task()
        code = int(error.details.get("exit_code", "128"))
        self.status.exit = ExitStatus(code=code, at=time.time(), reason="StartError", message=str(error))
        self.status.pid = 0
        self.status.cause = str(error)
        self.set_state(State.FAILED)
        self._wake(self.status.exit)
        self._event("die", exit_code=str(code), reason="StartError")

    def _want_stopped(self) -> None:
        """From now on no policy starts it again, after a restart of the daemon neither."""
        self.restart_at = 0.0
        if not self.stopping:
            self.stopping = True
            self.save(self.status.phase)

    async def _ends_by(self, signal: int, deadline_s: float, *, everything: bool = False) -> bool:
        waiter = asyncio.ensure_future(self.wait())
        # it ended meanwhile: its exit event is on the way; or its sandbox hangs: SIGKILL does not ask that
        with contextlib.suppress(NotFound, DeadlineExceeded):
            await self.tasks.kill(self.id, signal, everything=everything)
        done, _ = await asyncio.wait({waiter}, timeout=deadline_s)
        waiter.cancel()
        return bool(done) or not self.is_live

    def _wake(self, exit_: ExitStatus) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(exit_)

    def _advance(self, phase: str) -> None:
        self.status.phase = phase
        self.node.journal.advance("container", self.id, phase=phase)

    def _event(self, action: str, **attributes: str) -> None:
        self.node.events.publish("container", action, self.id, name=self.name, pod=self.pod.id, **attributes)


def without_secrets(spec: ContainerSpec) -> ContainerSpec:
    """The spec as it may be written to disk: secrets keep their names and lose their values."""
    if not spec.secrets:
        return spec
    return msgspec.structs.replace(
        spec, secrets=tuple(msgspec.structs.replace(secret, value=b"") for secret in spec.secrets)
    )


def _with_path(log: LogSpec, path: str) -> LogSpec:
    return msgspec.structs.replace(log, path=path)
