"""What the keeper is told and what it answers, as typed values (docs/keeper.md)."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import msgspec


class Io(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Standard streams of a task.

    mode: "pipes" (the keeper holds them; `stdin`: one for input too), "tty" (argv contains ``{console}``; `rows` and
    `cols`: its first size), "fds" (those the caller sends), "null".
    """

    mode: Literal["pipes", "tty", "fds", "null"] = "pipes"
    stdin: bool = False
    rows: int | None = None
    cols: int | None = None


class LogFile(msgspec.Struct, frozen=True, kw_only=True):
    """Where a task's output is written. max_bytes 0: never rotated. max_files counts the current file too."""

    path: str
    format: Literal["cri", "json-file"] = "cri"
    max_bytes: int = 0
    max_files: int = 1


class Exit(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How a task ended. code: exit code, or 128 + signal. at: Unix time in seconds.

    unknown: it ended out of everybody's sight (keeper and daemon both gone, or a kernel before 6.15).
    log_dropped: lines that did not get into its log. exit_file_error: why its exit file could not be written.
    """

    task: str
    pid: int
    code: int
    signal: int
    core: bool
    at: float
    unknown: bool = False
    log_dropped: int = 0
    exit_file_error: str = ""


class TaskInfo(msgspec.Struct, kw_only=True):
    """A task as `Keeper.list` tells of it. exit: set once it has ended and its output is drained."""

    task: str
    pid: int
    running: bool
    started_at: float
    exit: Exit | None = None
    log_dropped: int = 0


class RunResult(msgspec.Struct, kw_only=True):
    """How a helper program ended: exit code (128 + signal when killed) and the head and tail of its output."""

    exit: int
    signal: int
    stdout: str
    stderr: str
    timed_out: bool


class Mount(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One call of mount(2).

    flags: words of mount(8), such as "bind", "rec", "ro", "private". cwd: for relative paths in `data` and `source`.
    tree: name of a descriptor (open_tree(2)) that is mounted instead.
    """

    target: str
    source: str = ""
    fstype: str = ""
    flags: tuple[str, ...] = ()
    data: str = ""
    cwd: str | None = None
    tree: str | None = None


class Answer(NamedTuple):
    """The answer to a request: its fields, and descriptors by name, which the receiver owns."""

    ok: dict[str, Any]
    fds: dict[str, int]


class Created(NamedTuple):
    """A new task. attachment: number of the attachment that was asked for along with it."""

    pid: int
    attachment: int | None
