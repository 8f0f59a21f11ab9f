"""What a child of the zygote is told to be, and what it answers: one packet each way (docs/decisions/0012)."""

from __future__ import annotations

import msgspec

PACKET_BYTES = 192 * 1024
MODULE = "module"  # a core module: WASI preview 1
COMPONENT = "component"  # a component: WASI preview 2


class Bind(msgspec.Struct, frozen=True, omit_defaults=True):
    """A mount of the container. source: a path of the keeper's mount namespace; "" is a new tmpfs with `data`."""

    target: str
    source: str = ""
    read_only: bool = False
    data: str = ""


class Rlimit(msgspec.Struct, frozen=True):
    """number: as of the module `resource`."""

    number: int
    soft: int
    hard: int


class Place(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a process lives. cgroup: its path; cgroup_files take it in, for a 0 that it writes. namespaces: kind, as in
    /proc/PID/ns, to path.

    With "mnt" among the namespaces it joins the view of another process; else `root` and `binds` make its own.
    root: the container's root ("" is an empty one). preopens: (path, guest's name, writable).
    """

    cgroup: str = ""
    cgroup_files: tuple[str, ...] = ()
    namespaces: dict[str, str] = {}
    root: str = ""
    root_read_only: bool = False
    binds: tuple[Bind, ...] = ()
    preopens: tuple[tuple[str, str, bool], ...] = ()


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a guest may use; -1 is no limit but the engine's own. fuel: 0 is without counting."""

    memory_bytes: int = -1
    table_elements: int = -1
    instances: int = -1
    fuel: int = 0


class Job(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """kind: "run" a module, be "idle", or "compile" one. The descriptors that come along are named in `fds`:
    stdin, stdout, stderr always; module and output for the compiler.

    code: the directory that holds the compiled code to run. fifo: wait there for a byte before the guest runs ("" runs
    at once; with `hold` the byte comes over the socket; with `later` a `Call` comes). words: a file for how a trap came
    about.
    """

    kind: str
    fds: tuple[str, ...] = ()
    place: Place = Place()
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    rlimits: tuple[Rlimit, ...] = ()
    oom_score_adj: int | None = None
    umask: int = 0o22
    tty: bool = False
    code: str = ""
    fifo: str = ""
    hold: bool = False
    later: bool = False
    words: str = ""
    name: str = ""
    form: str = MODULE
    argv: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    network: bool = False
    limits: Limits = Limits()


class Call(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a child that was made ready ahead is to run. It brings stdin, stdout and stderr."""

    argv: tuple[str, ...]
    env: tuple[str, ...] = ()


class Report(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer: ready, or why not. stage: what it was at. form: what the compiler found the module to be."""

    error: str = ""
    stage: str = ""
    form: str = ""
