"""Fixtures of all that drives containerd's CRI. A module that wants other hosts overrides `generation`, `host`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.cri_host import CriHost, opened


@pytest.fixture(scope="module")
def generation() -> str:
    """The version of containerd."""
    return "2.1"


@pytest.fixture(scope="module")
def host(generation: str, tmp_path_factory: pytest.TempPathFactory, busybox: Path) -> Iterator[CriHost]:
    """Shared by the tests of a module."""
    yield from opened(tmp_path_factory.mktemp("h"), generation, busybox)


@pytest.fixture
def own_host(generation: str, tmp_path_factory: pytest.TempPathFactory, busybox: Path) -> Iterator[CriHost]:
    """For one test alone, which harms it."""
    yield from opened(tmp_path_factory.mktemp("o"), generation, busybox)


@pytest.fixture
def cri(host: CriHost) -> Iterator[CriHost]:
    """The host, for a test; its pods go with it."""
    yield host
    host.cri.remove_all()
