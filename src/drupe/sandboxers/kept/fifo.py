"""How a process that is made but not started yet is let run: it waits in open(2) of a FIFO."""

from __future__ import annotations

import os
from pathlib import Path


def release(fifo: Path) -> bool:
    """Let the process that waits at `fifo` run on and remove it, as `crun start` does. False when none waits."""
    try:
        descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fifo.unlink()
        os.write(descriptor, b"\0")
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
