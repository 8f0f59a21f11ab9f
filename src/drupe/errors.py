"""The errors drupe raises, as one tree.

    DrupeError
    ├── InvalidArgument      the request itself is wrong; mend it and call again
    │   └── Unsupported      this kind of sandbox can't do that (kind, feature)
    ├── NotFound             no such pod, container, image, network, volume, program
    ├── AlreadyExists        the name or id is taken
    ├── InvalidState         the object is not in a state that allows the call
    │   └── InvalidTransition  a move that the state table refuses (from, to)
    ├── PermissionDenied     the host or a policy refused
    ├── ResourceExhausted    disk, memory, addresses, ports, processes ran out
    ├── DeadlineExceeded     the deadline passed; `may_have_run` says whether the work may have begun
    │   └── CommandTimeout   a command ran longer than its timeout and was killed; carries its output
    ├── Unavailable          daemon, registry or helper can't be reached; safe to retry
    ├── DataLoss             bytes are corrupt: digest, journal, archive
    ├── HelperFailed         a helper program (crun, a CNI plug-in) failed; carries its output
    ├── CommandFailed        a command ended with a code other than 0 and check=True; carries its output
    └── InternalError        a bug in drupe; the only one that is shown with a traceback

Every error says *what* (message), and where it helps: `stage` (which step of the work), `hint` (how to mend it),
`may_have_run` (False: the workload certainly did not start). `code` is stable: it is the gRPC status name and the key
of the exit code table below (sysexits-like, clear of the 0..124 that workloads commonly use).
"""

from __future__ import annotations

import errno
from typing import Any, ClassVar

_LONGEST = 1200  # of a message, in letters, where it goes to whoever sent what is in it


class DrupeError(Exception):
    """Base of all expected errors.

    message: one line without a final stop. stage: step that failed, such as ``"network"``. hint: what to do about it.
    cause: text of the underlying failure (errno text, last lines of a helper's output).
    may_have_run: whether the workload (or side effect asked for) may have happened all the same.
    """

    code: ClassVar[str] = "UNKNOWN"
    exit_code: ClassVar[int] = 125
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        stage: str = "",
        hint: str = "",
        cause: str = "",
        may_have_run: bool = False,
        **details: str,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.stage = stage
        self.hint = hint
        self.cause = cause
        self.may_have_run = may_have_run
        self.details = details

    def __str__(self) -> str:
        text = f"{self.stage}: {self.message}" if self.stage else self.message
        return f"{text}: {self.cause}" if self.cause else text

    def to_wire(self) -> dict[str, Any]:
        """A plain dict for the control socket; `from_wire` is its inverse."""
        return {
            "type": type(self).__name__,
            "message": self.message,
            "stage": self.stage,
            "hint": self.hint,
            "cause": self.cause,
            "may_have_run": self.may_have_run,
            "details": self.details,
        }


class InvalidArgument(DrupeError):
    code = "INVALID_ARGUMENT"


class Unsupported(InvalidArgument):
    """A feature that this kind of sandbox, kernel or host does not have; refused before anything is made."""

    code = "UNIMPLEMENTED"

    def __init__(self, message: str = "", *, kind: str = "", feature: str = "", **rest: Any) -> None:
        super().__init__(message or f"{kind} sandboxes cannot {feature}", **rest)
        self.details.update({k: v for k, v in (("kind", kind), ("feature", feature)) if v})


class NotFound(DrupeError):
    code = "NOT_FOUND"


class AlreadyExists(DrupeError):
    code = "ALREADY_EXISTS"


class InvalidState(DrupeError):
    code = "FAILED_PRECONDITION"


class InvalidTransition(InvalidState):
    """A move that the state table (state/machine.py) refuses."""

    def __init__(self, message: str = "", *, what: str = "", old: str = "", new: str = "", **rest: Any) -> None:
        text = f"{what} is {old} already" if old == new else f"{what} cannot move from {old} to {new}"
        super().__init__(message or text, **rest)
        self.details.update({k: v for k, v in (("from", old), ("to", new)) if v})


class PermissionDenied(DrupeError):
    code = "PERMISSION_DENIED"


class ResourceExhausted(DrupeError):
    code = "RESOURCE_EXHAUSTED"


class DeadlineExceeded(DrupeError):
    code = "DEADLINE_EXCEEDED"
    exit_code = 124
    retryable = True


class CommandTimeout(DeadlineExceeded):
    """A command ran longer than its timeout and was killed. result: the api.result.Result with all output so far."""

    retryable = False

    def __init__(self, message: str, *, result: Any = None, **rest: Any) -> None:
        super().__init__(message, **{"may_have_run": True, **rest})
        self.result = result


class Unavailable(DrupeError):
    code = "UNAVAILABLE"
    retryable = True


class DataLoss(DrupeError):
    code = "DATA_LOSS"


class HelperFailed(DrupeError):
    code = "ABORTED"


class CommandFailed(DrupeError):
    """A command ended with a code other than 0 and `check=True`. result: the api.result.Result with all output."""

    code = "ABORTED"

    def __init__(self, message: str, *, result: Any = None, **rest: Any) -> None:
        super().__init__(message, **{"may_have_run": True, **rest})
        self.result = result


class InternalError(DrupeError):
    code = "INTERNAL"
    exit_code = 70


def _all_types(root: type[DrupeError]) -> dict[str, type[DrupeError]]:
    found = {root.__name__: root}
    for sub in root.__subclasses__():
        found |= _all_types(sub)
    return found


def from_wire(data: dict[str, Any]) -> DrupeError:
    """The error that `to_wire` described; a type unknown here (newer daemon) becomes the base class."""
    kind = _all_types(DrupeError).get(str(data.get("type", "")), DrupeError)
    fields = {k: data[k] for k in ("stage", "hint", "cause", "may_have_run") if k in data}
    return kind(str(data.get("message", "")), **fields, **dict(data.get("details", {})))


_OF_ERRNO: dict[int, type[DrupeError]] = {
    errno.ENOSPC: ResourceExhausted,
    errno.EDQUOT: ResourceExhausted,
    errno.ENOMEM: ResourceExhausted,
    errno.EMFILE: ResourceExhausted,
    errno.ENFILE: ResourceExhausted,
    errno.EROFS: Unavailable,
    errno.EIO: Unavailable,
    errno.EACCES: PermissionDenied,
    errno.EPERM: PermissionDenied,
    errno.ENOENT: NotFound,
    errno.EEXIST: AlreadyExists,
}
_HINTS = {
    errno.ENOSPC: "free space: drupe system prune",
    errno.EROFS: "the state directory must be writable",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


def in_a_line(error: DrupeError) -> str:
    """Its message for a caller who may have sent anything that is in it: on one line, and not longer than what gRPC's
    clients take (8 KiB of trailers, where a byte may be three)."""
    text = str(error)
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def from_os_error(error: OSError) -> DrupeError:
    """An operating system's error in our words: its text, the file it is about, and what to do where that is known."""
    kind = _OF_ERRNO.get(error.errno or 0, InternalError)
    where = f" ({error.filename})" if error.filename else ""
    return kind(f"{error.strerror or error}{where}", hint=_HINTS.get(error.errno or 0, ""))
