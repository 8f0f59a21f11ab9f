"""Fixtures of the tests that harm a daemon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from framework import hostileguest, images, probes
from framework.daemon import Daemon
from framework.faulty import FaultyDaemon


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
