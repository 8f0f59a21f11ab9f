"""What `drupe-oci` asks the daemon, and what it is told to do: the control API's method oci.ask."""

from __future__ import annotations

from typing import Any

from drupe.spec.base import Record, Spec


class OciRun(Record):
    """How a program that drupe-oci was told to run ended."""

    code: int
    stdout: str = ""
    stderr: str = ""


class OciAsk(Spec):
    """A call of the OCI command line. name: what the program was called. argv: without it. cwd: absolute. Descriptor
    root: the caller's "/". text, runs, state: what an earlier answer asked for or gave. code: of a stand-in that
    ended. `oci.act` takes once what an answer had made and opened: stand_in, a pidfd, and the trees by their names."""

    name: str
    argv: tuple[str, ...]
    cwd: str
    text: str | None = None
    runs: dict[str, OciRun] | None = None
    state: Any = None
    code: int = 0


class OciStandIn(Record):
    """A process of the caller's that stands for a workload in a sandbox (decision 27).

    make: the program that makes it the first process of a container, `status` the file where that writes its pid.
    Without: it is a process beside drupe-oci, on its streams or on a new terminal whose master goes to `console`.
    undo: removes it where there will be no sandbox. trees: what to open with open_tree(2), by name. raw: the caller's
    terminal is put back as it was, in the end. reap: the caller waits for it. pid_file: where its number will be told,
    which must be possible before there is one.
    """

    make: list[str] = []
    status: str = ""
    undo: list[str] = []
    trees: dict[str, str] = {}
    console: str = ""
    raw: bool = False
    reap: bool = False
    pid_file: str = ""


class OciFile(Record):
    """path: made anew, with this mode. Refused when something is there."""

    path: str
    text: str
    mode: int


class OciAnswer(Record):
    """What drupe-oci does now, in this order.

    want_text: ask again with what this file holds, "-" being standard input. runs: run these side by side (name to
    argv) and ask again with how they ended. Otherwise: make `write`; say `stdout` and `stderr`; append `log_line` to
    `log`. execute: become this program (or `fallback`, where its first word is gone), each word that is a name of
    `texts` replaced by a path to that text.
    again_s: ask again after so long. Else exit with `code`. hide_cgroup: what is run refuses a hybrid cgroup tree.
    own_nulls: what is executed gives its streams away, which must then not be the host's /dev/null.

    stand_in: make one, and ask again. standing: it has its sandbox, and is not undone any more. pid_file: write its pid
    there. wait: until it ends, and exit with its code. act: ask `oci.act` the next time.
    """

    want_text: str = ""
    stand_in: OciStandIn | None = None
    standing: bool = False
    pid_file: str = ""
    wait: bool = False
    act: bool = False
    runs: dict[str, list[str]] = {}
    hide_cgroup: bool = False
    own_nulls: bool = False
    write: list[OciFile] = []
    stdout: str = ""
    stderr: str = ""
    log: str = ""
    log_line: str = ""
    execute: list[str] = []
    fallback: str = ""
    texts: dict[str, str] = {}
    again_s: float | None = None
    code: int = 0
    state: Any = None
