"""The process at the other end of a Unix socket (unix(7), SO_PEERCRED; pidfd_send_signal(2))."""

from __future__ import annotations

import errno
import os
import signal
import socket
from pathlib import Path

from drupe.linux.unix_sockets import peer_credentials, short_name


def kill_peer(path: Path, *, uid: int | None = None) -> bool:
    """SIGKILL to the process that listens at `path`, if it is that user's; whether there was one. Never to ourselves:
    OSError EPERM."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            with short_name(path) as name:
                sock.connect(name)
            listener, owner, _ = peer_credentials(sock)
            if uid not in (None, owner):
                return False
            pidfd = os.pidfd_open(listener)
        except (ConnectionError, FileNotFoundError, ProcessLookupError):
            return False
        try:
            if listener == os.getpid():
                raise PermissionError(errno.EPERM, "the listener is this process")
            # The connection is to a process that lives: had its number gone to another, ours would have been reset.
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)
        return True
