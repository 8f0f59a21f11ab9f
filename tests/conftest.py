"""Fixtures of every test. Root tests must leave the host as they found it: `no_leaks` proves it after each one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# tests import the harness as `framework`, and each other's helpers never
sys.path.insert(0, str(Path(__file__).parent))

from framework import leaks, probes


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a root test no process, mount, cgroup, network namespace, interface or descriptor may be left."""
    if request.node.get_closest_marker("root") is None:
        yield
        return
    probes.needs_root()
    directory = request.getfixturevalue("tmp_path_factory").getbasetemp()
    before = leaks.snapshot(directory)
    yield
    if found := leaks.leaks(before, directory):
        pytest.fail("left behind:\n" + "\n".join(f"  {kind}: {', '.join(what)}" for kind, what in found.items()))
