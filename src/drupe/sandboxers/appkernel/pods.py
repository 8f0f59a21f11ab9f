"""The kernels that are there: how each is started, reached and ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from drupe.errors import DrupeError, InvalidState, NotFound, Unavailable
from drupe.keeper.client import Keeper
from drupe.keeper.records import Io, LogFile
from drupe.keeper.start import mounts_root
from drupe.linux.unix_sockets import listening
from drupe.resources.cgroups import Cgroups
from drupe.sandboxers.appkernel.bounds import bounded
from drupe.sandboxers.appkernel.line import SOCKET, Event, KernelLine
from drupe.sandboxers.appkernel.platforms import PlatformChoice
from drupe.sandboxers.appkernel.records import PodRecord
from drupe.sandboxers.appkernel.share import Share
from drupe.sandboxers.gvisor.command import entering
from drupe.sandboxers.kept.dropping import drop_task
from drupe.spec.resources import Resources

_LOG_BYTES = 1 << 20
_FIRST_UID, _UIDS = 1_900_000_000, 50_000_000  # pairs of users that no account of a host has
_STARTS_WITHIN_S = 30.0


@dataclass(slots=True)
class KernelPod:
    """One pod, in memory. ending: its end is our own work. pid: of its kernel."""

    record: PodRecord
    line: KernelLine
    share: Share
    pid: int = 0
    ending: bool = False
    starting: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def runs(self) -> bool:
        return self.pid > 0 and not self.record.failed

    @property
    def frozen(self) -> bool:
        """Whether it stands still: then its kernel does not answer."""
        return bool(self.record.paused)

    def require(self) -> KernelLine:
        """The line to the kernel that runs. Unavailable says why there is none, InvalidState that it is paused."""
        if self.record.failed:
            raise Unavailable(f"the kernel of the pod is lost: {self.record.failed}", stage="kernel")
        if self.pid == 0:
            raise Unavailable("the kernel of the pod does not run", stage="kernel")
        if self.frozen:
            raise InvalidState("the kernel of the pod is paused", stage="kernel", hint="drupe unpause")
        return self.line


class Pods:
    """By the pods' ids. on_exit: told each end of a task, with its pod."""

    def __init__(self, *, keeper: Keeper, cgroups: Cgroups, program: Path, platform: PlatformChoice) -> None:
        self.keeper = keeper
        self.cgroups = cgroups
        self._program = program
        self._platform = platform
        self._pods: dict[str, KernelPod] = {}
        self.on_exit: Callable[[KernelPod, Event], None] = lambda pod, event: None
        self.on_ready: Callable[[KernelPod], None] = lambda pod: None
        self.on_end: Callable[[KernelPod], None] = lambda pod: None

    def __iter__(self) -> Iterator[KernelPod]:
        return iter(list(self._pods.values()))

    def add(self, record: PodRecord) -> KernelPod:
        """Know a pod, and write it down."""
        record.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        record.save()
        return self._know(record)

    def load(self, directory: Path) -> KernelPod | None:
        """Know a pod of an earlier daemon."""
        record = PodRecord.read(directory / "appkernel" / "pod.json")
        return None if record is None else self._know(record)

    def _know(self, record: PodRecord) -> KernelPod:
        line = KernelLine(record.home, lambda event: self.on_exit(pod, event))
        pod = self._pods[record.id] = KernelPod(record, line, Share(self.keeper, record.home / "share"))
        return pod

    def get(self, pod_id: str) -> KernelPod:
        """NotFound for one that is not here."""
        try:
            return self._pods[pod_id]
        except KeyError:
            raise NotFound(f"sandbox {pod_id} is not here") from None

    def find(self, pod_id: str) -> KernelPod | None:
        return self._pods.get(pod_id)

    def forget(self, pod: KernelPod) -> None:
        """Remove all that was written about it. Idempotent."""
        self._pods.pop(pod.record.id, None)
        shutil.rmtree(pod.record.home, ignore_errors=True)

    # -- start and end ----------------------------------------------------------------------------------------------

    async def start(self, pod: KernelPod) -> None:
        """Start its kernel in its cgroup, which is there, once. On failure nothing is left running."""
        async with pod.starting:
            if pod.pid:
                return
            pod.record.started, pod.record.failed = True, ""
            pod.record.save()
            try:
                pod.pid = await self._launch(pod)
                await pod.line.connect()
                if pod.record.tasks or pod.record.memory_bytes:
                    await self.limit(pod)
                self.on_ready(pod)
            except BaseException as error:
                if isinstance(error, DrupeError) and not error.cause:
                    error.cause = last_words(pod.record.home)
                await self.end(pod)
                raise

    async def _launch(self, pod: KernelPod) -> int:
        """Its control socket listens before it starts: nobody waits for it to appear."""
        record = pod.record
        pidfile = record.home / "kernel.pid"
        with contextlib.ExitStack() as opened:
            fds = {"control": opened.enter_context(listening(record.home / SOCKET, socket.SOCK_SEQPACKET)).fileno()}
            words = [str(self._program), "serve", "--control", "3", "--share", str(pod.share.root)]
            words += ["--pidfile", str(pidfile), "--uid", str(uid_of(record.id)), "--hostname", record.hostname]
            words += ["--platform", await self._platform.name()]
            if record.netns:
                fds["netns"] = self._open_netns(record.netns)
                opened.callback(os.close, fds["netns"])
                words += ["--netns", "4"]
            join = self.cgroups.join_files(record.leaf)
            created = await self.keeper.create_task(
                record.key,
                words if join else entering(self.cgroups.procs_file(record.leaf), words),
                pidfile=pidfile,
                exit_file=pidfile.with_suffix(".exit"),
                io=Io(mode="pipes"),
                log=LogFile(path=str(record.home / "kernel.log"), max_bytes=_LOG_BYTES, max_files=2),
                fds=fds,
                extra_fds=tuple(fds),
                join=join,
                cwd=record.home,
                timeout_s=_STARTS_WITHIN_S,
            )
        return created.pid

    def _open_netns(self, path: str) -> int:
        """As the keeper sees it, which has pinned it."""
        seen = path if path.startswith("/proc/") else f"{mounts_root(self.keeper)}{path}"
        return os.open(seen, os.O_RDONLY | os.O_CLOEXEC)

    async def take_over(self, pod: KernelPod, pid: int) -> None:
        """Go on with a kernel that runs. Raises what keeps it from being reached."""
        pod.pid = pid
        await pod.line.connect()
        self.on_ready(pod)

    async def limit(self, pod: KernelPod) -> None:
        """Tell a kernel that runs what all that it runs may have."""
        await pod.line.call("limits", tasks=pod.record.tasks, memory_bytes=pod.record.shown_memory_bytes)

    async def kill(self, pod: KernelPod) -> None:
        """End the kernel and all that it runs, as if it had been killed from outside."""
        await asyncio.to_thread(self.cgroups.kill_all, pod.record.leaf, 9)
        self._note_pause(pod, "")

    async def freeze(self, pod: KernelPod, cgroup: str) -> None:
        """Stop the kernel and all that it runs, by this cgroup. Written down first: another daemon must know why such a
        kernel does not answer."""
        self._note_pause(pod, cgroup)
        try:
            await asyncio.to_thread(self.cgroups.freeze, cgroup)
        except BaseException:
            self._note_pause(pod, "")
            raise

    async def thaw(self, pod: KernelPod, *cgroups: str) -> None:
        for cgroup in cgroups:
            await asyncio.to_thread(self.cgroups.thaw, cgroup)
        self._note_pause(pod, "")

    def _note_pause(self, pod: KernelPod, cgroup: str) -> None:
        pod.record.paused = cgroup
        with contextlib.suppress(OSError):
            pod.record.save()

    async def end(self, pod: KernelPod) -> None:
        """Kill the kernel and all that it runs, whatever state they are in, and let go. Idempotent."""
        pod.ending = True
        self.on_end(pod)
        pod.line.close()
        leaf = pod.record.leaf
        if self.cgroups.exists(leaf):
            await asyncio.to_thread(self.cgroups.kill_all, leaf, 9)
        await drop_task(self.keeper, pod.record.key)
        if not pod.record.sole and self.cgroups.exists(leaf):
            await asyncio.to_thread(self.cgroups.delete, leaf)
        (pod.record.home / SOCKET).unlink(missing_ok=True)
        pod.pid, pod.record.paused, pod.ending = 0, "", False
        if pod.record.started:
            pod.record.started = False
            with contextlib.suppress(OSError):
                pod.record.save()

    def make_leaf(self, pod: KernelPod) -> None:
        """The cgroup of a pod of several containers."""
        if not pod.record.sole:
            self.cgroups.create(pod.record.leaf, bounded(self.cgroups, Resources()))


def uid_of(pod_id: str) -> int:
    """The host's user that a pod's kernel runs as; the next number is that of its stubs."""
    return _FIRST_UID + 2 * (zlib.crc32(pod_id.encode()) % _UIDS)


def last_words(home: Path) -> str:
    """What a kernel that did not start said last."""
    with contextlib.suppress(OSError, IndexError):
        line = (home / "kernel.log").read_text(errors="replace").splitlines()[-1]
        return line.split(" ", 3)[-1]
    return ""
