"""The kernels that are there: how each is started, reached and ended."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from drupe.errors import DrupeError, InvalidState, NotFound, Unavailable
from drupe.resources.cgroups import Cgroups
from drupe.sandboxers.appkernel.bounds import bounded
from drupe.sandboxers.appkernel.kernels import Kernels, Waiting
from drupe.sandboxers.appkernel.line import SOCKET, Event, KernelLine
from drupe.sandboxers.appkernel.records import PodRecord
from drupe.sandboxers.appkernel.share import Share
from drupe.sandboxers.appkernel.spares import Spares
from drupe.sandboxers.kept.dropping import drop_task
from drupe.spec.resources import Resources

_GONE_WITHIN_S = (0.001, 0.002, 0.004, 0.01, 0.02, 0.05, 0.1)  # looks at what ends with its kernel


@dataclass(slots=True)
class KernelPod:
    """One pod, in memory. ending: its end is our own work. over: it has been ended, and nothing was begun since.
    pid: of its kernel. kernel: one that waited and is to be it. begun: a start that nobody waits for yet. saving: its
    kernel writes itself down, and may not answer for long."""

    record: PodRecord
    line: KernelLine
    share: Share
    pid: int = 0
    kernel: Waiting | None = None
    begun: asyncio.Task[None] | None = None
    ending: bool = False
    over: bool = False
    saving: bool = False
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

    def __init__(self, *, kernels: Kernels, spares: Spares, cgroups: Cgroups) -> None:
        self.keeper = kernels.keeper
        self.cgroups = cgroups
        self.spares = spares
        self._kernels = kernels
        self._pods: dict[str, KernelPod] = {}
        self.on_exit: Callable[[KernelPod, Event], None] = lambda pod, event: None
        self.on_ready: Callable[[KernelPod], None] = lambda pod: None
        self.on_end: Callable[[KernelPod], None] = lambda pod: None

    def __iter__(self) -> Iterator[KernelPod]:
        return iter(list(self._pods.values()))

    def add(self, record: PodRecord) -> KernelPod:
        """Know a pod, and write it down. A pod that was stopped keeps its place."""
        if (before := self.find(record.id)) is not None:
            record.place = before.record.place
        record.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        record.save()
        return self._know(record)

    def load(self, directory: Path) -> KernelPod | None:
        """Know a pod of an earlier daemon."""
        record = PodRecord.read(directory / "appkernel" / "pod.json")
        return None if record is None else self._know(record)

    def _know(self, record: PodRecord) -> KernelPod:
        line = KernelLine(record.kernel_home, lambda event: self.on_exit(pod, event))
        pod = self._pods[record.id] = KernelPod(record, line, Share(self.keeper, record.kernel_home / "share"))
        return pod

    def get(self, pod_id: str) -> KernelPod:
        """NotFound for one that is not here."""
        try:
            return self._pods[pod_id]
        except KeyError:
            raise NotFound(f"sandbox {pod_id} is not here") from None

    def of_kernel(self, key: str) -> KernelPod | None:
        """Whose kernel the keeper calls so."""
        return next((pod for pod in self._pods.values() if pod.record.key == key), None)

    def find(self, pod_id: str) -> KernelPod | None:
        return self._pods.get(pod_id)

    def forget(self, pod: KernelPod) -> None:
        """Remove all that was written about it. Idempotent."""
        self._pods.pop(pod.record.id, None)
        shutil.rmtree(pod.record.home, ignore_errors=True)
        shutil.rmtree(pod.record.kernel_home, ignore_errors=True)

    # -- start and end ----------------------------------------------------------------------------------------------

    def begin(self, pod: KernelPod) -> None:
        """Start a kernel that waits for it, ahead of `start`, which does it again where this fails."""
        if pod.kernel is not None:
            pod.begun = asyncio.ensure_future(self.start(pod))
            pod.begun.add_done_callback(lambda begun: begun.cancelled() or begun.exception())

    async def start_again(self, pod: KernelPod) -> None:
        """Start a kernel that is to go on from a snapshot: never one that was made for something else."""
        if pod.pid or pod.begun is not None:
            await self.end(pod)
            if not self.cgroups.exists(pod.record.leaf):
                self.make_leaf(pod)
        await self.start(pod, restores=True)

    async def start(self, pod: KernelPod, *, restores: bool = False) -> None:
        """Start its kernel in its cgroup, which is there, once. On failure nothing is left running."""
        async with pod.starting:
            if pod.pid:
                return
            pod.record.started, pod.record.failed, pod.over = True, "", False
            pod.record.save()
            try:
                pod.pid = await self._run(pod, restores=restores)
                (pod.record.home / "kernel.pid").write_text(str(pod.pid))
                if pod.record.sysctls:
                    await pod.line.call("sysctls", values=pod.record.sysctls)
                if pod.record.tasks or pod.record.memory_bytes:
                    await self.limit(pod)
                self.on_ready(pod)
            except BaseException as error:
                if isinstance(error, DrupeError) and not error.cause:
                    error.cause = last_words(pod.record.kernel_home)
                await self._end(pod)
                raise

    async def _run(self, pod: KernelPod, *, restores: bool) -> int:
        """The kernel that waits for it, or one that is started for it if there is none, it has just ended, or is to go
        on from a snapshot."""
        if pod.kernel is not None:
            if restores:
                pod.kernel.socket.close()
            else:
                with contextlib.suppress(Unavailable):
                    return await self._claim(pod, pod.kernel)
            pod.ending = True
            try:
                await drop_task(self.keeper, pod.record.key)
            finally:
                pod.ending = False
        pod.kernel = await self._kernels.launch(pod.record.kernel_home, pod.record.key, restores=restores)
        return await self._claim(pod, pod.kernel)

    async def _claim(self, pod: KernelPod, kernel: Waiting) -> int:
        pod.kernel = None
        try:
            self._kernels.claim(kernel, pod.record)
            waits = (kernel.answered(), pod.line.connect())
            for result in await asyncio.gather(*waits, return_exceptions=True):
                if result is not None:
                    raise result
        except BaseException:
            pod.line.close()
            raise
        finally:
            kernel.socket.close()
        return kernel.pid

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

    async def go_on(self, pod: KernelPod) -> None:
        """Have a kernel that was written down while its pod was paused go on, now that it is not."""
        if pod.record.rests:
            await pod.require().call("go_on")
            pod.record.rests = False
            pod.record.save()

    def _note_pause(self, pod: KernelPod, cgroup: str) -> None:
        pod.record.paused = cgroup
        with contextlib.suppress(OSError):
            pod.record.save()

    async def end(self, pod: KernelPod) -> None:
        """Kill the kernel and all that it runs, whatever state they are in, and let go. Idempotent."""
        if pod.begun is not None and not pod.begun.done():
            pod.begun.cancel()
            await asyncio.wait([pod.begun])
        await self._end(pod)
        self.spares.arrived(pod.record.id)

    async def _end(self, pod: KernelPod) -> None:
        if pod.over:
            return
        pod.ending = True
        self.on_end(pod)
        pod.line.close()
        if pod.kernel is not None:
            pod.kernel.socket.close()
            pod.kernel = None
        await self._end_processes(pod)
        if not pod.record.sole and self.cgroups.exists(pod.record.leaf):
            await asyncio.to_thread(self.cgroups.delete, pod.record.leaf)
        (pod.record.kernel_home / SOCKET).unlink(missing_ok=True)
        pod.pid, pod.record.paused, pod.record.rests, pod.ending = 0, "", False, False
        if pod.record.started:
            pod.record.started = False
            with contextlib.suppress(OSError):
                pod.record.save()
        pod.over = True

    async def _end_processes(self, pod: KernelPod) -> None:
        """The kernel, with which all ends that it runs. What stands still, or is there after a moment, is killed
        process by process: for that a cgroup is stopped first, which takes its time."""
        leaf = pod.record.leaf
        if pod.frozen and self.cgroups.exists(leaf):
            await asyncio.to_thread(self.cgroups.kill_all, leaf, 9)
        await drop_task(self.keeper, pod.record.key)
        for pause_s in _GONE_WITHIN_S:
            if not self.cgroups.exists(leaf) or not self.cgroups.pids(leaf):
                return
            await asyncio.sleep(pause_s)
        await asyncio.to_thread(self.cgroups.kill_all, leaf, 9)

    def leave(self, pod: KernelPod) -> None:
        """Go away, and leave it to another daemon; what only waited for it ends."""
        if pod.begun is not None:
            pod.begun.cancel()
        if pod.kernel is not None:
            pod.kernel.socket.close()
        pod.line.close()

    def make_leaf(self, pod: KernelPod) -> None:
        """The cgroup of a pod of several containers."""
        if not pod.record.sole:
            pod.over = False
            self.cgroups.create(pod.record.leaf, bounded(self.cgroups, Resources()))


def last_words(home: Path) -> str:
    """What a kernel that did not start said last."""
    with contextlib.suppress(OSError, IndexError):
        line = (home / "kernel.log").read_text(errors="replace").splitlines()[-1]
        return line.split(" ", 3)[-1]
    return ""
