"""How a fork of the warm process becomes what the client's own Python would be, or finds that it cannot.

Everything that execve(2) hands down and a command can notice is compared or taken over: user and groups, capabilities,
namespaces, root and working directory, limits, priority, processors, signals, umask, environment, locale, descriptors.
"""

from __future__ import annotations

import fcntl
import locale
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from drupe.cli.request import Request

_NAMESPACES = ("ipc", "mnt", "net", "pid", "user", "uts")
_SAME_STATUS = (
    "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp",
    "Seccomp_filters",
)  # fmt: skip
_RESOURCES = range(16)  # RLIMIT_CPU to RLIMIT_RTTIME (getrlimit(2))
# Python reads its PYTHON… variables before all else; these two mean nothing to a process that has started
_HARMLESS = (b"PYTHONDONTWRITEBYTECODE", b"PYTHONUNBUFFERED")
_FIRST_FREE_FD = 3
_POSIX_LOCALES = ("C", "POSIX")
_TOLERANT_LOCALES = ("C.UTF-8", "C.utf8", "UTF-8")  # where Python's standard streams use surrogateescape


class CannotAdopt(Exception):
    """This process cannot become like the client: the client has to do it itself."""


def check_same(pid: int) -> None:
    """Raise CannotAdopt unless process `pid` is of our user, rights, namespaces and root."""
    for name in _NAMESPACES:
        _same(name, Path(f"/proc/{pid}/ns/{name}").readlink(), Path(f"/proc/self/ns/{name}").readlink())
    theirs, ours = Path(f"/proc/{pid}/root/.").stat(), Path("/").stat()
    _same("root", (theirs.st_dev, theirs.st_ino), (ours.st_dev, ours.st_ino))
    status, own = read_status(pid), read_status("self")
    for key in _SAME_STATUS:
        _same(key, status.get(key), own.get(key))
    _same("label", _label(pid), _label("self"))
    _same("scheduler", os.sched_getscheduler(pid), os.sched_getscheduler(0))


def _same(what: str, theirs: object, ours: object) -> None:
    if theirs != ours:
        raise CannotAdopt(what)


def read_status(pid: int | str) -> dict[str, str]:
    """/proc/PID/status (proc(5))."""
    lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _label(pid: int | str) -> bytes:
    # EINVAL where there is no security module
    with suppress(OSError):
        return Path(f"/proc/{pid}/attr/current").read_bytes()
    return b""


def take_limits(pid: int) -> None:
    """Resource limits, nice value, processors and OOM score of process `pid`. Raises CannotAdopt where forbidden."""
    try:
        for kind in _RESOURCES:
            if (limit := resource.prlimit(pid, kind)) != resource.getrlimit(kind):
                resource.setrlimit(kind, limit)
        if (nice := os.getpriority(os.PRIO_PROCESS, pid)) != os.getpriority(os.PRIO_PROCESS, 0):
            os.setpriority(os.PRIO_PROCESS, 0, nice)
        if (processors := os.sched_getaffinity(pid)) != os.sched_getaffinity(0):
            os.sched_setaffinity(0, processors)
        if (score := Path(f"/proc/{pid}/oom_score_adj").read_text()) != Path("/proc/self/oom_score_adj").read_text():
            Path("/proc/self/oom_score_adj").write_text(score)
    except (OSError, ValueError) as error:
        raise CannotAdopt(f"limits: {error}") from None


def take_signals(pid: int, blocked: int) -> None:
    """The signals that process `pid` ignores, and those that it said were blocked."""
    ignored = int(read_status(pid)["SigIgn"], 16)
    for number in signal.valid_signals():
        if ignored & 1 << (number - 1) and number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [n for n in signal.valid_signals() if blocked & 1 << (n - 1)])


def take_descriptors(conn: socket.socket, request: Request) -> socket.socket:
    """Give the client's descriptors their numbers, enter its working directory; returns `conn` out of their way."""
    try:
        os.fchdir(request.directory)
        above = max(request.descriptors, default=2) + _FIRST_FREE_FD
        moved = fcntl.fcntl(conn, fcntl.F_DUPFD_CLOEXEC, above)
        sources = {goal: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for goal, fd in request.descriptors.items()}
    except OSError as error:
        raise CannotAdopt(f"descriptors: {error}") from None
    for fd in (conn.detach(), request.directory, *request.descriptors.values(), 0, 1, 2):
        with suppress(OSError):  # the standard ones may be closed
            os.close(fd)
    for goal, source in sources.items():
        os.dup2(source, goal)
        os.close(source)
    return socket.socket(fileno=moved)


def check_python_variables(environment: Mapping[bytes, bytes]) -> None:
    """Raise CannotAdopt when Python itself would start otherwise than it did for us."""
    for name in {*environment, *os.environb}:
        if name.startswith(b"PYTHON") and name not in _HARMLESS:
            _same(os.fsdecode(name), environment.get(name), os.environb.get(name))


def environment_of(texts: Iterable[bytes]) -> dict[bytes, bytes]:
    """As Python reads it: of a name that is there twice, the first counts."""
    result: dict[bytes, bytes] = {}
    for text in texts:
        name, _, value = text.partition(b"=")
        result.setdefault(name, value)
    return result


def take_environment(environment: Mapping[bytes, bytes]) -> str:
    """Environment, locale, time zone; returns how the standard streams treat what is no UTF-8."""
    for name in [name for name in os.environb if name not in environment]:
        del os.environb[name]
    for name, value in environment.items():
        if os.environb.get(name) != value:
            os.environb[name] = value
    time.tzset()
    return _take_locale()


def _take_locale() -> str:
    """LC_CTYPE as Python sets it at its start (PEP 538, PEP 540)."""
    try:
        name = locale.setlocale(locale.LC_CTYPE, "")
    except locale.Error:
        name = "C"
    if name in _POSIX_LOCALES:
        try:
            locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
        except locale.Error:
            raise CannotAdopt("locale: there is no C.UTF-8") from None
        if not os.environ.get("LC_ALL"):
            os.environ["LC_CTYPE"] = "C.UTF-8"
        return "surrogateescape"
    if locale.nl_langinfo(locale.CODESET) != "UTF-8":
        raise CannotAdopt(f"locale {name}")
    return "surrogateescape" if name in _TOLERANT_LOCALES else "strict"


def open_streams(errors: str) -> None:
    """sys.stdin, stdout and stderr, as Python opens them at its start; None for a closed one."""
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            stream = _open_stream(fd, mode, "backslashreplace" if fd == 2 else errors, unbuffered=unbuffered)
        except OSError:
            stream = None
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _open_stream(fd: int, mode: str, errors: str, *, unbuffered: bool) -> object:
    import io

    raw_only = unbuffered and mode == "w"
    binary = open(fd, f"{mode}b", buffering=0 if raw_only else -1, closefd=False)  # noqa: SIM115
    return io.TextIOWrapper(
        binary,
        encoding="utf-8",
        errors=errors,
        newline="\n",
        line_buffering=not unbuffered and (fd == 2 or os.isatty(fd)),
        write_through=unbuffered,
    )
