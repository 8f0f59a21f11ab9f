"""The short way: one pod with one container as a place to run things in."""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from msgspec import structs

from drupe.api._async import process
from drupe.api._async.containers import AsyncContainer
from drupe.api._async.files import AsyncFiles
from drupe.api._async.process import AsyncProcess
from drupe.api.result import Result
from drupe.api.specs import LABEL, exec_spec, sandbox_spec
from drupe.errors import DrupeError, InvalidState, NotFound
from drupe.spec.container import Mount, Secret, SecuritySpec
from drupe.spec.control import Delete, Kill, ListFilter, LogLine, PodList, PodRun, Ref, Stop
from drupe.spec.network import NetworkSpec, PortMapping
from drupe.spec.pod import PodSpec
from drupe.spec.snapshot import Fork, SnapshotCreate, SnapshotInfo, SnapshotRestore
from drupe.spec.status import Choice, ContainerStatus, PodStatus, ProcessInfo, Stats

if TYPE_CHECKING:
    from drupe.api._async.runtime import AsyncRuntime


class AsyncSandbox:
    """A pod of one container, made when entered and deleted when left.

        async with AsyncSandbox("busybox", memory="256M", network="none") as sb:
            print((await sb.run(["echo", "hello"], check=True)).text)

    The constructor does no I/O. Without `argv` the main process is an idle one that costs next to nothing and reaps
    children; the image need not bring anything for it. What leaves the block by an exception is deleted too; `detach`
    keeps it, to be found again with `connect(id)`.
    """

    def __init__(
        self,
        image: str = "",
        argv: Sequence[str] = (),
        *,
        runtime: AsyncRuntime | None = None,
        isolation: str = "",
        name: str | None = None,
        rootfs: str | Path = "",
        memory: str | int | None = None,
        cpus: str | float | None = None,
        pids: int | None = None,
        network: NetworkSpec | str | None = None,
        ports: Iterable[PortMapping | str | int] = (),
        mounts: Iterable[Mount] = (),
        secrets: Iterable[Secret] = (),
        env: dict[str, str] | Iterable[str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        hostname: str | None = None,
        read_only: bool = False,
        security: SecuritySpec | None = None,
        labels: dict[str, str] | None = None,
        lifetime: float | None = None,
        spec: PodSpec | None = None,
    ) -> None:
        """What the sandbox shall be. Raises InvalidArgument for values that make no sense.

        isolation: kind of sandbox ("auto": the strongest that works here; "": as image and node decide). memory: bytes
        or "256M". cpus: 1.5 or "150%". network: a Network, or "none", "host", a bridge network's name (None: the
        default one). ports: Port, 8080 or "8080:80". lifetime: seconds after which the runtime kills it, whatever
        happens to this program. spec: a whole PodSpec instead of all this. runtime: the runtime to use (None: the
        daemon of this host, started on demand).
        """
        self.spec = spec or sandbox_spec(
            image=image, argv=argv, isolation=isolation, name=name, rootfs=rootfs, memory=memory, cpus=cpus, pids=pids,
            network=network, ports=ports, mounts=mounts, secrets=secrets, env=env, cwd=cwd, user=user,
            hostname=hostname, read_only=read_only, security=security, labels=labels, lifetime=lifetime,
        )  # fmt: skip
        self._given = runtime
        self._runtime = runtime
        self._pod = ""
        self._main: AsyncContainer | None = None
        self._choice: Choice | None = None
        self._detached = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._pod or 'not started'}>"

    @classmethod
    async def connect(cls, ref: str, *, runtime: AsyncRuntime | None = None) -> AsyncSandbox:
        """A handle on a sandbox that runs already, by id or name. Leaving its `with` block does not delete it."""
        sandbox = cls(spec=PodSpec(), runtime=runtime)
        try:
            sandbox._adopt(await sandbox._open().connection.call("pod.status", Ref(ref=ref)))
        except BaseException:
            await sandbox._let_go()
            raise
        sandbox._detached = True
        return sandbox

    @classmethod
    async def list(cls, *, runtime: AsyncRuntime | None = None) -> builtins.list[PodStatus]:
        """All pods that were made as sandboxes."""
        sandbox = cls(spec=PodSpec(), runtime=runtime)
        try:
            found: PodList = await sandbox._open().connection.call("pod.list", ListFilter(labels=(LABEL,)))
            return found.pods
        finally:
            await sandbox._let_go()

    async def start(self) -> AsyncSandbox:
        """Make and start it. When that fails, or is interrupted, nothing is left."""
        if self._main is not None:
            raise InvalidState(f"sandbox {self._pod} is started already")
        runtime = self._open()
        try:
            await self._import_module(runtime)
            self._adopt(await runtime.connection.call("pod.run", PodRun(spec=self.spec)))
        except BaseException as error:
            await self._undo(error)
            await self._let_go()
            raise
        return self

    async def _import_module(self, runtime: AsyncRuntime) -> None:
        """A module's file, named instead of an image, becomes an image without a name."""
        from drupe.images.bare import bare_module

        for container in self.spec.containers:
            path = bare_module(container.image)
            if path is not None:
                image = (await runtime.images.load(path, format="wasm"))[0].digest
                self.spec = structs.replace(self.spec, containers=(structs.replace(container, image=image),))

    async def __aenter__(self) -> AsyncSandbox:
        return self if self._main is not None else await self.start()

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if not self._detached:
                await self.delete()
        except DrupeError as failure:
            if error is None:
                raise
            error.add_note(f"and the sandbox could not be deleted: {failure}")
        finally:
            await self._let_go()

    @property
    def id(self) -> str:
        """The pod's id; good for `connect` as long as the sandbox exists. Raises InvalidState before the start."""
        if not self._pod:
            raise InvalidState("the sandbox is not started", hint="use it as a context manager, or call start()")
        return self._pod

    @property
    def container(self) -> AsyncContainer:
        """The handle on its container, with every call there is."""
        if self._main is None:
            raise InvalidState("the sandbox is not started", hint="use it as a context manager, or call start()")
        return self._main

    @property
    def kind(self) -> str:
        """The kind of sandbox it got: "runc", "gvisor"… Raises InvalidState before the start."""
        return self.choice.kind

    @property
    def choice(self) -> Choice:
        """How that kind was chosen: by whom, how strong it is, and why stronger ones were passed over."""
        if self._choice is None:
            raise InvalidState("the sandbox is not started", hint="use it as a context manager, or call start()")
        return self._choice

    @property
    def files(self) -> AsyncFiles:
        """Its files."""
        return self.container.files

    def detach(self) -> None:
        """Keep it when the block is left."""
        self._detached = True

    async def close(self) -> None:
        """Let go of it without deleting it."""
        self._detached = True
        await self._let_go()

    async def status(self) -> PodStatus:
        """State, sandbox kind, addresses, ports, container."""
        status: PodStatus = await self._call("pod.status", Ref(ref=self.id))
        return status

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
        """Run a command to its end; see `AsyncContainer.run`."""
        return await process.run(
            self._open().connection,
            self.container.id,
            exec_spec(argv, cwd=cwd, env=env, user=user, timeout=timeout),
            input=input,
            check=check,
            text=text,
            on_stdout=on_stdout,
            on_stderr=on_stderr,
            max_output_bytes=max_output_bytes,
        )

    async def shell(self, command: str, **options: Any) -> Result[Any]:
        """Run a command line with /bin/sh -c; options as `run`."""
        done: Result[Any] = await self.run(["/bin/sh", "-c", command], **options)
        return done

    async def popen(self, argv: Sequence[str], **options: Any) -> AsyncProcess:
        """Run a process with its streams in our hands; options as `AsyncContainer.popen`."""
        return await self.container.popen(argv, **options)

    async def logs(
        self, *, follow: bool = False, tail: int | None = None, since: float | None = None
    ) -> AsyncIterator[LogLine]:
        """Output of the main process (with `argv`; the idle one says nothing)."""
        async for line in self.container.logs(follow=follow, tail=tail, since=since):
            yield line

    async def stats(self) -> Stats:
        """Counters of CPU, memory, I/O, processes, network."""
        answer: Stats = await self._call("pod.stats", Ref(ref=self.id))
        return answer

    async def processes(self) -> builtins.list[ProcessInfo]:
        """Its processes, ids as the host sees them."""
        return await self.container.processes()

    async def pause(self) -> PodStatus:
        """Freeze every process."""
        status: PodStatus = await self._call("pod.pause", Ref(ref=self.id))
        return status

    async def resume(self) -> PodStatus:
        """Thaw what `pause` froze."""
        status: PodStatus = await self._call("pod.resume", Ref(ref=self.id))
        return status

    async def update(
        self, *, memory: str | int | None = None, cpus: str | float | None = None, pids: int | None = None
    ) -> ContainerStatus:
        """Change limits while it runs."""
        return await self.container.update(memory=memory, cpus=cpus, pids=pids)

    async def stop(self, *, timeout: float | None = None) -> PodStatus:
        """Stop it: stop signal, then SIGKILL after `timeout` seconds. Its files stay until it is deleted."""
        status: PodStatus = await self._call("pod.stop", Stop(ref=self.id, timeout_s=timeout))
        return status

    async def kill(self, signal: str | int = "KILL") -> None:
        """Send a signal to every process."""
        await self._call("container.kill", Kill(ref=self.container.id, signal=str(signal), all=True))

    async def snapshot(self, name: str = "") -> SnapshotInfo:
        """Write it down, memory and files, while it runs. Raises Unsupported for kinds that cannot be."""
        info: SnapshotInfo = await self._call("snapshot.create", SnapshotCreate(ref=self.id, name=name))
        return info

    async def fork(self, name: str = "") -> AsyncSandbox:
        """A second sandbox that goes on from where this one is; enter it, or delete it, like any other."""
        return self._second(await self._call("pod.fork", Fork(ref=self.id, name=name)))

    @classmethod
    async def restore(cls, snapshot: str, *, name: str = "", runtime: AsyncRuntime | None = None) -> AsyncSandbox:
        """A sandbox that goes on where a snapshot was made, with an id, a host name and addresses of its own."""
        sandbox = cls(spec=PodSpec(), runtime=runtime)
        try:
            wanted = SnapshotRestore(ref=snapshot, name=name, other_ports=True)
            sandbox._adopt(await sandbox._open().connection.call("snapshot.restore", wanted))
        except BaseException:
            await sandbox._let_go()
            raise
        return sandbox

    def _second(self, status: PodStatus) -> AsyncSandbox:
        sandbox = type(self)(spec=PodSpec(), runtime=self._given)
        sandbox._adopt(status)
        return sandbox

    async def wait(self, *, timeout: float | None = None) -> int:
        """Wait for the end of the main process; its exit code. Raises DeadlineExceeded after `timeout` seconds."""
        return (await self.container.wait(timeout=timeout)).code

    async def delete(self) -> None:
        """Stop and delete it with all it had. Nothing happens when it is gone already."""
        if not self._pod:
            return
        try:
            await self._call("pod.delete", Delete(ref=self._pod, force=True))
        except NotFound:
            return  # that is what was wanted

    async def _call(self, method: str, params: Any) -> Any:
        return await self._open().connection.call(method, params)

    def _open(self) -> AsyncRuntime:
        if self._runtime is None:
            from drupe.api._async.runtime import AsyncRuntime

            self._runtime = AsyncRuntime()
        return self._runtime

    def _adopt(self, status: PodStatus) -> None:
        if not status.containers:
            raise InvalidState(f"pod {status.id} has no container, so it is no sandbox")
        self._pod = status.id
        self._choice = status.choice
        self._main = AsyncContainer(self._open().connection, status.containers[0].id)

    async def _undo(self, error: BaseException) -> None:
        """Delete by the id that we chose: the runtime undoes what it refuses, but a call may also be cut short."""
        if self.spec.id is None or (isinstance(error, DrupeError) and not error.may_have_run):
            return
        try:
            await self._call("pod.delete", Delete(ref=self.spec.id, force=True))
        except NotFound:
            return  # it was undone, or never made
        except DrupeError as failure:
            error.add_note(f"and the sandbox could not be deleted: {failure}")

    async def _let_go(self) -> None:
        """Close the runtime when it is our own."""
        runtime, self._runtime = self._runtime, self._given
        if runtime is not None and runtime is not self._given:
            await runtime.close()
