"""The states of pods and containers and the moves between them.

    creating ──▶ ready ──▶ running ◀──▶ paused
                   │          │            │
                   └──────────┴──▶ stopped ◀┘      stopped ──▶ running (start again)
    any ──▶ failed (keeps cause and phase) ──▶ deleted          ready, stopped, failed ──▶ deleted

It is virtcontainers' table plus `creating`, `failed` and `deleted`. Stop and delete are idempotent, so the same
state to
the same state is not a move and is not asked for here. A paused pod may be deleted (virtcontainers allows it).
"""

from __future__ import annotations

from enum import StrEnum

from drupe.errors import InvalidState, InvalidTransition


class State(StrEnum):
    CREATING = "creating"
    READY = "ready"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    FAILED = "failed"
    DELETED = "deleted"


_S = State
MOVES: dict[State, frozenset[State]] = {
    _S.CREATING: frozenset({_S.READY, _S.FAILED, _S.DELETED}),
    _S.READY: frozenset({_S.RUNNING, _S.STOPPED, _S.FAILED, _S.DELETED}),
    _S.RUNNING: frozenset({_S.PAUSED, _S.STOPPED, _S.FAILED}),
    _S.PAUSED: frozenset({_S.RUNNING, _S.STOPPED, _S.FAILED, _S.DELETED}),
    _S.STOPPED: frozenset({_S.RUNNING, _S.FAILED, _S.DELETED}),
    _S.FAILED: frozenset({_S.STOPPED, _S.DELETED}),
    _S.DELETED: frozenset(),
}


def check_move(what: str, old: State, new: State) -> None:
    """Raise InvalidTransition(from, to) unless the table allows the move. `what` names the object, as "pod web"."""
    if new not in MOVES[old]:
        raise InvalidTransition(what=what, old=old, new=new, hint=_hint(old, new))


def require(what: str, state: State, *allowed: State, to: str) -> None:
    """Raise InvalidState unless `state` is one of `allowed`; `to` says for what, as "exec"."""
    if state not in allowed:
        wanted = " or ".join(allowed)
        raise InvalidState(f"cannot {to}: {what} is {state}, not {wanted}", hint=_hint(state, allowed[0]))


def _hint(old: State, new: State) -> str:
    if old is State.PAUSED:
        return "resume it first"
    if old in (State.READY, State.STOPPED) and new in (State.PAUSED, State.RUNNING):
        return "start it first"
    if old is State.RUNNING and new is State.DELETED:
        return "stop it first, or force"
    return ""
