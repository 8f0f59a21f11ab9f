"""What a child of the zygote becomes: one process of a container (or the compiler), confined before a guest is near.

The order is the protection: cgroups first, then everything that needs root's rights or the host's files, then the
namespaces, then the user, then no rights at all, then the system-call filter. Only then is code that came from a
guest's module mapped, and run when the byte comes that `start` sends.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
from contextlib import suppress
from typing import NamedTuple, NoReturn

import msgspec

from drupe.linux import processes
from drupe.linux.open_tree import open_tree
from drupe.linux.unix_sockets import recv_fds
from drupe.sandboxers.wasm import filter as system_calls
from drupe.sandboxers.wasm.engine import Engine, Loaded, ModuleRefused, Trapped
from drupe.sandboxers.wasm.job import PACKET_BYTES, Call, Job, Report
from drupe.sandboxers.wasm.view import View

_KINDS = {
    "net": processes.CLONE_NEWNET,
    "ipc": processes.CLONE_NEWIPC,
    "uts": processes.CLONE_NEWUTS,
    "mnt": processes.CLONE_NEWNS,
    "user": processes.CLONE_NEWUSER,
}
_DECODER = msgspec.json.Decoder(Job)
_CALL = msgspec.json.Decoder(Call)
NAMES = ("stdin", "stdout", "stderr")
CODE_NAME = "code"


class World(NamedTuple):
    """What children inherit: the engine, the empty mount namespace, filters (with sockets, and without), and where the
    process's command line stands."""

    engine: Engine
    empty: int
    filters: tuple[bytes, bytes]
    command_line: processes.CommandLine


def serve(sock: socket.socket, world: World) -> NoReturn:
    """Wait for a job and become it. Without one (whoever would send it has gone), end."""
    data, fds = recv_fds(sock, PACKET_BYTES)
    if not data:
        os._exit(0)
    job = _DECODER.decode(data)
    stage = ["place"]
    try:
        _become(job, dict(zip(job.fds, fds, strict=True)), sock, world, stage)
    except ModuleRefused as error:
        _answer(sock, Report(error=str(error), stage="module"))
    except MemoryError:
        _answer(sock, Report(error="it needs more memory than is allowed", stage=stage[0]))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _answer(sock, Report(error=f"{where}{error.strerror or error}", stage=stage[0]))
    except Exception as error:  # a bug: said to whoever asked, never a traceback in a container's output
        _answer(sock, Report(error=f"{type(error).__name__}: {error}", stage=f"bug in {stage[0]}"))
    os._exit(125)


def _become(job: Job, fds: dict[str, int], sock: socket.socket, world: World, stage: list[str]) -> NoReturn:
    processes.set_name(job.name or "drupe-wasm")
    world.command_line.show(job.argv or (job.name,))
    opened = _place(job, world)
    stage[0] = "streams"
    _take_streams([fds[name] for name in NAMES])
    _close_all_but({sock.fileno(), *opened, *(fds[name] for name in job.fds if name not in NAMES)})
    _lead_session(job)
    stage[0] = "limits"
    _limit(job)
    stage[0] = "confinement"
    if opened.code >= 0:
        os.fchdir(opened.code)
        os.close(opened.code)
    _drop(job, world)
    stage[0] = "module"
    if job.kind == "compile":
        _compile(job, fds, sock, world.engine)
    loaded = _load(job, world.engine) if job.kind == "run" else None
    if job.later:
        world.engine.warm_up(threads=True)
    _answer(sock, Report())
    job = _started(job, opened.fifo, sock)
    world.command_line.show(job.argv or (job.name,))
    _run(loaded, job, opened.words)


class _Opened(NamedTuple):
    """Descriptors from the host's files, taken while those are in sight; -1: none. code: a tree (open_tree(2))."""

    fifo: int
    words: int
    code: int


