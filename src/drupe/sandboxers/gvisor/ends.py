"""How processes in a sandbox ended."""

from __future__ import annotations

import os

from drupe.sandboxers.kept.exits import killed, write_exit_file
from drupe.spec.status import ExitStatus


def from_wait_status(status: int, *, at: float) -> ExitStatus:
    """From what wait(2) would say."""
    if os.WIFSIGNALED(status):
        return killed(os.WTERMSIG(status), at=at)
    code = os.WEXITSTATUS(status)
    return ExitStatus(code=code, at=at, reason="Error" if code else "")


__all__ = ["from_wait_status", "killed", "write_exit_file"]
