"""Where the daemon is, and starting it on demand."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from drupe.errors import DrupeError, PermissionDenied, Unavailable
from drupe.linux.unix_sockets import peer_credentials
from drupe.rpc.client import connect_error

START_TIMEOUT_S = 10.0
_LOG_TAIL_BYTES = 2000
_PF_EXITING = 0x4  # of the flags in /proc/PID/stat (proc(5))

# sh(1) puts it in the background and ends: the daemon is init's child, and never our zombie
_BACKGROUND = 'exec "$@" &'


def default_root() -> Path:
    """What lasts (images, volumes, journal): $DRUPE_ROOT, else /var/lib/drupe."""
    return Path(os.environ.get("DRUPE_ROOT") or "/var/lib/drupe")


def wanted_root(root: Path | None = None) -> str:
    """The state directory that the daemon must have: `root`, else $DRUPE_ROOT; "" where nobody names one."""
    return str(root or os.environ.get("DRUPE_ROOT") or "")


def default_run() -> Path:
    """What a reboot clears (sockets, bundles): $DRUPE_RUN, else /run/drupe."""
    return Path(os.environ.get("DRUPE_RUN") or "/run/drupe")


def socket_path(run: Path | None = None) -> str:
    """The control socket: in `run` when given, else $DRUPE_SOCKET, else in the default run directory."""
    if run is None and (path := os.environ.get("DRUPE_SOCKET")):
        return path
    return str((run or default_run()) / "drupe.sock")


def ensure_daemon(
    path: str | None = None, *, root: Path | None = None, run: Path | None = None, timeout_s: float = START_TIMEOUT_S
) -> str:
    """The path of a control socket that answers; starts the daemon when none does.

    Raises Unavailable with the end of the daemon's log when it does not come up within `timeout_s`, PermissionDenied
    when this user may not use or start it.
    """
    path = path or socket_path(run)
    if _answers(path):
        return path
    root, run = root or default_root(), run or default_run()
    with _start_lock(run):
        if not _answers(path):  # another program may have started it while we waited for the lock
            try:
                _start(path, root, run, timeout_s)
            except Unavailable:  # because of one that was on its way, and whose starter was killed?
                if not _answers(path):
                    raise
    return path


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError as error:
            raise connect_error(path, error) from None
        return not _is_ending(peer_credentials(probe).pid)


def _is_ending(pid: int) -> bool:
    """Whether a process has ended or is about to: of one that was killed the socket takes connections to the last."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return pid > 0 and Path("/proc/self").exists()  # 0: in a PID namespace that we cannot see
    return bool(int(stat.rpartition(")")[2].split()[6]) & _PF_EXITING)


@contextmanager
def _start_lock(run: Path) -> Iterator[None]:
    """Only one program at a time starts the daemon of a run directory (flock(2))."""
    try:
        run.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(run / "start.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except PermissionError as error:
        raise PermissionDenied(
            f"may not start the daemon in {run}", cause=error.strerror or "", hint="run as root"
        ) from None
    except OSError as error:
        raise Unavailable(f"cannot use the run directory {run}", cause=error.strerror or str(error)) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _start(path: str, root: Path, run: Path, timeout_s: float) -> None:
    import subprocess

    argv = [sys.executable, "-m", "drupe", "--root", str(root), "--run", str(run), "serve", "--socket", path]
    log = run / "daemon.log"
    ready, ready_write = os.pipe()
    try:
        with log.open("ab") as output:
            subprocess.run(
                ["/bin/sh", "-c", _BACKGROUND, "sh", *argv],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=True, start_new_session=True,
                pass_fds=(ready_write,), env={**os.environ, "DRUPE_READY_FD": str(ready_write)},
            )  # fmt: skip
        os.close(ready_write)
        ready_write = -1
        _await_ready(ready, log, timeout_s)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable("cannot start the daemon", stage="daemon", cause=str(error)) from None
    finally:
        os.close(ready)
        if ready_write >= 0:
            os.close(ready_write)


def _await_ready(ready: int, log: Path, timeout_s: float) -> None:
    """Read the daemon's one line: "ready", or "error: …"; the end of file means it died."""
    deadline = time.monotonic() + timeout_s
    said = b""
    while not said.endswith(b"\n"):
        if not select.select([ready], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise Unavailable(
                f"the daemon did not come up within {timeout_s:g} s",
                stage="daemon",
                cause=_tail(log),
                hint=f"see {log}",
            )
        chunk = os.read(ready, 4096)
        if not chunk:
            break
        said += chunk
    line = said.decode(errors="replace").strip()
    if line != "ready":
        reason = line.removeprefix("error: ") if line else _tail(log)
        raise Unavailable("the daemon did not start", stage="daemon", cause=reason, hint=f"see {log}")


def _tail(log: Path) -> str:
    with suppress(OSError):
        lines = log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip().splitlines()
        return " | ".join(lines[-5:])
    return ""


def main() -> int:
    """`python -m drupe.api.daemon`, for programs of other languages: returns once a daemon answers, or says why not."""
    try:
        ensure_daemon()
    except DrupeError as error:
        print(error, f"hint: {error.hint}" if error.hint else "", sep="\n", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
