"""Long runs: with DRUPE_FUZZ_MINUTES each test of what machines send is run over and over, with new examples, until its
time is over (`make fuzz-vm`). The application kernel's tests have loops of their own."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

MINUTES = float(os.environ.get("DRUPE_FUZZ_MINUTES", "0"))
OWN_LOOPS = ("test_appkernel.py", "test_appkernel_packets.py")


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    began, result = time.monotonic(), (yield)
    if pyfuncitem.path.name in OWN_LOOPS or not MINUTES:
        return result
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    rounds = 1
    while time.monotonic() - began < MINUTES * 60:
        pyfuncitem.obj(**arguments)
        rounds += 1
    print(f"{pyfuncitem.nodeid}: {rounds} rounds")
    return result