def _place(job: Job, world: World) -> _Opened:
    """Join cgroups and namespaces."""
    for file in job.place.cgroup_files:
        _write(file, b"0")
    if job.oom_score_adj is not None:
        _write("/proc/self/oom_score_adj", str(job.oom_score_adj).encode())
    spaces = [(kind, os.open(path, os.O_RDONLY | os.O_CLOEXEC)) for kind, path in job.place.namespaces.items()]
    opened = _Opened(
        os.open(job.fifo, os.O_RDWR | os.O_CLOEXEC) if job.fifo else -1,
        os.open(job.words, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600) if job.words else -1,
        open_tree(job.code) if job.code else -1,
    )
    view = None if "mnt" in job.place.namespaces else View(job.place)
    for kind, space in sorted(spaces, key=lambda space: space[0] == "user"):  # the user's last: it takes rights away
        if kind == "user" and view is not None:
            view.enter(world.empty)
            view = None
        processes.setns(space, _KINDS[kind])
        os.close(space)
    if view is not None:
        view.enter(world.empty)
    return opened


def _write(path: str, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def _take_streams(fds: list[int]) -> None:
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)


def _close_all_but(kept: set[int]) -> None:
    """What was inherited of the zygote, above all."""
    first = len(NAMES)
    for fd in sorted(fd for fd in kept if fd >= first):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def _lead_session(job: Job) -> None:
    if job.tty:
        processes.take_terminal(0)
    else:
        os.setsid()


def _limit(job: Job) -> None:
    os.umask(job.umask)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for limit in job.rlimits:
        resource.setrlimit(limit.number, (limit.soft, limit.hard))


def _drop(job: Job, world: World) -> None:
    processes.drop_bounding_set()
    os.setgroups(job.groups)
    os.setresgid(job.gid, job.gid, job.gid)
    os.setresuid(job.uid, job.uid, job.uid)
    processes.drop_capabilities()
    processes.no_new_privileges()
    processes.load_filter(system_calls.own(world.filters[0 if job.kind == "run" else 1]))


def _load(job: Job, engine: Engine) -> Loaded:
    """The code lies in the working directory: a tree of its own, from which no path leads anywhere, and which is out
    of reach again before the guest runs."""
    try:
        return engine.load(CODE_NAME, job.form, job.limits)
    finally:
        os.chdir("/")


def _compile(job: Job, fds: dict[str, int], sock: socket.socket, engine: Engine) -> NoReturn:
    with open(fds["module"], "rb") as source:  # noqa: PTH123 - a descriptor
        form, code = engine.compile(source.read(), fuel=bool(job.limits.fuel))
    with open(fds["output"], "wb") as output:  # noqa: PTH123 - as above
        output.write(code)
    _answer(sock, Report(form=form))
    os._exit(0)


def _started(job: Job, fifo: int, sock: socket.socket) -> Job:
    """Wait until the guest is to run; the job as it is then. Ends when whoever wanted it has gone."""
    if fifo >= 0:
        sock.close()
        os.read(fifo, 1)
        os.close(fifo)
    elif job.later:
        data, fds = recv_fds(sock, PACKET_BYTES)
        if not data:
            os._exit(0)
        call = _CALL.decode(data)
        _take_streams(fds)
        job = msgspec.structs.replace(job, argv=call.argv, env=call.env)
    elif job.hold and not os.read(sock.fileno(), 1):
        os._exit(0)
    return job


def _run(loaded: Loaded | None, job: Job, words: int) -> NoReturn:
    if loaded is None:
        while True:
            signal.pause()
    try:
        code = loaded.run(job)
    except Trapped as trap:
        _say(trap, words)
        os.abort()
    os._exit(code & 0xFF)


def _say(trap: Trapped, words: int) -> None:
    line = f"drupe: the module was ended: {trap}\n".encode()
    with suppress(OSError):
        if words >= 0:
            os.write(words, str(trap).encode()[:1024])
    with suppress(OSError):
        os.write(2, line)


def _answer(sock: socket.socket, report: Report) -> None:
    with suppress(OSError):
        os.write(sock.fileno(), msgspec.json.encode(report))  # the filter may have no sendto(2)


def quiet_signals() -> None:
    """As a fresh program has them: Python's own Ctrl-C handler would never run while a guest does."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
