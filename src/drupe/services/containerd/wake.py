"""How the relay starts a daemon when this one has died: a script in its directory (native/client/src/relay/wake.rs).

One that leaves in order takes it away: whoever ended it wants none. systemd starts its own again.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

_SCRIPT = "wake"


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


def take_word(directory: Path) -> None:
    """Have none started. Idempotent."""
    (directory / _SCRIPT).unlink(missing_ok=True)
