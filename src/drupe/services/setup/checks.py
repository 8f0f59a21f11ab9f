"""What every tool needs of this host: our programs where it looks for them, and daemons that answer."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from drupe.errors import DrupeError
from drupe.rpc.client import Client
from drupe.sandboxers.kinds import KINDS
from drupe.services.probing import Inconclusive, Problem

# What systemd gives its services, and cron, sudo and ssh theirs
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TIMEOUT_S = 2.0


def path_of(name: str) -> str:
    """Where a program of ours is, or belongs."""
    return shutil.which(name, path=SYSTEM_PATH) or f"/usr/local/bin/{name}"


def ours(name: str, links: Sequence[str] = ()) -> str:
    """The path of a program of ours that daemons find, under its other names too. Problem says how to have it there."""
    source = shutil.which(name, path=SYSTEM_PATH) or shutil.which(name) or str(Path(sys.executable).with_name(name))
    if not Path(source).exists():
        raise Problem(f"{name} is not installed", "install drupe with its native programs")
    missing = [each for each in (name, *links) if shutil.which(each, path=SYSTEM_PATH) is None]
    if missing:
        commands = [f"ln -s {source} /usr/local/bin/{each}" for each in missing]
        raise Problem(f"not where daemons look ({SYSTEM_PATH}): {', '.join(missing)}", " && ".join(commands))
    return source


def each_kind(form: str) -> dict[str, str]:
    """Kind to a name made of it, for the kinds that there are."""
    return {kind.name: form.format(kind.name) for kind in KINDS.values() if not kind.is_planned}


def socket_answers(path: str, *, start: str) -> str:
    """Somebody listens at a unix socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_TIMEOUT_S)
        try:
            connection.connect(path)
        except OSError as error:
            raise Inconclusive(f"nobody answers at {path} ({error.strerror or error})", start) from None
    return path


def answers(run_dir: Path) -> str:
    """drupe's own daemon answers; it is started on demand, so that it may not run now."""
    try:
        with Client.connect(str(run_dir / "drupe.sock"), timeout_s=_TIMEOUT_S):
            return str(run_dir / "drupe.sock")
    except DrupeError as error:
        raise Inconclusive(f"drupe's daemon does not run: {error.message}", "systemctl enable --now drupe") from None
