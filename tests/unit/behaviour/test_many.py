"""Many pods come and go, and nothing stays: neither things nor memory."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc

import pytest

from framework.bench import Bench
from framework.probes import FULL

MANY = 500 if FULL else 200
BATCH = 50
STAYS_BYTES = 60_000  # however many there were


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
async def test_many_pods(bench: Bench) -> None:
    await round_of(bench, 100)
    bench.faults.calls.clear()
    # a module that is imported meanwhile is no leak: that would show in both rounds
    grown = min([await grown_bytes(bench, MANY) for _ in range(2)])
    assert grown < STAYS_BYTES + 200 * MANY, f"{grown / MANY:.0f} bytes stay per pod"
