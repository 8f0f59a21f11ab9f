"""containerd runs tasks through our shim, as it does through its own: `ctr` of each generation, both side by side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.containerds import IMAGE, VERSIONS, Containerd, needs_containerd

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

RUNTIMES = ("io.containerd.runc.v2", "io.containerd.drupe.v2")


@pytest.fixture(scope="module", params=VERSIONS)
def containerd(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, busybox: Path
) -> Iterator[Containerd]:
    version = VERSIONS[request.param]
    needs_containerd(version)
    place = Containerd(tmp_path_factory.mktemp("c"), version, busybox)
    try:
        place.start()
        place.load()
        yield place
    finally:
        place.close()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_run(containerd: Containerd, runtime: str) -> None:
    run = ("run", "--rm", "--runtime", runtime, IMAGE)
    assert containerd.ctr(*run, "a", "echo", "hello") == "hello\n"
    assert containerd.try_ctr(*run, "b", "sh", "-c", "exit 5").returncode == 5
