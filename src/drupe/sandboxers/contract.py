"""The Sandboxer contract: what every kind of sandbox offers to the runtime.

A sandboxer makes and keeps the isolation boundary of pods (`Sandboxer`); a started sandbox hands out a `TaskService`,
through which its containers live. The runtime calls in this order:

    create(config) → [network is attached to the netns it answers] → start(id) → tasks …
                   → stop(id) → delete(id)

Rules: `delete` and `stop` are idempotent, also after a half-done create. Ends of processes are told through the
`on_exit` callback given at construction, after their output is complete. What a kind cannot do is said in
`capabilities()` and refused with `Unsupported` before anything is made. Calls raise drupe.errors only.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from drupe.errors import NotFound, Unsupported
from drupe.resources.process_tree import descendants
from drupe.resources.processes import list_processes
from drupe.sandboxers.bundles import BundleProgram
from drupe.spec.container import LogSpec
from drupe.spec.control import Pruned
from drupe.spec.pod import PodSpec
from drupe.spec.resources import Resources
from drupe.spec.status import ExitStatus, MachineInfo, ProcessInfo, Stats
from drupe.spec.template import TemplateInfo


@dataclass(frozen=True, slots=True)
class SandboxConfig:
    """A pod's sandbox. dir: private run directory. cgroup: path below each controller's mount. hostname: final name.
    held: whoever made it names its namespaces by a process, which is to live in them as long as the pod."""

    id: str
    spec: PodSpec
    dir: Path
    cgroup: str
    hostname: str
    held: bool = False


@dataclass(frozen=True, slots=True)
class SandboxInfo:
    """What `create` made. netns: path of the network namespace as helpers see it ("" is the host's own).
    namespaces: OCI namespace type to path, for what the pod's containers share. pid: of a process in them, where one
    was asked for; 0: none."""

    netns: str
    namespaces: dict[str, str] = field(default_factory=dict)
    pid: int = 0


@dataclass(frozen=True, slots=True)
class MemoryDir:
    """A directory of a file system in memory that is the pod's alone. volume: names that file system. below: the
    directory in it, "" is all of it. size_bytes: as large as it may get. owner, below_owner: uid, gid and mode of both.
    is_new: it holds no file yet."""

    volume: str
    below: str
    size_bytes: int
    owner: tuple[int, int, int]
    below_owner: tuple[int, int, int]
    is_new: bool


@dataclass(frozen=True, slots=True)
class TaskConfig:
    """One container. oci: its runtime-spec config. bundle: directory for config.json and run-time files (exists).
    stdin: keep a writable standard input. log: where output goes, None nowhere. exit_file: where its end is
    recorded. resources: the limits, which `oci` has in its own words too. fds: what `attach` will be given before the
    start; a kind may attach them now, and answer that then. image: an EROFS file of its image, for kinds that want
    one, where it has an image. image_digest, upper: the image of which its root is, and the directory with what is
    over it; "" and None where the root is made of anything else. memory: which sources of its bind mounts are memory
    of the pod's own, which a kind with a kernel of its own may have there. restores: it will be told what it goes on
    from (`go_on_from`), and runs nothing else."""

    id: str
    sandbox: str
    oci: dict[str, Any]
    bundle: Path
    cgroup: str
    tty: bool
    stdin: bool
    log: LogSpec | None
    exit_file: Path
    resources: Resources = field(default_factory=Resources)
    fds: Mapping[str, int] = field(default_factory=dict)
    image: Path | None = None
    image_digest: str = ""
    upper: Path | None = None
    memory: Mapping[str, MemoryDir] = field(default_factory=dict)
    restores: bool = False


@dataclass(frozen=True, slots=True)
class ExecConfig:
    """A further process in a container. process: runtime-spec `process`. fds: stdin, stdout, stderr (owned by the
    caller; duplicated as needed). With tty they are connected to a pty of `rows` and `cols`."""

    id: str
    task: str
    process: dict[str, Any]
    dir: Path
    tty: bool
    fds: Mapping[str, int]
    rows: int | None = None
    cols: int | None = None


@dataclass(frozen=True, slots=True)
class TaskExit:
    """The end of a container's first process (exec_id "") or of an exec."""

    task: str
    exec_id: str
    status: ExitStatus


@dataclass(frozen=True, slots=True)
class TaskState:
    """What `recover` found: a task that lives (`exit` None; `started` False: created, not started) or has ended."""

    id: str
    pid: int
    started: bool
    exit: ExitStatus | None


OnExit = Callable[[TaskExit], None]
OnFailed = Callable[[str, str], None]
"""Told of a sandbox that was lost with all in it: its id, and why. The ends of its tasks are told, too."""


class Attachment(ABC):
    """Descriptors joined to a process. Awaited, it ends when all of them have been let go; it may be left alone."""

    @abstractmethod
    def __await__(self) -> Generator[Any, None, object]: ...

    @abstractmethod
    async def detach(self) -> None:
        """Let go of them now, as if they had been closed. Idempotent."""


async def hold(attachment: Attachment) -> None:
    """Wait for the end of an attachment; when cancelled, make it end."""
    try:
        with contextlib.suppress(NotFound):  # it and its process are forgotten
            await attachment
    except asyncio.CancelledError:
        await attachment.detach()
        raise


class TaskService(ABC):
    """Containers of one sandbox kind; ids are unique per node. binds_until: the call by which what a container
    bind-mounts has been taken over: "create" or "start". joins_by_pid: a container may have a neighbour's process
    table, called by the pid that was told of that one (/proc/PID/ns/pid). own_numbers: `pids` are those of a kernel of
    its own, and mean nothing on the host, or another process."""

    binds_until: ClassVar[str] = "create"
    joins_by_pid: ClassVar[bool] = False
    own_numbers: ClassVar[bool] = False

    @abstractmethod
    def know(self, task_id: str, *, cgroup: str, bundle: Path) -> None:
        """Remember a container that the journal names: said for each before `Sandboxer.recover`."""

    @abstractmethod
    async def create(self, task: TaskConfig) -> int:
        """Make the container, ready to start. Returns its first process's host pid (0 where there is none)."""

    @abstractmethod
    async def start(self, task_id: str) -> int | None:
        """Run the workload. Returns its host pid where `create` had none yet. NotFound for a missing program,
        PermissionDenied for one that may not be executed."""

    @abstractmethod
    async def exec(self, config: ExecConfig) -> int:
        """Start a further process; returns its host pid. Its end is told through `on_exit`."""

    @abstractmethod
    async def kill(self, task_id: str, signal: int, *, exec_id: str = "", everything: bool = False) -> None:
        """Send a signal to the first process, one exec, or every process. NotFound once it is gone."""

    @abstractmethod
    async def attach(
        self, task_id: str, fds: Mapping[str, int], *, exec_id: str = "", keep_stdin: bool = False
    ) -> Attachment:
        """Copy output to `stdout`/`stderr` from now on and feed `stdin`, whose end closes the process's own unless
        `keep_stdin`."""

    @abstractmethod
    async def resize(self, task_id: str, rows: int, cols: int, *, exec_id: str = "") -> None: ...

    @abstractmethod
    async def close_stdin(self, task_id: str) -> None: ...

    @abstractmethod
    async def pause(self, task_id: str) -> None:
        """Stop all its processes; returns once they stand still."""

    @abstractmethod
    async def resume(self, task_id: str) -> None: ...

    @abstractmethod
    async def update(self, task_id: str, resources: Resources) -> Sequence[str] | None:
        """Apply limits to a living container and verify them. Answers, in words, what could not be had beside them."""

    @abstractmethod
    async def stats(self, task_id: str) -> Stats: ...

    @abstractmethod
    async def pids(self, task_id: str) -> list[int]:
        """Pids of its processes: the host's, or those of the kernel that runs them."""

    async def processes(self, task_id: str) -> list[ProcessInfo]:
        """What runs in it. Pids are those of `pids`."""
        return list_processes(await self.pids(task_id))

    def apart(self) -> Collection[str]:
        """Keys ("task" or "task.exec") of what lives and is no task of the keeper's, so that it outlives one."""
        return ()

    def hidden(self, task_id: str) -> Collection[str]:
        """Directories of a living container whose files are in the sandbox's memory, out of reach from outside."""
        return ()

    async def kill_tree(self, task_id: str, signal: int, *, exec_id: str, pid: int) -> None:
        """Send a signal to an exec and to all that it started, within the container. pid: what `exec` returned."""
        family = descendants(pid, among=await self.pids(task_id)) if pid else []
        with contextlib.suppress(NotFound):
            await self.kill(task_id, signal, exec_id=exec_id)
        for child in family:
            child.signal(signal)

    @abstractmethod
    async def delete(self, task_id: str) -> None:
        """Kill what lives and remove every trace. Idempotent."""

    async def checkpoint(self, task_id: str, path: Path, *, words: Sequence[str] = ()) -> None:
        """Write the container's memory to the directory `path`; it goes on. words: flags of runc's verb for what the
        host's kernel has of it ("--tcp-established"). Refused by kinds that cannot, by name."""
        raise _no_checkpoints(task_id)

    async def go_on_from(self, task_id: str, path: Path) -> None:
        """Have a container that was made for it (`restores`) go on, at its start, from what `checkpoint` wrote to
        `path`, of which a copy is taken. Refused by kinds that cannot."""
        raise _no_checkpoints(task_id)


class Sandboxer(ABC):
    """Makes and keeps sandboxes of one kind."""

    kind: ClassVar[str]
    runs_modules: ClassVar[bool] = False  # its programs are WebAssembly modules, not Linux's
    own_shm: ClassVar[bool] = False  # the /dev/shm of a pod is its own kernel's, not a mount of the host's
    wants_image: bool = False  # it reads images itself: as EROFS files
    dials: ClassVar[bool] = False  # the loopback of a pod is its own kernel's, and `dial` reaches it
    on_failed: OnFailed = staticmethod(lambda sandbox_id, cause: None)

    @abstractmethod
    def capabilities(self) -> Mapping[str, str]:
        """Feature to "yes", "no: reason" or "limited: reason"; features are those of `capabilities.FEATURES`."""

    @abstractmethod
    def tasks(self) -> TaskService: ...

    def bundle_program(self) -> BundleProgram:
        """The OCI program for bundles that others made. Refused by kinds that have none."""
        raise Unsupported(
            f"sandbox kind {self.kind!r} runs no bundles of others", kind=self.kind, feature="run bundles of others"
        )

    def holds(self, key: str) -> bool:
        """Whether a task of the keeper's is a sandbox that is known here, and no container."""
        return False

    async def retire(self) -> None:  # noqa: B027 most kinds keep none
        """End what waits for pods that have not come: the daemon ends in order."""

    def close(self) -> None:  # noqa: B027 most kinds hold nothing
        """Let go of what is held in this process; sandboxes go on."""

    @abstractmethod
    async def create(self, config: SandboxConfig) -> SandboxInfo:
        """Make the boundary, without a network in it yet."""

    @abstractmethod
    async def start(self, sandbox_id: str) -> None:
        """Ready to take containers when it returns."""

    @abstractmethod
    async def stop(self, sandbox_id: str, *, deadline_s: float) -> None: ...

    @abstractmethod
    async def delete(self, sandbox_id: str) -> None: ...

    @abstractmethod
    async def pause(self, sandbox_id: str) -> None: ...

    @abstractmethod
    async def resume(self, sandbox_id: str) -> None: ...

    @abstractmethod
    async def stats(self, sandbox_id: str) -> Stats: ...

    def host_limits(self, spec: PodSpec, resources: Resources) -> Resources:
        """The limits of the pod's cgroup on the host for those that the pod is to have: what its boundary itself needs
        comes on top."""
        return resources

    async def update(
        self, sandbox_id: str, spec: PodSpec, resources: Resources, apply: Callable[[Resources], None]
    ) -> Sequence[str]:
        """The pod is limited anew while it is there, and its boundary follows. spec: the pod as it is to be, with its
        containers as they are; resources: what changes. apply: sets limits of the pod's cgroup on the host, and
        verifies them. Answers, in words, what could not be had."""
        apply(self.host_limits(spec, resources))
        return ()

    async def network_changed(self, sandbox_id: str) -> None:  # noqa: B027 most kinds use the namespace itself
        """The interfaces of its network namespace are others now: what runs has them when it returns."""

    async def measure(self, sandbox_id: str) -> MachineInfo | None:
        """What the machine of a running sandbox is and costs; None where there is none."""
        return None

    async def dial(self, sandbox_id: str, port: int) -> socket.socket:
        """A connection to a TCP port on the loopback of a running sandbox. Refused by kinds without one of theirs."""
        raise Unsupported(f"{self.kind} sandboxes have the loopback of their network namespace", kind=self.kind)

    def phases(self, sandbox_id: str) -> Mapping[str, float]:
        """What parts of the last start took, in milliseconds by name; empty where a start has none."""
        return {}

    def logs(self, config: SandboxConfig) -> Mapping[str, Path]:
        """Where the sandbox itself, not its containers, writes what it does: a word for each file; also when it
        lives no more. NotFound; Unsupported for a kind that writes none."""
        raise Unsupported(f"{self.kind} sandboxes write no log of their own", kind=self.kind)

    async def snapshot(self, sandbox_id: str, directory: Path, *, meanwhile: Callable[[], Awaitable[None]]) -> str:
        """Write the memory of a running sandbox to `directory` (exists, empty); it goes on afterwards. meanwhile: is
        called while everything in it stands still, for the files of that moment. Returns program and version that can
        read it. Refused by kinds that cannot."""
        raise _no_snapshots(self.kind)

    async def restore(self, sandbox_id: str, directory: Path, ids: Mapping[str, str]) -> None:
        """Instead of `start`: what `snapshot` wrote goes on in this sandbox, each task from its `start` on. ids: the
        tasks made here to those of the snapshot. Refused by kinds that cannot."""
        raise _no_snapshots(self.kind)

    async def make_template(self, spec: PodSpec, cgroup: str) -> TemplateInfo:
        """Start a sandbox as pods like `spec` need it and keep it as it is then; they start from that. cgroup: where
        it runs meanwhile. Refused by kinds that cannot."""
        raise Unsupported(f"{self.kind} sandboxes have no templates", kind=self.kind)

    def templates(self) -> list[TemplateInfo]:
        """Those that are kept."""
        return []

    def remove_template(self, template_id: str) -> None:  # noqa: B027 most kinds have none
        """Idempotent."""

    async def prune_templates(self, *, everything: bool) -> Pruned:
        """Remove those from which no pod can start any more, or all of them."""
        return Pruned(removed=[])

    @abstractmethod
    async def recover(self, configs: Mapping[str, SandboxConfig]) -> dict[str, TaskState]:
        """After a restart: take over the sandboxes that should live, answer what tasks are there (by task or
        "task.exec" id), and remove what belongs to none of them."""


# what is about processes of the host's kernel means nothing where the whole of a sandbox's own kernel is written down
_MOOT = ("--ext-unix-sk", "--shell-job", "--file-locks", "--manage-cgroups-mode", "--work-path")


def refuse_words(kind: str, words: Sequence[str]) -> None:
    """Raise Unsupported for a flag of `checkpoint` that cannot be carried out where a kernel of its own is saved."""
    for word in words:
        if (flag := word.partition("=")[0]) not in _MOOT:
            raise Unsupported(f"{flag} is not carried out by {kind} sandboxes", kind=kind, feature=flag)


def _no_checkpoints(task_id: str) -> Unsupported:
    return Unsupported(f"container {task_id} cannot be checkpointed by this kind of sandbox", feature="checkpoint")


def _no_snapshots(kind: str) -> Unsupported:
    return Unsupported(f"{kind} sandboxes cannot be snapshot", kind=kind, feature="snapshot")
