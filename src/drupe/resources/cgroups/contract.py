"""The cgroups of pods and containers: one contract for cgroup v1 and v2.

A path is absolute below the cgroup root, such as "/drupe/pod1/web", and stands for one directory in v2, for one in
every hierarchy in v1. All calls block for microseconds, but for kill_all, freeze, thaw and delete, which wait for the
kernel under a deadline: run those in a thread.
"""

from __future__ import annotations

import enum
import signal
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from drupe.spec import Resources, Stats


class CgroupEvent(enum.StrEnum):
    """What a watcher can tell. OOM: the limit was hit. OOM_KILL: a process was killed. REMOVED: the cgroup is gone."""

    OOM = "oom"
    OOM_KILL = "oom_kill"
    MEMORY_PRESSURE = "memory_pressure"
    CPU_PRESSURE = "cpu_pressure"
    IO_PRESSURE = "io_pressure"
    REMOVED = "removed"


class Setting(NamedTuple):
    """One file to write. name: of the wish behind it.

    like: how it reads back: "exact", "bytes" (whole pages), "list" (of CPUs), "line" (one of many), "oom", "raw".
    """

    controller: str
    file: str
    value: str
    like: str = "exact"
    name: str = ""


class Watcher(Protocol):
    """Events of one cgroup. The descriptor is readable when there is something to read: made for an event loop."""

    def fileno(self) -> int: ...
    def read(self) -> list[CgroupEvent]:
        """What happened since the last call; never blocks."""
        ...

    def close(self) -> None: ...


class Cgroups(Protocol):
    """One cgroup tree. Every method may raise PermissionDenied (a read-only tree) and InvalidArgument (bad path)."""

    version: int
    controllers: frozenset[str]

    def check(self, resources: Resources) -> None:
        """Raise Unsupported naming the controller if a limit can't be held here, InvalidArgument if it is nonsense."""

    def resources_to_oci(self, resources: Resources) -> dict[str, Any]:
        """`linux.resources` (without devices) for crun and runc. Raises what `check` raises."""
        ...

    def create(self, path: str, resources: Resources) -> None:
        """Make the cgroup (and its parents) with these limits. An existing one is taken over."""

    def apply(self, path: str, resources: Resources) -> None:
        """Change the limits given. Raises NotFound, and InvalidArgument or ResourceExhausted if the kernel refuses."""

    def verify(self, path: str, resources: Resources) -> list[str]:
        """Read every setting back; one line for each that is not as asked. Raises NotFound."""
        ...

    def exists(self, path: str) -> bool: ...

    def children(self, path: str) -> list[str]:
        """Names of the cgroups directly below; empty if it is gone."""
        ...

    def attach(self, path: str, pid: int) -> None:
        """Move a process into the cgroup. Raises NotFound (cgroup or process)."""

    def join_files(self, path: str) -> list[str]:
        """Files by which a new process moves itself into the cgroup, writing 0 to each; empty where it cannot: then
        somebody else must move it (`attach`, or the OCI runtime)."""
        ...

    def procs_file(self, path: str, controller: str = "") -> str:
        """The file that takes a pid into the cgroup; in v1 into that of one hierarchy only: with this controller."""
        ...

    def room(self, path: str) -> tuple[int, int]:
        """Memory in bytes and processors that what runs there may have at most; 0 for no limit."""
        ...

    def restrict_devices(self, path: str, rules: Sequence[Mapping[str, Any]]) -> None:
        """Allow the devices of `linux.resources.devices` (runtime-spec) and no others, verified. Only where
        `join_files` has any. Raises NotFound, InternalError when the kernel took something else."""

    def stats(self, path: str) -> Stats:
        """Counters of the cgroup and those below. Raises NotFound."""
        ...

    def pids(self, path: str) -> list[int]:
        """Processes in the cgroup and those below; empty if it is gone."""
        ...

    def oom_kills(self, path: str) -> int:
        """How many processes the kernel killed for memory; 0 if the cgroup is gone: read it before deleting."""
        ...

    def kill_all(self, path: str, signum: int = signal.SIGKILL, *, timeout_s: float = 5.0) -> int:
        """Signal every process, none missed though they fork; returns how many. SIGKILL thaws a frozen cgroup."""
        ...

    def freeze(self, path: str, *, timeout_s: float = 5.0) -> None:
        """Stop all processes and wait for the kernel's word. Raises NotFound, DeadlineExceeded (and thaws again)."""

    def thaw(self, path: str, *, timeout_s: float = 5.0) -> None:
        """Let them run again, confirmed. Raises NotFound, DeadlineExceeded."""

    def is_frozen(self, path: str) -> bool:
        """Whether all processes are stopped, or will be once there are some. Raises NotFound."""
        ...

    def delete(self, path: str, *, timeout_s: float = 2.0) -> None:
        """Remove the cgroup and those below; gone already is success. Raises InvalidState if processes live in it."""

    def watch(self, path: str, *, pressure: Mapping[str, float] | None = None) -> Watcher:
        """Watch for OOM, and for pressure: "memory", "cpu", "io" to the stall in ms per second that is an event.

        Raises NotFound, Unsupported (a pressure this version cannot tell).
        """
        ...
