"""A thousand pods come and go, and nothing stays: neither things nor memory."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc

import pytest

from framework.bench import Bench

THOUSAND = 1000
BATCH = 50


async def round_of(bench: Bench, count: int) -> None:
    for _ in range(count // BATCH):
        pods = await asyncio.gather(*(bench.run("true", remove=n % 2 == 0) for n in range(BATCH)))
        await asyncio.gather(*(bench.end_of(c) for pod in pods for c in pod.containers.values()))
        for pod in pods:
            await bench.core.delete_pod(pod, force=True)
    await bench.settle()
    assert (bench.core.pods, bench.left(), bench.node._background) == ({}, {}, set())


async def grown_bytes(bench: Bench, count: int) -> int:
    """What a round leaves in memory."""
    gc.collect()
    tracemalloc.start()
    await round_of(bench, count)
    bench.faults.calls.clear()
    bench.node._ends.clear()  # the newest few are remembered
    gc.collect()
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return grown


@pytest.mark.slow
async def test_a_thousand_pods(bench: Bench) -> None:
    await round_of(bench, 200)
    bench.faults.calls.clear()
    # a module that is imported meanwhile is no leak: that would show in both halves
    grown = min([await grown_bytes(bench, THOUSAND // 2) for _ in range(2)])
    assert grown < 200 * THOUSAND // 2, f"{grown / (THOUSAND // 2):.0f} bytes stay per pod"
