"""What the control API adds to pods and containers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from drupe.errors import Unavailable
from drupe.rpc.call import Call
from drupe.services.control.service import ControlService
from drupe.spec.control import StatsItem, StatsRequest
from framework.bench import SETTLE_S, Bench


async def call(bench: Bench, method: str, params: Any, **more: Any) -> Any:
    return await asyncio.wait_for(ControlService(bench.core).handle(Call(method, params, **more)), SETTLE_S)


@pytest.mark.parametrize("error", [Unavailable("the machine is lost"), FileNotFoundError(2, "No such file", "/x")])
async def test_statistics_of_all_leave_out_whose_sandbox_fails(bench: Bench, error: Exception) -> None:
    lost, whole = await bench.start("sleep 60"), await bench.start("sleep 60")
    bench.faults.fail("task.stats", error)
    first, second = (await call(bench, "container.stats", StatsRequest())).items
    why = "the machine is lost" if isinstance(error, Unavailable) else "No such file (/x)"
    assert (first.pod, first.error, first.stats.at) == (lost.id, why, 0.0)
    assert (second.pod, second.error, second.stats.pids) == (whole.id, "", 1)
    first, second = (await call(bench, "container.stats", StatsRequest())).items
    assert (first.error, second.error) == ("", "") and first.stats.pids == second.stats.pids == 1


async def test_statistics_of_one_say_that_it_fails(bench: Bench) -> None:
    (container,) = (await bench.start("sleep 60")).containers.values()
    bench.faults.fail("task.stats", Unavailable("the machine is lost"))
    with pytest.raises(Unavailable, match="the machine is lost"):
        await call(bench, "container.stats", StatsRequest(refs=(container.id,)))


async def test_a_stream_of_statistics_goes_on_after_one_fails(bench: Bench) -> None:
    await bench.start("sleep 60")
    bench.faults.fail("task.stats", Unavailable("the machine is lost"))
    items: list[StatsItem] = []

    async def take(item: StatsItem) -> None:
        items.append(item)

    streaming = asyncio.ensure_future(
        call(bench, "container.stats", StatsRequest(stream=True, interval_s=0.05), emit=take)
    )
    await bench.until(lambda: len(items) == 2)
    streaming.cancel()
    assert [item.error for item in items] == ["the machine is lost", ""]
