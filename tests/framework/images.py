"""Images that tests run, made once a session."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "scripts"


def make_busybox(directory: Path) -> Path:
    """The OCI layout that `make demo` makes too, below `directory`."""
    layout = directory / "busybox"
    if not layout.exists():
        subprocess.run([sys.executable, SCRIPTS / "make-busybox-image.py", layout], check=True)
    return layout
