"""Behaviour tests are coroutines over a `bench`: each runs in a loop of its own, and what it leaves behind fails it."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path

import pytest

from framework.bench import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    asyncio.run(_scenario(pyfuncitem.obj, arguments), debug=False)
    return True


async def _scenario(test, arguments) -> None:
    await test(**arguments)
    for value in arguments.values():
        if isinstance(value, Bench) and not value.abandoned:
            await value.close()
    for _ in range(10):  # a cancelled task needs a few turns to end
        await asyncio.sleep(0)
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not others, f"tasks left: {[task.get_name() for task in others]}"
