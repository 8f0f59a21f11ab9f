"""The Container Runtime Interface of containerd, through its own runc and through drupe's handlers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.containerds import VERSIONS, needs_containerd
from framework.cri_host import CriHost

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, busybox: Path) -> Iterator[CriHost]:
    version = VERSIONS["2.1"]
    needs_containerd(version)
    place = CriHost(tmp_path_factory.mktemp("h"), version, busybox)
    try:
        place.open()
        yield place
    finally:
        place.close()


def test_life(host: CriHost) -> None:
    pod = host.pod("life", "runc")
    assert host.cri.pod_state(pod[0]) == "READY"
    container = host.run(pod, "a", "sh", "-c", "echo hello; exec sleep 1000")
    assert host.cri.exec(container, "echo", "x") == "x\n"
    host.cri.remove_pod(pod[0])
