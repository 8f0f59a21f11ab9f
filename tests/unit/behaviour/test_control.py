"""What the control API adds to pods and containers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from drupe.errors import Unavailable
from drupe.rpc.call import Call
from drupe.runtime.container import Container
from drupe.services.control.service import ControlService
from drupe.spec import ContainerSpec
from drupe.spec.control import StatsItem, StatsRequest, Wait
from framework.bench import SETTLE_S, Bench


async def call(bench: Bench, method: str, params: Any, **more: Any) -> Any:
    return await asyncio.wait_for(ControlService(bench.core).handle(Call(method, params, **more)), SETTLE_S)


def removed(bench: Bench, container: Container) -> asyncio.Future[Any]:
    """A client that waits for its removal."""
    return asyncio.ensure_future(call(bench, "container.wait", Wait(ref=container.id, condition="removed")))


# -- run --rm -----------------------------------------------------------------------------------------------------


async def test_a_wait_for_the_removal_ends_when_its_volumes_are_free(bench: Bench) -> None:
    (container,) = (await bench.run("exit 7", remove=True)).containers.values()
    gate, waiting = bench.faults.hold("storage.detach_volumes"), removed(bench, container)
    await bench.until(lambda: "storage.detach_volumes" in bench.faults.calls)
    assert (await call(bench, "container.wait", Wait(ref=container.id))).code == 7
    assert not waiting.done() and container.id in bench.storage.volumes
    gate.set()
    assert (await waiting).code == 7
    assert container.id not in bench.storage.volumes and not bench.core.pods
    assert (await removed(bench, container)).code == 7  # a moment too late


@pytest.mark.parametrize("step", ["stop", "storage.detach_volumes"])
async def test_a_wait_for_the_removal_ends_when_the_pod_cannot_be_removed(bench: Bench, step: str) -> None:
    (container,) = (await bench.run("sleep 60", remove=True)).containers.values()
    waiting = removed(bench, container)
    await bench.settle()
    bench.faults.fail(step)
    await container.kill("KILL")
    assert (await waiting).code == 137
    assert bench.core.pods
    await bench.delete_all()


async def test_a_wait_for_the_removal_is_not_for_others_of_the_pod(bench: Bench) -> None:
    pod = await bench.run("sleep 60", remove=True)
    (first,) = pod.containers.values()
    second = await bench.core.create_container(pod, ContainerSpec(image="busybox", argv=("sleep", "60")))
    waiting = removed(bench, first)
    await bench.settle()
    await first.kill("KILL")
    assert (await waiting).code == 137
    assert second.id in pod.containers
    await bench.delete_all()


# -- statistics ---------------------------------------------------------------------------------------------------


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
