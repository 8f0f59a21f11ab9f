"""Fixtures of the tests that harm a daemon."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from framework import hostileguest, images, probes, taskcaller
from framework.bundles import make_rootfs
from framework.daemon import Daemon
from framework.faulty import FaultyDaemon
from framework.raw_ttrpc import Raw


@pytest.fixture(scope="session")
def lying_daemon(tmp_path_factory: pytest.TempPathFactory, busybox: Path) -> Iterator[Daemon]:
    """A daemon whose machines have agents that lie, or stand still at a method, when they are told to."""
    hostileguest.needs()
    daemon = Daemon(tmp_path_factory.mktemp("d"))
    images.copy_store(busybox, daemon.root)
    try:
        hostileguest.start(daemon)
        yield daemon
    finally:
        daemon.close()


@pytest.fixture
def faulty(tmp_path_factory: pytest.TempPathFactory, busybox: Path) -> Iterator[FaultyDaemon]:
    """A daemon that dies where it is told."""
    probes.needs_root()
    probes.needs_keeper()
    probes.needs_program("crun", "unshare", "nsenter", "ip")
    daemon = FaultyDaemon(tmp_path_factory.mktemp("d"))
    images.copy_store(busybox, daemon.root)
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.close()


@pytest.fixture(scope="module")
def address(daemon: Daemon) -> str:
    """Of the Task service."""
    return taskcaller.task_address(daemon)


@pytest.fixture
def raw(daemon: Daemon, address: str) -> Iterator[Raw]:
    """A caller of it that may send anything."""
    yield from taskcaller.harmless(daemon, address)


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("rootfs")
    make_rootfs(directory)
    return directory


@pytest.fixture
def bundle(tmp_path: Path, rootfs: Path) -> Callable[..., Path]:
    """Makes one; see framework.taskcaller."""
    return taskcaller.bundles(tmp_path / "bundle", rootfs)
