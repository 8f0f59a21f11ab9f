"""Steps and their undoing: at each point of failure, everything begun is undone, last first."""

from __future__ import annotations

import asyncio

import pytest

from drupe.errors import DrupeError, HelperFailed, ResourceExhausted
from drupe.runtime.steps import Step, begun, do_all, side_by_side, undo_all

NAMES = ["one", "two", "three", "four"]


class Work:
    """Steps that write down what they do. fails, undo_fails: name to the error raised there."""

    def __init__(self, fails: dict[str, BaseException] | None = None, undo_fails: dict[str, Exception] | None = None):
        self.done: list[str] = []
        self.fails = fails or {}
        self.undo_fails = undo_fails or {}
        self.steps = [Step(name, self.act(name), self.undo(name)) for name in NAMES]

    def act(self, name: str):
        async def do() -> None:
            self.done.append(name)
            if name in self.fails:
                raise self.fails[name]

        return do

    def undo(self, name: str):
        async def undo() -> None:
            self.done.append(f"-{name}")
            if name in self.undo_fails:
                raise self.undo_fails[name]

        return undo

    async def run(self) -> dict[str, float]:
        timings: dict[str, float] = {}
        await do_all(self.steps, advance=lambda name: self.done.append(f"journal {name}"), timings_ms=timings)
        return timings


async def test_all_in_order_each_announced_first() -> None:
    work = Work()
    timings = await work.run()
    assert work.done == [word for name in NAMES for word in (f"journal {name}", name)]
    assert list(timings) == NAMES and all(ms >= 0 for ms in timings.values())


@pytest.mark.parametrize("at", NAMES)
async def test_a_failure_undoes_what_was_begun_in_reverse(at: str) -> None:
    work = Work(fails={at: HelperFailed("broken")})
    with pytest.raises(HelperFailed) as caught:
        await work.run()
    begun_names = NAMES[: NAMES.index(at) + 1]
    assert [word for word in work.done if word.startswith("-")] == [f"-{name}" for name in reversed(begun_names)]
    assert (caught.value.stage, caught.value.details) == (at, {})


async def test_the_stage_of_the_cause_is_kept() -> None:
    with pytest.raises(HelperFailed) as caught:
        await Work(fails={"two": HelperFailed("broken", stage="start")}).run()
    assert caught.value.stage == "start"


async def test_an_error_of_the_system_is_put_in_our_words() -> None:
    with pytest.raises(ResourceExhausted) as caught:
        await Work(fails={"two": OSError(28, "No space left on device", "/x")}).run()
    assert (caught.value.stage, caught.value.hint) == ("two", "free space: drupe system prune")
    assert str(caught.value) == "two: No space left on device (/x)"


async def test_a_bug_stays_a_bug() -> None:
    work = Work(fails={"three": ZeroDivisionError("oops")})
    with pytest.raises(ZeroDivisionError):
        await work.run()
    assert work.done[-3:] == ["-three", "-two", "-one"]


async def test_a_failing_undo_does_not_keep_the_others_from_running() -> None:
    work = Work(fails={"three": HelperFailed("broken")}, undo_fails={"two": HelperFailed("stuck"), "one": OSError("x")})
    with pytest.raises(HelperFailed) as caught:
        await work.run()
    assert [word for word in work.done if word.startswith("-")] == ["-three", "-two", "-one"]
    assert caught.value.details["left_behind"] == "two: stuck; one: x"


async def test_a_journal_that_cannot_be_written_undoes_too() -> None:
    work = Work()

    def advance(name: str) -> None:
        if name == "two":
            raise ResourceExhausted("the disk is full")

    with pytest.raises(ResourceExhausted):
        await do_all(work.steps, advance=advance, timings_ms={})
    assert work.done == ["one", "-two", "-one"]


async def test_cancellation_undoes() -> None:
    reached = asyncio.Event()
    work = Work()

    async def for_ever() -> None:
        reached.set()
        await asyncio.Event().wait()

    work.steps[2] = Step("three", for_ever, work.undo("three"))
    task = asyncio.ensure_future(do_all(work.steps, advance=lambda _: None, timings_ms={}))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.done == ["one", "two", "-three", "-two", "-one"]


async def test_undo_tells_what_it_could_not() -> None:
    work = Work(undo_fails={"four": HelperFailed("no")})
    assert await undo_all(work.steps) == ["four: no"]
    assert work.done == ["-four", "-three", "-two", "-one"]


@pytest.mark.parametrize(("phase", "count"), [("one", 1), ("three", 3), ("four", 4), ("", 4), ("deleting", 4)])
def test_begun(phase: str, count: int) -> None:
    assert [step.name for step in begun(Work().steps, phase)] == NAMES[:count]


def test_errors_are_our_own() -> None:
    assert issubclass(HelperFailed, DrupeError)


async def test_side_by_side_they_begin_in_order_and_do_not_wait_for_one_another() -> None:
    work, gate = Work(), asyncio.Event()

    async def slow() -> None:
        work.done.append("slow")
        await gate.wait()
        work.done.append("slow ended")

    async def last() -> None:
        gate.set()

    both = [Step("slow", slow, work.undo("slow")), work.steps[1], Step("last", last, work.undo("last"))]
    timings: dict[str, float] = {}
    await do_all([side_by_side("all", both, timings)], advance=work.done.append, timings_ms=timings)
    assert work.done == ["all", "slow", "two", "slow ended"]
    assert set(timings) == {"all", "slow", "two", "last"}


@pytest.mark.parametrize("at", NAMES)
async def test_when_one_of_several_fails_all_are_undone(at: str) -> None:
    work = Work(fails={at: HelperFailed("broken")})
    step = side_by_side("all", work.steps, {})
    with pytest.raises(HelperFailed) as caught:
        await do_all([step], advance=lambda _: None, timings_ms={})
    assert caught.value.stage == at
    assert work.done == [*NAMES, *(f"-{name}" for name in reversed(NAMES))]


async def test_what_several_could_not_undo_is_named() -> None:
    work = Work(undo_fails={"two": HelperFailed("stuck")})
    assert await undo_all([side_by_side("all", work.steps, {})]) == ["all: two: stuck"]
