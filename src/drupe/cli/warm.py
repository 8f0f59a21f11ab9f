"""The warm process: every verb imported once, and a fork of it for each command (`python -m drupe.cli.warm RUN_DIR`).

Starting Python and importing costs several times what the daemon needs to run a pod. The daemon starts this process;
the native client (`native/client`) connects to RUN_DIR/cli.sock and stands for the command towards its shell. This one
has a single thread and no connection to the daemon. It ends with the daemon (its standard input ends), and when drupe's
code on disk is no longer what it has loaded. A client that is refused runs Python itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import NoReturn

import drupe
from drupe.cli import adopt, borrowed, main, request
from drupe.cli.group import LazyGroup
from drupe.cli.request import BadRequest
from drupe.linux.unix_sockets import peer_credentials

_BACKLOG = 128
_PATIENCE_S = 2.0  # for a client that connects and says nothing
_LIFELINE = 0
_ALSO = ("click._textwrap", "drupe.api.daemon", "drupe.rpc.client", "drupe.spec.control", "threading")

Stamp = tuple[int, int, int]


class Code:
    """What this process has loaded, and what its forks would load, and whether it is still the same."""

    def __init__(self) -> None:
        self._stamps = {path: _stamp(path) for path in self._files()}

    @staticmethod
    def _files() -> set[str]:
        files = {file for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))}
        package = Path(drupe.__file__).parent
        ours = {str(path) for path in package.rglob("*.py")}
        # of other packages their directory: an installer replaces files, it does not write into them
        return {sys.executable, *ours, *(str(Path(file).parent) for file in files - ours)}

    def is_stale(self) -> bool:
        """Whether one of them was changed or removed."""
        return any(_stamp(path) != stamp for path, stamp in self._stamps.items())


def _stamp(path: str) -> Stamp | None:
    try:
        info = os.stat(path)  # noqa: PTH116 # a hundred of them for each command
    except OSError:
        return None
    return info.st_mtime_ns, info.st_size, info.st_ino


class Server:
    """Accepts commands and forks; tells each client how its fork ended."""

    def __init__(self, listener: socket.socket, code: Code) -> None:
        self._listener = listener
        self._code = code
        self._home = os.fsencode(os.path.realpath(Path(sys.executable).parent))
        self._running: dict[int, tuple[int, socket.socket]] = {}  # pidfd → pid, connection
        self._poll = select.poll()
        for fd in (_LIFELINE, listener.fileno()):
            self._poll.register(fd, select.POLLIN)

    def run(self) -> None:
        """Until the daemon has ended or the code has changed."""
        while True:
            for fd, _ in self._poll.poll():
                if fd == _LIFELINE:
                    return
                if fd in self._running:
                    self._reap(fd)
                elif not self._accept():
                    return

    def _accept(self) -> bool:
        try:
            conn, _ = self._listener.accept()
        except OSError:
            return True  # it has gone again, or descriptors have run out: others go on
        with conn:
            if self._code.is_stale():
                request.report(conn, request.REFUSED)
                return False
            peer = peer_credentials(conn)
            if peer.uid == os.geteuid():
                request.report(conn, request.GREETING)
                self._fork(conn, peer.pid)
        return True

    def _fork(self, conn: socket.socket, client: int) -> None:
        try:
            pid = os.fork()
        except OSError:
            return  # the client sees the end of the connection
        if pid == 0:
            self._become_child(conn, client)
        pidfd = os.pidfd_open(pid)
        self._running[pidfd] = (pid, conn.dup())
        self._poll.register(pidfd, select.POLLIN)

    def _become_child(self, conn: socket.socket, client: int) -> NoReturn:
        code = 1
        try:
            self._listener.close()
            for pidfd, (_, other) in self._running.items():
                os.close(pidfd)
                other.close()
            code = serve(conn, client, self._home)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)

    def _reap(self, pidfd: int) -> None:
        pid, conn = self._running.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        with conn:
            request.report(conn, request.DIED, status)


def serve(conn: socket.socket, client: int, home: bytes) -> int:
    """In the fork: read the request of process `client`, become like it, run the command. Returns the exit code."""
    os.setpgid(0, 0)
    conn.settimeout(_PATIENCE_S)
    try:
        wanted = request.receive(conn)
        if (wanted.version, wanted.home) != (drupe.__version__.encode(), home):
            raise BadRequest("another drupe")
        conn = _adopt(conn, client, wanted)
    except (BadRequest, adopt.CannotAdopt, OSError):
        request.report(conn, request.REFUSED)
        return 0
    os.umask(wanted.umask)
    _die_with(conn)
    pidfd = os.pidfd_open(os.getpid())
    request.report(conn, request.RUNS, os.getpid(), fds=(pidfd,))
    os.close(pidfd)
    return _run(conn, [os.fsdecode(word) for word in wanted.argv])


def _adopt(conn: socket.socket, client: int, wanted: request.Request) -> socket.socket:
    environment = adopt.environment_of(wanted.environment)
    adopt.check_same(client)
    adopt.check_python_variables(environment)
    adopt.take_limits(client)
    errors = adopt.take_environment(environment)
    adopt.take_signals(client, wanted.blocked)
    conn = adopt.take_descriptors(conn, wanted)
    adopt.open_streams(errors)
    return conn


def _die_with(conn: socket.socket) -> None:
    """From now on the end of the client is ours, as if it were this process (fcntl(2) F_SETSIG)."""
    # It sends nothing more: whatever happens on the connection is its end.
    fcntl.fcntl(conn, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(conn, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(conn, fcntl.F_SETFL, fcntl.fcntl(conn, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
    try:
        conn.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return
    os._exit(0)  # it has ended already


def _run(conn: socket.socket, argv: list[str]) -> int:
    borrowed.mark()
    sys.argv = ["drupe", *argv]
    try:
        code = _exit_code(main.main(argv))
    except borrowed.HandBack:
        request.report(conn, request.REFUSED)
        return 0
    except SystemExit as end:
        code = _exit_code(end.code)
    code = _finish(code)
    # The client ends as soon as it hears of it: nothing of it may still be ours.
    number = conn.fileno()
    os.chdir("/")
    os.closerange(0, number)
    request.report(conn, request.EXIT, code)
    return code


def _exit_code(value: object) -> int:
    return value & 0xFF if isinstance(value, int) else int(value is not None)


def _finish(code: int) -> int:
    """What the interpreter does at its end: wait for threads, call the exit functions, write out what is left."""
    import atexit
    import threading

    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
    except OSError:
        return 120
    return code


def import_all() -> None:
    """Import every verb, and what verbs import when they run."""
    from drupe.cli.startup import import_msgspec

    import_msgspec()
    for name in _ALSO:
        importlib.import_module(name)
    _import_verbs(main.cli)


def _import_verbs(group: LazyGroup) -> None:
    import click

    for name in group.verbs:
        command = group.get_command(click.Context(group), name)
        if isinstance(command, LazyGroup):
            _import_verbs(command)


def listen(path: Path) -> socket.socket:
    """The socket at `path`, for our own user only; it takes the place of one that was left there."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(old)
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener


def run_warm(run: Path) -> int:
    """Serve commands at RUN/cli.sock; returns when it is no longer wanted."""
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # what the daemon was given by whoever started it
    if sys.getfilesystemencoding() != "utf-8":
        return 0  # names of files would be read otherwise than most clients do
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))  # meanwhile the daemon and its pods go first
    import_all()
    code = Code()
    gc.collect()
    gc.freeze()
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    os.chdir("/")
    with listen(run / "cli.sock") as listener:
        Server(listener, code).run()
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(run_warm(Path(sys.argv[1])))
