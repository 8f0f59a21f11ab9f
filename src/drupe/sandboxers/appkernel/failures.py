"""The kernel's words for what went wrong, as errors that a user can act on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drupe.errors import DrupeError
from drupe.oci.programs import no_program, not_executable

_ABSENT = ("ENOENT", "ENOTDIR", "ELOOP", "ENAMETOOLONG")
_NOT_EXECUTABLE = {
    "EACCES": "",
    "EPERM": "",
    "ENOEXEC": "its format is unknown",
    "ELIBBAD": "its interpreter is broken",
}
_REASONS = {
    "EAGAIN": "the pod has as many processes as it may have",
    "ENOMEM": "the pod has no memory left",
    "ENOSPC": "the pod has no memory left for files",
}


def explain(error: DrupeError, process: Mapping[str, Any]) -> DrupeError:
    """The error for a process that did not start (exit codes 126 and 127 of Docker derive from it)."""
    if not error.message.startswith("cannot run "):
        return error
    program, why = (process.get("args") or ["?"])[0], str(error.details.get("errno", ""))
    if why in _ABSENT:
        return no_program(program)
    if why == "EISDIR":
        return not_executable(program, directory=True)
    if why in _NOT_EXECUTABLE:
        return not_executable(program, cause=_NOT_EXECUTABLE[why])
    error.cause = error.cause or _REASONS.get(why, why)
    return error
