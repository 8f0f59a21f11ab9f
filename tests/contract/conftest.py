"""Contract tests are coroutines; their `site` is opened and closed inside the test's own loop."""

from __future__ import annotations

import asyncio
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("sandboxer_suite")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine test, with its site open."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    asyncio.run(_scenario(pyfuncitem.obj, arguments))
    return True


async def _scenario(test: Any, arguments: dict[str, Any]) -> None:
    site = arguments["site"]
    await site.open()
    try:
        await test(**arguments)
    finally:
        await site.close()
