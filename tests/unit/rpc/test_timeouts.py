"""Timeouts hold, also in the clean-up of a task that is being cancelled."""

from __future__ import annotations

import asyncio

import pytest

from drupe.rpc.timeouts import timeout


def test_time_that_is_over_is_a_timeout_error() -> None:
    """As asyncio.timeout, and `expired` says so."""

    async def main() -> bool:
        limit = timeout(0)
        with pytest.raises(TimeoutError):
            async with limit:
                await asyncio.Event().wait()
        return limit.expired()

    assert asyncio.run(main())


def test_clean_up_of_a_cancelled_task_may_have_limits() -> None:
    """The second wait of the clean-up is reached."""
    reached: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            try:
                async with timeout(0):
                    await asyncio.Event().wait()
            except TimeoutError:
                reached.append("timeout")
            await asyncio.sleep(0)
            reached.append("end")

    async def main() -> None:
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert reached == ["timeout", "end"]


def test_a_cancellation_from_outside_stays_one() -> None:
    """Cancelled inside the block: CancelledError, not TimeoutError."""

    async def work() -> None:
        async with timeout(60):
            await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_what_is_in_time_passes() -> None:
    """No limit, or a long one."""

    async def main() -> int:
        async with timeout(None), timeout(60):
            return 7

    assert asyncio.run(main()) == 7
