"""Long runs: with DRUPE_FUZZ_MINUTES each test of what machines send is run over and over, with new examples, until its
time is over (`make fuzz-vm`). Most of the application kernel's have loops of their own; the tests of its packets share
the time, being one target."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

MINUTES = float(os.environ.get("DRUPE_FUZZ_MINUTES", "0"))
OWN_LOOPS = ("test_appkernel.py",)
SHARES = {"test_appkernel_packets.py": 3}  # files whose tests are one target, and how many of them send what is drawn


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    began, result = time.monotonic(), (yield)
    drawn = hasattr(pyfuncitem.obj, "hypothesis")
    shares = SHARES.get(pyfuncitem.path.name, 1)
    if pyfuncitem.path.name in OWN_LOOPS or not MINUTES or (shares > 1 and not drawn):
        return result
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    rounds = 1
    while time.monotonic() - began < MINUTES * 60 / shares:
        pyfuncitem.obj(**arguments)
        rounds += 1
    print(f"{pyfuncitem.nodeid}: {rounds} rounds")
    return result
