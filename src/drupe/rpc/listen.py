"""Listening on a unix socket that one daemon owns."""

from __future__ import annotations

import socket
from pathlib import Path

from drupe.errors import AlreadyExists, Unavailable

_BACKLOG = 512


def bind_unix(path: Path) -> socket.socket:
    """Listen at `path`, for its owner only, replacing a dead socket.

    Raises AlreadyExists when another server answers there, Unavailable when the place cannot be used.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        _remove_dead(path)
        sock.bind(str(path))
        path.chmod(0o600)  # before listen(2): nobody can have connected with the wider mode
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise Unavailable(f"cannot listen on {path}", cause=error.strerror or str(error)) from None
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_dead(path: Path) -> None:
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except (BlockingIOError, FileNotFoundError):  # a full backlog: somebody is there
            if not path.exists():
                return
    raise AlreadyExists(f"another daemon serves {path}", hint="use that one, or stop it first")
