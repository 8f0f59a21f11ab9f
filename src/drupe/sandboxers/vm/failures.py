"""The agent's words for what went wrong, as errors that a user can act on. Containers are made there by crun."""

from __future__ import annotations

from typing import Any

from drupe.errors import DrupeError, HelperFailed, NotFound
from drupe.sandboxers.runc.tasks import explain as explain_crun

_GONE = ("no such process", "not running", "stopped", "has ended", "there is no", "no container", "not found")


def explain(error: DrupeError, process: dict[str, Any]) -> DrupeError:
    """The error for a process that did not start (exit codes 126 and 127 of Docker derive from it)."""
    if isinstance(error, HelperFailed) or "crun" in error.message:
        return explain_crun(HelperFailed(error.message, cause=error.message.partition(": ")[2]), process)
    return error


def gone(error: DrupeError) -> DrupeError:
    """The error for a signal that reached nobody."""
    text = str(error).lower()
    if any(words in text for words in _GONE):
        return NotFound("the process has ended", cause=error.message)
    return error
