"""runsc's words for what went wrong, as errors that a user can act on."""

from __future__ import annotations

from typing import Any

from drupe.errors import DrupeError, HelperFailed, InvalidState, NotFound
from drupe.oci.programs import no_program, not_executable
from drupe.sandboxers.kept.words import last_message

_ABOUT_PROGRAM = ("finding executable", "executable file", "failed to load")
_ABSENT = ("not found", "no such file or directory", "not a directory")
_NOT_EXECUTABLE = ("permission denied", "exec format error", "is a directory", "operation not permitted")
_GONE = ("no such process", "not found", "no such container", "not running", "not started")


def explain(error: HelperFailed, process: dict[str, Any]) -> DrupeError:
    """The error for a process that did not start (exit codes 126 and 127 of Docker derive from it)."""
    text = last_message(error.cause)
    lower = text.lower()
    program = (process.get("args") or ["?"])[0]
    about_program = any(words in lower for words in _ABOUT_PROGRAM)
    if about_program and any(words in lower for words in _ABSENT):
        return no_program(program)
    if about_program and any(words in lower for words in _NOT_EXECUTABLE):
        return not_executable(program, cause=text)
    if "no such process" in lower or "not running" in lower or "not found" in lower:
        return InvalidState("the container has just ended", cause=text)
    refused = HelperFailed("gVisor refused the container", stage="start", cause=text, hint="drupe logs --sandbox POD")
    refused.details.update(error.details)
    return refused


def gone(error: HelperFailed) -> DrupeError:
    """The error for a signal that reached nobody."""
    text = error.cause.lower()
    if any(words in text for words in _GONE):
        return NotFound("the process has ended", cause=error.cause)
    return error
