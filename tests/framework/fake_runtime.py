"""A control handler without a runtime: pods are entries in a table, processes are acted (drupe.sandboxers.fake), files
are real ones below a directory. What the API's tests talk to; the same tests' words work against a real daemon."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from pathlib import Path
from typing import Any

import msgspec

from drupe.errors import AlreadyExists, InvalidState, NotFound
from drupe.oci.signals import parse_signal
from drupe.resources import files
from drupe.rpc.call import Call
from drupe.sandboxers.fake.process import FakeProcess
from drupe.sandboxers.fake.programs import FOREVER_S, PROGRAMS, Program
from drupe.sandboxers.fake.streams import Streams
from drupe.spec import (
    ContainerSpec,
    ContainerStatus,
    Event,
    ExitStatus,
    PodSpec,
    PodStatus,
    ProcessInfo,
    Resources,
    Stats,
)
from drupe.spec.control import (
    ContainerList,
    EventList,
    ExecStarted,
    ImageInfo,
    ImageList,
    LogLine,
    NetworkInfo,
    NetworkList,
    PodList,
    ProcessList,
    Progress,
    Pruned,
    StatsItem,
    StatsList,
    SystemInfo,
    VolumeInfo,
    VolumeList,
)  # fmt: skip


async def _linger(process: FakeProcess, _args: list[str]) -> int:
    """Say something, then never end."""
    await process.print("so far\n")
    await process.sleep(FOREVER_S)
    return 0


PROGRAMS.setdefault("linger", Program(_linger))


class FakeRuntime:
    """`handle` serves calls. calls: names of the methods called so far. fail: method to the error it shall raise."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.calls: list[str] = []
        self.fail: dict[str, Exception] = {}
        self.pods: dict[str, FakePod] = {}
        self.networks: dict[str, NetworkInfo] = {}
        self.volumes: dict[str, VolumeInfo] = {}
        self.events: list[Event] = []
        self.held: list[int] = []

    async def handle(self, call: Call) -> Any:
        self.calls.append(call.method)
        if call.method in self.fail:
            raise self.fail[call.method]
        return await getattr(self, call.method.replace(".", "_"))(call)

    def pod(self, ref: str) -> FakePod:
        for pod in self.pods.values():
            if ref in (pod.id, pod.spec.name):
                return pod
        raise NotFound(f"no pod {ref!r}", what="pod")

    def container(self, ref: str) -> FakeContainer:
        for pod in self.pods.values():
            for container in pod.containers:
                if ref in (container.id, container.spec.name):
                    return container
        raise NotFound(f"no container {ref!r}", what="container")

    # pods

    async def pod_create(self, call: Call) -> PodStatus:
        spec: PodSpec = call.params.spec
        if any(spec.name and pod.spec.name == spec.name for pod in self.pods.values()):
            raise AlreadyExists(f"pod {spec.name!r} exists")
        pod = FakePod(self, spec)
        self.pods[pod.id] = pod
        self.tell("pod", "create", pod.id)
        return pod.status()

    async def pod_run(self, call: Call) -> PodStatus:
        status = await self.pod_create(call)
        if call.fds:
            self.pods[status.id].containers[0].streams.attach(call.fds)
            call.close()
        self.pods[status.id].start()
        return self.pods[status.id].status()

    async def pod_start(self, call: Call) -> PodStatus:
        return self.pod(call.params.ref).start()

    async def pod_stop(self, call: Call) -> PodStatus:
        return self.pod(call.params.ref).stop()

    async def pod_pause(self, call: Call) -> PodStatus:
        return self.pod(call.params.ref).move("paused")

    async def pod_resume(self, call: Call) -> PodStatus:
        return self.pod(call.params.ref).move("running")

    async def pod_status(self, call: Call) -> PodStatus:
        return self.pod(call.params.ref).status()

    async def pod_update(self, call: Call) -> PodStatus:
        return self.pod(call.params.ref).status()

    async def pod_list(self, call: Call) -> PodList:
        wanted = set(call.params.labels)
        return PodList(pods=[p.status() for p in self.pods.values() if wanted <= p.spec.labels.keys()])

    async def pod_delete(self, call: Call) -> None:
        pod = self.pod(call.params.ref)
        if not call.params.force and pod.state == "running":
            raise InvalidState(f"pod {pod.id} runs", hint="force stops it first")
        pod.stop()
        while self.held:
            os.close(self.held.pop())
        del self.pods[pod.id]
        self.tell("pod", "destroy", pod.id)

    async def pod_wait(self, call: Call) -> ExitStatus:
        return await self.pod(call.params.ref).containers[0].main_end()

    async def pod_stats(self, call: Call) -> Stats:
        return Stats(at=1.0, pids=len(self.pod(call.params.ref).containers))

    # containers

    async def container_create(self, call: Call) -> ContainerStatus:
        pod = self.pod(call.params.pod)
        pod.containers.append(FakeContainer(pod, call.params.spec))
        return pod.containers[-1].status()

    async def container_start(self, call: Call) -> ContainerStatus:
        container = self.container(call.params.ref)
        if call.fds:
            container.streams.attach(call.fds)
            call.close()
        return container.start()

    async def container_stop(self, call: Call) -> ContainerStatus:
        return self.container(call.params.ref).stop()

    async def container_kill(self, call: Call) -> None:
        self.container(call.params.ref).signal(parse_signal(call.params.signal))

    async def container_pause(self, call: Call) -> ContainerStatus:
        return self.container(call.params.ref).move("paused")

    async def container_resume(self, call: Call) -> ContainerStatus:
        return self.container(call.params.ref).move("running")

    async def container_status(self, call: Call) -> ContainerStatus:
        return self.container(call.params.ref).status()

    async def container_list(self, call: Call) -> ContainerList:
        return ContainerList(containers=[c.status() for p in self.pods.values() for c in p.containers])

    async def container_delete(self, call: Call) -> None:
        container = self.container(call.params.ref)
        container.pod.containers.remove(container)

    async def container_wait(self, call: Call) -> ExitStatus:
        return await self.container(call.params.ref).main_end()

    async def container_update(self, call: Call) -> ContainerStatus:
        container = self.container(call.params.ref)
        container.resources = call.params.resources
        return container.status()

    async def container_processes(self, call: Call) -> ProcessList:
        return ProcessList(processes=self.container(call.params.ref).processes())

    async def container_inspect(self, call: Call) -> Any:
        return {"resources": msgspec.to_builtins(self.container(call.params.ref).resources)}

    async def container_logs(self, call: Call) -> None:
        for number in range(3):
            await call.send_item(LogLine(at=float(number), stream="stdout", data=f"line {number}\n".encode()))
        if call.params.follow:
            await self.container(call.params.ref).main_end()

    async def container_stats(self, call: Call) -> StatsList:
        item = StatsItem(id=call.params.refs[0], name="n", pod="p", stats=Stats(at=1.0, pids=1))
        while call.params.stream:
            await call.send_item(item)
        return StatsList(items=[item])

    async def container_attach(self, call: Call) -> ExitStatus:
        container = self.container(call.params.ref)
        container.streams.attach(call.fds)
        call.close()
        return await container.main_end()

    async def container_resize(self, call: Call) -> None:
        container = self.container(call.params.ref)
        process = container.execs.get(call.params.exec_id, container.main)
        if process is not None:
            process.size = (call.params.rows, call.params.cols)

    async def container_close_stdin(self, call: Call) -> None:
        self.container(call.params.ref).streams.close_input()

    # execs

    async def exec_start(self, call: Call) -> ExitStatus:
        container = self.container(call.params.ref)
        if container.state != "running":
            raise InvalidState(f"container {container.id} is {container.state}, not running")
        spec = call.params.spec
        if spec.argv[0] == "holder":
            return await self._hold(call)
        if spec.argv[0] not in PROGRAMS:
            raise NotFound(f"no program {spec.argv[0]!r} in the container", what="program")
        ended: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        streams = Streams(stdin="stdin" in call.fds, tty=spec.tty)
        streams.attach(call.fds)
        call.close()
        env = dict(word.split("=", 1) for word in (*container.spec.env, *spec.env))
        process = container.make(spec.argv, streams, ended, env=env, cwd=spec.cwd or "/")
        process.size = (spec.rows, spec.cols)
        exec_id = secrets.token_hex(4)
        container.execs[exec_id] = process
        process.start()
        await call.send_item(ExecStarted(exec_id=exec_id, pid=process.pid))
        try:
            async with asyncio.timeout(spec.timeout_s):
                return await asyncio.shield(ended)
        except TimeoutError:
            process.signal(9)
            return ExitStatus(code=137, signal=9, reason="Timeout")

    async def _hold(self, call: Call) -> ExitStatus:
        """A program that ends and leaves a child behind that holds its output, and writes once more."""
        out = call.take_fd("stdout")
        await call.send_item(ExecStarted(exec_id="held", pid=1))
        os.write(out, b"parent\n")
        asyncio.get_running_loop().call_later(0.1, os.write, out, b"child\n")
        self.held.append(out)
        return ExitStatus(code=0)

    async def exec_kill(self, call: Call) -> None:
        process = self.container(call.params.ref).execs.get(call.params.exec_id)
        if process is None or process.ended:
            raise NotFound(f"exec {call.params.exec_id} has ended")
        process.signal(parse_signal(call.params.signal))

    # files

    async def _in_root(self, call: Call, work: Any, *args: Any, **options: Any) -> Any:
        root = os.open(self.container(call.params.ref).root, os.O_PATH | os.O_DIRECTORY)
        try:
            return await asyncio.to_thread(work, root, *args, **options)
        finally:
            os.close(root)

    async def file_read(self, call: Call) -> Any:
        p = call.params
        return await self._in_root(call, files.read, p.path, call.take_fd("data"), offset=p.offset, length=p.length)

    async def file_write(self, call: Call) -> Any:
        p = call.params
        options = {"mode": p.mode, "uid": p.uid, "gid": p.gid, "append": p.append, "parents": p.parents}
        return await self._in_root(call, files.write, p.path, call.take_fd("data"), **options)

    async def file_stat(self, call: Call) -> Any:
        return await self._in_root(call, files.stat, call.params.path)

    async def file_list(self, call: Call) -> Any:
        return await self._in_root(call, files.list_dir, call.params.path)

    async def file_mkdir(self, call: Call) -> Any:
        return await self._in_root(
            call, files.mkdir, call.params.path, parents=call.params.parents, mode=call.params.mode
        )

    async def file_remove(self, call: Call) -> None:
        await self._in_root(call, files.remove, call.params.path, recursive=call.params.recursive)

    async def file_rename(self, call: Call) -> Any:
        return await self._in_root(call, files.rename, call.params.path, call.params.target)

    async def file_get_archive(self, call: Call) -> Any:
        return await self._in_root(call, files.get_archive, call.params.path, call.take_fd("data"))

    async def file_put_archive(self, call: Call) -> None:
        await self._in_root(call, files.put_archive, call.params.path, call.take_fd("data"))

    # the rest

    async def image_import(self, call: Call) -> ImageList:
        size = os.fstat(call.fds["data"]).st_size if "data" in call.fds else 0
        await call.send_item(Progress(id="x", status="unpacking", current=size, total=size))
        return ImageList(images=[ImageInfo(id="i", digest="d", names=[call.params.tag], size_bytes=size)])

    async def image_export(self, call: Call) -> None:
        os.write(call.fds["data"], b"archive of " + ",".join(call.params.refs).encode())

    async def image_build(self, call: Call) -> ImageInfo:
        return ImageInfo(id="i", digest="d", names=[call.params.tag], config={"path": call.params.path})

    async def image_list(self, call: Call) -> ImageList:
        return ImageList(images=[])

    async def image_inspect(self, call: Call) -> ImageInfo:
        raise NotFound(f"no image {call.params.ref!r}", what="image")

    async def network_create(self, call: Call) -> NetworkInfo:
        p = call.params
        self.networks[p.name] = NetworkInfo(name=p.name, bridge="br0", subnet4=p.subnet4, gateway4="")
        return self.networks[p.name]

    async def network_inspect(self, call: Call) -> NetworkInfo:
        return self.networks[call.params.ref]

    async def network_list(self, call: Call) -> NetworkList:
        return NetworkList(networks=list(self.networks.values()))

    async def network_delete(self, call: Call) -> None:
        del self.networks[call.params.ref]

    async def network_prune(self, call: Call) -> Pruned:
        return Pruned(removed=list(self.networks))

    async def volume_create(self, call: Call) -> VolumeInfo:
        self.volumes[call.params.name] = VolumeInfo(name=call.params.name, path="/v", labels=call.params.labels)
        return self.volumes[call.params.name]

    async def volume_inspect(self, call: Call) -> VolumeInfo:
        return self.volumes[call.params.ref]

    async def volume_list(self, call: Call) -> VolumeList:
        return VolumeList(volumes=list(self.volumes.values()))

    async def volume_delete(self, call: Call) -> None:
        del self.volumes[call.params.ref]

    async def volume_prune(self, call: Call) -> Pruned:
        return Pruned(removed=list(self.volumes))

    async def system_info(self, call: Call) -> SystemInfo:
        return SystemInfo(
            version="0", pid=os.getpid(), root="/r", run="/x", keeper_pid=0, started_at=0.0, kernel="k", cgroup="v2",
            sandboxes=["fake"], pods=len(self.pods), containers=0, images=0,
        )  # fmt: skip

    async def system_events(self, call: Call) -> EventList:
        for event in list(self.events):
            await call.send_item(event)
        if call.params.follow:
            await asyncio.Event().wait()
        return EventList(events=[])

    def tell(self, kind: str, action: str, ref: str) -> None:
        self.events.append(Event(at=time.time(), type=kind, action=action, id=ref))


