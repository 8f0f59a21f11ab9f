"""How the relay starts a daemon when this one has died: a script in its directory (native/client/src/relay/wake.rs).

One that its user shuts down takes it away: whoever ended it wants none. One that got a signal leaves it for the next
that containerd asks, as the command line would start another. systemd starts its own again.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from pathlib import Path

_SCRIPT = "wake"
_WHEN_CALLED = "wake-when-called"


def leave_word(directory: Path, *, root: Path, run: Path, socket: Path, config: Path | None) -> None:
    """Have another daemon like this one started, should it die. socket, config: of this one."""
    if os.environ.get("SYSTEMD_EXEC_PID") == str(os.getpid()):
        return
    places = {"DRUPE_ROOT": root, "DRUPE_RUN": run, "DRUPE_SOCKET": socket, "DRUPE_CONFIG": config}
    env = [f"{name}={path}" for name, path in places.items() if path is not None]
    line = shlex.join(["exec", "env", *env, sys.executable, "-P", "-m", "drupe.api.daemon"])
    partial = directory / f"{_SCRIPT}.new"
    partial.write_text(f"{line}\n")
    partial.replace(directory / _SCRIPT)
    (directory / _WHEN_CALLED).unlink(missing_ok=True)


def take_word(directory: Path, *, until_called: bool) -> None:
    """Have none started, or only for what containerd asks from now on. Idempotent."""
    with contextlib.suppress(FileNotFoundError):
        if until_called:
            (directory / _SCRIPT).replace(directory / _WHEN_CALLED)
        else:
            (directory / _SCRIPT).unlink()
