"""How processes in a sandbox ended."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from drupe.keeper.records import Exit
from drupe.spec.status import ExitStatus


def from_wait_status(status: int, *, at: float) -> ExitStatus:
    """From what wait(2) would say."""
    if os.WIFSIGNALED(status):
        return killed(os.WTERMSIG(status), at=at)
    code = os.WEXITSTATUS(status)
    return ExitStatus(code=code, at=at, reason="Error" if code else "")


def killed(signal: int = 9, *, at: float) -> ExitStatus:
    """The end of a process that a signal ended; by default that of one whose sandbox was killed."""
    return ExitStatus(code=128 + signal, signal=signal, at=at, reason="Error")


def write_exit_file(path: Path, task: str, status: ExitStatus) -> None:
    """As the keeper writes it: what it knew was the end of a process on the host."""
    record = Exit(task=task, pid=0, code=status.code, signal=status.signal, core=False, at=status.at)
    partial = path.with_name(path.name + ".part")
    partial.write_bytes(msgspec.json.encode(record))
    partial.replace(path)