class FakePod:
    def __init__(self, runtime: FakeRuntime, spec: PodSpec) -> None:
        self.runtime = runtime
        self.spec = spec
        self.id = spec.id or secrets.token_hex(8)
        self.state = "ready"
        self.containers = [FakeContainer(self, container) for container in spec.containers]

    def start(self) -> PodStatus:
        for container in self.containers:
            container.start()
        return self.move("running")

    def stop(self) -> PodStatus:
        for container in self.containers:
            container.stop()
        return self.move("stopped")

    def move(self, state: str) -> PodStatus:
        self.state = state
        return self.status()

    def status(self) -> PodStatus:
        return PodStatus(
            id=self.id, name=self.spec.name or "", namespace="default", state=self.state, sandbox="fake",
            labels=self.spec.labels, containers=[c.status() for c in self.containers],
        )  # fmt: skip


class FakeContainer:
    def __init__(self, pod: FakePod, spec: ContainerSpec) -> None:
        self.pod = pod
        self.spec = spec
        self.id = spec.id or secrets.token_hex(8)
        self.state = "ready"
        self.resources: Resources = spec.resources
        self.root = pod.runtime.directory / self.id
        self.root.mkdir()
        self.execs: dict[str, FakeProcess] = {}
        self.main: FakeProcess | None = None
        self.streams = Streams(stdin=spec.stdin, tty=spec.tty)
        self._ended: asyncio.Future[ExitStatus] | None = None
        self._next_pid = 100

    def make(
        self, argv: Any, streams: Streams, ended: asyncio.Future[ExitStatus], *, env: dict[str, str], cwd: str
    ) -> FakeProcess:
        def on_end(code: int, signal: int) -> None:
            if not ended.done():
                ended.set_result(ExitStatus(code=code, signal=signal, at=time.time()))

        self._next_pid += 1
        return FakeProcess(argv, pid=self._next_pid, env=env, cwd=cwd, streams=streams, first=False, on_end=on_end)

    def start(self) -> ContainerStatus:
        self._ended = asyncio.get_running_loop().create_future()
        self.main = self.make(self.spec.argv or ("patient",), self.streams, self._ended, env={}, cwd="/")
        self.main.start()
        return self.move("running")

    def stop(self) -> ContainerStatus:
        self.signal(9)
        return self.move("stopped")

    def signal(self, number: int) -> None:
        for process in (*self.execs.values(), self.main):
            if process is not None and not process.ended:
                process.signal(number)

    def move(self, state: str) -> ContainerStatus:
        self.state = state
        return self.status()

    async def main_end(self) -> ExitStatus:
        if self._ended is None:
            raise InvalidState(f"container {self.id} was never started")
        return await asyncio.shield(self._ended)

    def processes(self) -> list[ProcessInfo]:
        alive = [p for p in (self.main, *self.execs.values()) if p is not None and not p.ended]
        return [
            ProcessInfo(
                pid=p.pid, ppid=1, uid=0, user="root", state="S", cpu_s=0, rss_bytes=0, started_at=0,
                command=" ".join(p.argv),
            )
            for p in alive
        ]  # fmt: skip

    def status(self) -> ContainerStatus:
        return ContainerStatus(
            id=self.id, name=self.spec.name or "", pod=self.pod.id, state=self.state, argv=list(self.spec.argv)
        )
