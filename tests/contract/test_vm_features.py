"""What the vm kind declares, it does: proofs of features, and what is of machines alone, behind a real daemon."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from proofs import PROOFS
from stage import Stage

from framework import machines
from framework.daemon import Daemon

# What rests on how a machine is made; the rest is crun's, as on the runc kind (DRUPE_TEST_FEATURES=all for it too).
CHOSEN = (
    "linux-programs", "rootfs", "multi-container", "bind-mounts", "read-only-mounts", "secrets", "shm-size",
    "cpu-limits", "memory-limit", "ports", "egress-policy", "names", "hostname", "shared-pid", "sysctls",
)  # fmt: skip
FROM_OUTSIDE = dict.fromkeys(
    ("oom-score", "cpu-sets", "memory-tuning"), "the proof looks at pids and cgroups of the host"
) | {"devices": "block devices only: tests/integration/test_vm_changes.py"}


@pytest.fixture(scope="module")
def daemon(open_daemon: Daemon) -> Daemon:
    return machines.prepared(open_daemon)


@pytest.fixture
def on(daemon: Daemon, tmp_path: Path) -> Iterator[Stage]:
    yield Stage(daemon, "vm", tmp_path)
    daemon.delete_pods()


@pytest.mark.root
@pytest.mark.parametrize("feature", PROOFS if os.environ.get("DRUPE_TEST_FEATURES") == "all" else CHOSEN)
def test_what_is_declared_works(on: Stage, feature: str) -> None:
    if on.able[feature].startswith("no"):
        pytest.skip(f"vm has no capability {feature!r} ({on.able[feature]})")
    if feature in FROM_OUTSIDE:
        pytest.skip(FROM_OUTSIDE[feature])
    PROOFS[feature](on)
