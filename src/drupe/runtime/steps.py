"""Work as a row of steps, each with its undo: how pods and containers are made, unmade and, after a crash, undone.

The journal is told of a step before it begins, so after a crash the steps up to the recorded one, and no others, may
have left something. Every undo is idempotent and works from the object's id alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from drupe.errors import DrupeError, HelperFailed, from_os_error

Action = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Step:
    """One step. name: what the journal and error messages call it."""

    name: str
    do: Action
    undo: Action


async def do_all(steps: Sequence[Step], *, advance: Callable[[str], None], timings_ms: dict[str, float]) -> None:
    """Do the steps in order. When one fails (or is cancelled) all begun are undone, last first, and the error, marked
    with the step as its stage, is raised."""
    for index, step in enumerate(steps):
        try:
            advance(step.name)
            await _timed(step, timings_ms)
        except BaseException as error:
            notes = await undo_all(steps[: index + 1])
            raise _with_stage(error, step.name, notes) from error


async def _timed(step: Step, timings_ms: dict[str, float]) -> None:
    began = time.perf_counter()
    await step.do()
    timings_ms[step.name] = round((time.perf_counter() - began) * 1000, 3)


def side_by_side(name: str, steps: Sequence[Step], timings_ms: dict[str, float]) -> Step:
    """Steps that do not need one another as a single one: done at the same time, begun in their order, and undone last
    first. When some fail, all are brought to their end, and the error of the first of them counts."""

    async def do() -> None:
        results = await asyncio.gather(*(_timed(step, timings_ms) for step in steps), return_exceptions=True)
        for step, result in zip(steps, results, strict=True):
            if isinstance(result, BaseException):
                raise _with_stage(result, step.name, [])

    async def undo() -> None:
        if notes := await undo_all(steps):
            raise HelperFailed("; ".join(notes))

    return Step(name, do, undo)


async def undo_all(steps: Sequence[Step]) -> list[str]:
    """Undo in reverse order; a failing undo does not keep the others from running. Returns what could not be undone."""
    notes = []
    for step in reversed(steps):
        try:
            await step.undo()
        except Exception as error:
            notes.append(f"{step.name}: {error}")
    return notes


def begun(steps: Sequence[Step], phase: str) -> Sequence[Step]:
    """The steps that a journal row in `phase` may have begun; all when the phase is none of them."""
    names = [step.name for step in steps]
    return steps[: names.index(phase) + 1] if phase in names else steps


def _with_stage(error: BaseException, stage: str, notes: list[str]) -> BaseException:
    if isinstance(error, OSError):
        error = from_os_error(error)
    if isinstance(error, DrupeError):
        error.stage = error.stage or stage
        if notes:
            error.details["left_behind"] = "; ".join(notes)
    return error
