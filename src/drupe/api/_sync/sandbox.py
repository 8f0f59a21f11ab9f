# Written by scripts/unasync.py from api/_async/sandbox.py; change that file, not this one.
"""The short way: one pod with one container as a place to run things in."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from msgspec import structs

from drupe.api._sync import process
from drupe.api._sync.containers import Container
from drupe.api._sync.files import Files
from drupe.api._sync.process import Process
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
    from drupe.api._sync.runtime import Runtime


class Sandbox:
    """A pod of one container, made when entered and deleted when left.

        with Sandbox("busybox", memory="256M", network="none") as sb:
            print((sb.run(["echo", "hello"], check=True)).text)

    The constructor does no I/O. Without `argv` the main process is an idle one that costs next to nothing and reaps
    children; the image need not bring anything for it. What leaves the block by an exception is deleted too; `detach`
    keeps it, to be found again with `connect(id)`.
    """

    def __init__(
        self,
        image: str = "",
        argv: Sequence[str] = (),
        *,
        runtime: Runtime | None = None,
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
        self._main: Container | None = None
        self._choice: Choice | None = None
        self._detached = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._pod or 'not started'}>"

    @classmethod
    def connect(cls, ref: str, *, runtime: Runtime | None = None) -> Sandbox:
        """A handle on a sandbox that runs already, by id or name. Leaving its `with` block does not delete it."""
        sandbox = cls(spec=PodSpec(), runtime=runtime)
        try:
            sandbox._adopt(sandbox._open().connection.call("pod.status", Ref(ref=ref)))
        except BaseException:
            sandbox._let_go()
            raise
        sandbox._detached = True
        return sandbox

    @classmethod
    def list(cls, *, runtime: Runtime | None = None) -> builtins.list[PodStatus]:
        """All pods that were made as sandboxes."""
        sandbox = cls(spec=PodSpec(), runtime=runtime)
        try:
            found: PodList = sandbox._open().connection.call("pod.list", ListFilter(labels=(LABEL,)))
            return found.pods
        finally:
            sandbox._let_go()

    def start(self) -> Sandbox:
        """Make and start it. When that fails, or is interrupted, nothing is left."""
        if self._main is not None:
            raise InvalidState(f"sandbox {self._pod} is started already")
        runtime = self._open()
        try:
            self._import_module(runtime)
            self._adopt(runtime.connection.call("pod.run", PodRun(spec=self.spec)))
        except BaseException as error:
            self._undo(error)
            self._let_go()
            raise
        return self

    def _import_module(self, runtime: Runtime) -> None:
        """A module's file, named instead of an image, becomes an image without a name."""
        from drupe.images.bare import bare_module

        for container in self.spec.containers:
            path = bare_module(container.image)
            if path is not None:
                image = (runtime.images.load(path, format="wasm"))[0].digest
                self.spec = structs.replace(self.spec, containers=(structs.replace(container, image=image),))

    def __enter__(self) -> Sandbox:
        return self if self._main is not None else self.start()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if not self._detached:
                self.delete()
        except DrupeError as failure:
            if error is None:
                raise
            error.add_note(f"and the sandbox could not be deleted: {failure}")
        finally:
            self._let_go()

    @property
    def id(self) -> str:
        """The pod's id; good for `connect` as long as the sandbox exists. Raises InvalidState before the start."""
        if not self._pod:
            raise InvalidState("the sandbox is not started", hint="use it as a context manager, or call start()")
        return self._pod

    @property
    def container(self) -> Container:
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
    def files(self) -> Files:
        """Its files."""
        return self.container.files

    def detach(self) -> None:
        """Keep it when the block is left."""
        self._detached = True

    def close(self) -> None:
        """Let go of it without deleting it."""
        self._detached = True
        self._let_go()

    def status(self) -> PodStatus:
        """State, sandbox kind, addresses, ports, container."""
        status: PodStatus = self._call("pod.status", Ref(ref=self.id))
        return status

    @overload
    def run(
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
    def run(
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

    def run(
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
        """Run a command to its end; see `Container.run`."""
        return process.run(
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

    def shell(self, command: str, **options: Any) -> Result[Any]:
        """Run a command line with /bin/sh -c; options as `run`."""
        done: Result[Any] = self.run(["/bin/sh", "-c", command], **options)
        return done

    def popen(self, argv: Sequence[str], **options: Any) -> Process:
        """Run a process with its streams in our hands; options as `Container.popen`."""
        return self.container.popen(argv, **options)

    def logs(self, *, follow: bool = False, tail: int | None = None, since: float | None = None) -> Iterator[LogLine]:
        """Output of the main process (with `argv`; the idle one says nothing)."""
        for line in self.container.logs(follow=follow, tail=tail, since=since):
            yield line

    def stats(self) -> Stats:
        """Counters of CPU, memory, I/O, processes, network."""
        answer: Stats = self._call("pod.stats", Ref(ref=self.id))
        return answer

    def processes(self) -> builtins.list[ProcessInfo]:
        """Its processes, ids as the host sees them."""
        return self.container.processes()

    def pause(self) -> PodStatus:
        """Freeze every process."""
        status: PodStatus = self._call("pod.pause", Ref(ref=self.id))
        return status

    def resume(self) -> PodStatus:
        """Thaw what `pause` froze."""
        status: PodStatus = self._call("pod.resume", Ref(ref=self.id))
        return status

    def update(
        self, *, memory: str | int | None = None, cpus: str | float | None = None, pids: int | None = None
    ) -> ContainerStatus:
        """Change limits while it runs."""
        return self.container.update(memory=memory, cpus=cpus, pids=pids)

    def stop(self, *, timeout: float | None = None) -> PodStatus:
        """Stop it: stop signal, then SIGKILL after `timeout` seconds. Its files stay until it is deleted."""
        status: PodStatus = self._call("pod.stop", Stop(ref=self.id, timeout_s=timeout))
        return status

    def kill(self, signal: str | int = "KILL") -> None:
        """Send a signal to every process."""
        self._call("container.kill", Kill(ref=self.container.id, signal=str(signal), all=True))

    def snapshot(self, name: str = "") -> SnapshotInfo:
        """Write it down, memory and files, while it runs. Raises Unsupported for kinds that cannot be."""
        info: SnapshotInfo = self._call("snapshot.create", SnapshotCreate(ref=self.id, name=name))
        return info

    def fork(self, name: str = "") -> Sandbox:
        """A second sandbox that goes on from where this one is; enter it, or delete it, like any other."""
        return self._second(self._call("pod.fork", Fork(ref=self.id, name=name)))

    @classmethod
    def restore(cls, snapshot: str, *, name: str = "", runtime: Runtime | None = None) -> Sandbox:
        """A sandbox that goes on where a snapshot was made, with an id, a host name and addresses of its own."""
        sandbox = cls(spec=PodSpec(), runtime=runtime)
        try:
            wanted = SnapshotRestore(ref=snapshot, name=name, other_ports=True)
            sandbox._adopt(sandbox._open().connection.call("snapshot.restore", wanted))
        except BaseException:
            sandbox._let_go()
            raise
        return sandbox

    def _second(self, status: PodStatus) -> Sandbox:
        sandbox = type(self)(spec=PodSpec(), runtime=self._given)
        sandbox._adopt(status)
        return sandbox

    def wait(self, *, timeout: float | None = None) -> int:
        """Wait for the end of the main process; its exit code. Raises DeadlineExceeded after `timeout` seconds."""
        return (self.container.wait(timeout=timeout)).code

    def delete(self) -> None:
        """Stop and delete it with all it had. Nothing happens when it is gone already."""
        if not self._pod:
            return
        try:
            self._call("pod.delete", Delete(ref=self._pod, force=True))
        except NotFound:
            return  # that is what was wanted

    def _call(self, method: str, params: Any) -> Any:
        return self._open().connection.call(method, params)

    def _open(self) -> Runtime:
        if self._runtime is None:
            from drupe.api._sync.runtime import Runtime

            self._runtime = Runtime()
        return self._runtime

    def _adopt(self, status: PodStatus) -> None:
        if not status.containers:
            raise InvalidState(f"pod {status.id} has no container, so it is no sandbox")
        self._pod = status.id
        self._choice = status.choice
        self._main = Container(self._open().connection, status.containers[0].id)

    def _undo(self, error: BaseException) -> None:
        """Delete by the id that we chose: the runtime undoes what it refuses, but a call may also be cut short."""
        if self.spec.id is None or (isinstance(error, DrupeError) and not error.may_have_run):
            return
        try:
            self._call("pod.delete", Delete(ref=self.spec.id, force=True))
        except NotFound:
            return  # it was undone, or never made
        except DrupeError as failure:
            error.add_note(f"and the sandbox could not be deleted: {failure}")

    def _let_go(self) -> None:
        """Close the runtime when it is our own."""
        runtime, self._runtime = self._runtime, self._given
        if runtime is not None and runtime is not self._given:
            runtime.close()
