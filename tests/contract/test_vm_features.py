"""What the vm kind declares, it does: proofs of features, and what is of machines alone, behind a real daemon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from proofs import PROOFS
from stage import Stage

from framework import machines
from framework.daemon import Daemon


@pytest.fixture(scope="module")
def daemon(open_daemon: Daemon) -> Daemon:
    return machines.prepared(open_daemon)


@pytest.fixture
def on(daemon: Daemon, tmp_path: Path) -> Iterator[Stage]:
    yield Stage(daemon, "vm", tmp_path)
    daemon.delete_pods()


@pytest.mark.root
@pytest.mark.parametrize("feature", PROOFS)
def test_what_is_declared_works(on: Stage, feature: str) -> None:
    if on.able[feature].startswith("no"):
        pytest.skip(f"vm has no capability {feature!r} ({on.able[feature]})")
    PROOFS[feature](on)
