"""The state table: every pair of states, and what a refused move says."""

from __future__ import annotations

import itertools

import pytest

from drupe.errors import InvalidState, InvalidTransition
from drupe.state.machine import MOVES, State, check_move, require

CREATING, READY, RUNNING, PAUSED, STOPPED, FAILED, DELETED = State

# virtcontainers' table, with what drupe adds: creating, failed, deleted
ALLOWED = {
    (CREATING, READY), (CREATING, FAILED), (CREATING, DELETED),
    (READY, RUNNING), (READY, STOPPED), (READY, FAILED), (READY, DELETED),
    (RUNNING, PAUSED), (RUNNING, STOPPED), (RUNNING, FAILED),
    (PAUSED, RUNNING), (PAUSED, STOPPED), (PAUSED, FAILED), (PAUSED, DELETED),
    (STOPPED, RUNNING), (STOPPED, FAILED), (STOPPED, DELETED),
    (FAILED, STOPPED), (FAILED, DELETED),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new"), list(itertools.product(State, State)))
def test_every_pair(old: State, new: State) -> None:
    if (old, new) in ALLOWED:
        check_move("pod web", old, new)
        return
    with pytest.raises(InvalidTransition) as caught:
        check_move("pod web", old, new)
    same = f"pod web is {old} already"
    assert str(caught.value) == (same if old is new else f"pod web cannot move from {old} to {new}")
    assert caught.value.details == {"from": str(old), "to": str(new)}


def test_every_state_has_its_row() -> None:
    assert set(MOVES) == set(State)


def test_deleted_is_the_end_and_all_but_creating_reach_it() -> None:
    assert MOVES[DELETED] == frozenset()
    for state in State:
        reached, todo = set(), [state]
        while todo:
            at = todo.pop()
            todo += [to for to in MOVES[at] if to not in reached]
            reached |= MOVES[at]
        assert state is DELETED or DELETED in reached


@pytest.mark.parametrize("state", State)
def test_require(state: State) -> None:
    if state in (READY, RUNNING):
        require("container web", state, READY, RUNNING, to="kill it")
        return
    with pytest.raises(InvalidState, match=f"cannot kill it: container web is {state}, not ready or running"):
        require("container web", state, READY, RUNNING, to="kill it")


@pytest.mark.parametrize(
    ("old", "new", "hint"),
    [
        (PAUSED, READY, "resume it first"),
        (READY, PAUSED, "start it first"),
        (STOPPED, PAUSED, "start it first"),
        (RUNNING, DELETED, "stop it first, or force"),
    ],
)
def test_a_refusal_says_what_to_do(old: State, new: State, hint: str) -> None:
    with pytest.raises(InvalidTransition) as caught:
        check_move("pod web", old, new)
    assert caught.value.hint == hint
