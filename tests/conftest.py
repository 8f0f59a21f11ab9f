"""Fixtures of every test. Root tests must leave the host as they found it: `no_leaks` proves it after each one."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# tests import the harness as `framework`, and each other's helpers never
sys.path.insert(0, str(Path(__file__).parent))

from framework import images, leaks, machines, probes
from framework.daemon import Daemon

# how fast examples are made says how busy the machine is, and nothing of us
settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")


def pytest_configure() -> None:
    """What nohup(1) or a shell's `&` has us ignore, each program that we start would ignore, too (execve(2)); tests of
    signals need it otherwise. A handler of ours is not handed down."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def pytest_collection_finish() -> None:
    """What has been collected stays to the end. It is kept out of the sight of those who look for garbage: thousands of
    tests with all their modules cost each of them a second."""
    gc.collect()
    gc.freeze()


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


@pytest.fixture(scope="session")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image store that holds `busybox`; copy it (`images.copy_store`), do not change it."""
    return images.make_busybox(tmp_path_factory.mktemp("images"))


def started(directory: Path, store: Path) -> Iterator[Daemon]:
    """A daemon with the image `busybox`, for as long as a fixture lives."""
    probes.needs_root()
    probes.needs_keeper()
    probes.needs_program("crun", "unshare", "nsenter", "ip")
    daemon = Daemon(directory)
    images.copy_store(store, daemon.root)
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.close()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, busybox: Path) -> Iterator[Daemon]:
    """A daemon shared by the tests of one module; each test removes its own pods."""
    yield from started(tmp_path_factory.mktemp("d"), busybox)


@pytest.fixture(scope="module")
def open_daemon(busybox: Path) -> Iterator[Daemon]:
    """A daemon where other ids than ours may walk: pytest's own directories are closed to them."""
    with tempfile.TemporaryDirectory(prefix="drupe-test-") as name:
        Path(name).chmod(0o711)
        yield from started(Path(name), busybox)


@pytest.fixture(scope="module")
def machine_daemon(open_daemon: Daemon) -> Daemon:
    """A daemon whose pods without limits start from a machine's template."""
    return machines.prepared(open_daemon)


@pytest.fixture
def fresh_daemon(tmp_path_factory: pytest.TempPathFactory, busybox: Path) -> Iterator[Daemon]:
    """A daemon for one test alone: recovery, full disks, anything that harms it."""
    yield from started(tmp_path_factory.mktemp("d"), busybox)


@pytest.fixture
def drupe(daemon: Daemon) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Call the command line: `drupe("run", "--rm", "busybox", "true", check=True)`."""
    return daemon.command
