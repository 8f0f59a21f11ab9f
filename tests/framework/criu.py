"""CRIU for tests: the host's, or the one that scripts/setup.sh --tests has unpacked."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

from framework.guests import cache
from framework.probes import program

CHECKS_WITHIN_S = 60.0


@functools.cache
def working_criu() -> tuple[Path | None, str]:
    """The host's, or that of scripts/setup.sh --tests; or why neither works on this kernel."""
    why = "no CRIU (scripts/setup.sh --tests)"
    for found in filter(Path.exists, (Path(program("criu") or "/none"), cache() / "criu/criu")):
        argv = [str(found), "check"]
        checked = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=CHECKS_WITHIN_S)
        if checked.returncode == 0:
            return found, ""
        why = f"CRIU does not work here: {checked.stderr.strip()[-200:]}"
    return None, why
