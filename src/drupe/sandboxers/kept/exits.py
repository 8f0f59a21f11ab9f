"""Ends of processes as the keeper tells them, in the words of the contract."""

from __future__ import annotations

from pathlib import Path

import msgspec

from drupe.keeper.records import Exit
from drupe.spec.status import ExitStatus


def exit_status(record: Exit) -> ExitStatus:
    """The keeper's exit record in our words. `unknown`: nobody could learn the code."""
    if record.unknown:
        return ExitStatus(code=255, at=record.at, reason="Lost", message="nobody was there to learn the exit code")
    reason = "Error" if record.code else ""
    return ExitStatus(code=record.code, signal=record.signal, at=record.at, reason=reason)


def read_exit_file(path: Path) -> ExitStatus | None:
    """An end that the keeper wrote down; None when there is none (or half of one)."""
    try:
        return exit_status(msgspec.json.decode(path.read_bytes(), type=Exit))
    except (OSError, msgspec.DecodeError):
        return None


def killed(signal: int = 9, *, at: float) -> ExitStatus:
    """The end of a process that a signal ended; by default that of one whose sandbox was killed."""
    return ExitStatus(code=128 + signal, signal=signal, at=at, reason="Error")


def write_exit_file(path: Path, task: str, status: ExitStatus) -> None:
    """As the keeper writes it: what it knew was the end of a process on the host."""
    record = Exit(task=task, pid=0, code=status.code, signal=status.signal, core=False, at=status.at)
    partial = path.with_name(path.name + ".part")
    partial.write_bytes(msgspec.json.encode(record))
    partial.replace(path)
