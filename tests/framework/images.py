"""Images that tests run, made once a session and copied into each daemon's own store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "scripts"


def make_busybox(directory: Path) -> Path:
    """An image store with `busybox`, made by the script that `make demo` uses."""
    store = directory / "images"
    subprocess.run([sys.executable, SCRIPTS / "make-busybox-image.py", "--root", store], check=True)
    return store


def copy_store(store: Path, root: Path) -> None:
    """Give a runtime root its own copy of a store: what a test does to it harms nobody else."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    subprocess.run(["cp", "--archive", store, root / "images"], check=True)
