"""How processes in a machine ended."""

from __future__ import annotations

import time

from drupe.rpc.containerd.task_v3_pb2 import StateResponse
from drupe.rpc.guest import guest_pb2 as pb
from drupe.sandboxers.kept.exits import killed, write_exit_file
from drupe.spec.status import ExitStatus

_LOST_CODE = 255
_MAX_INT64 = 2**63 - 1
_AHEAD_S = 86400.0


def of_event(event: pb.Exit) -> ExitStatus:
    """As the agent tells it: its status is an exit code, or 128 and the number of a signal, as of a shell."""
    code = min(int(event.status), _LOST_CODE)
    at = _when(event.at_unix_ns)
    signal = code - 128 if 128 < code < 128 + 65 else 0
    if event.oom_killed:
        return ExitStatus(code=137, signal=9, at=at, reason="OOMKilled", oom_kills=1)
    return ExitStatus(code=code, signal=signal, at=at, reason="Error" if code else "")


def of_state(state: StateResponse) -> ExitStatus:
    """The same from containerd's words for what has stopped."""
    at = state.exited_at.seconds * 10**9 + state.exited_at.nanos
    return of_event(pb.Exit(status=state.exit_status, at_unix_ns=min(max(at, 0), _MAX_INT64)))


def _when(unix_ns: int) -> float:
    """A guest's clock may be wrong: a moment that cannot be is now."""
    at, now = unix_ns / 1e9, time.time()
    return at if 0 < at <= now + _AHEAD_S else now


def lost(cause: str) -> ExitStatus:
    """The end of what ran in a machine that has failed."""
    return ExitStatus(code=_LOST_CODE, at=time.time(), reason="Lost", message=cause)


def with_machine(cause: str) -> ExitStatus:
    """The end of what ran in a machine that is lost by `cause`, or was killed (cause "")."""
    return lost(cause) if cause else killed(9, at=time.time())


__all__ = ["killed", "lost", "of_event", "of_state", "with_machine", "write_exit_file"]
