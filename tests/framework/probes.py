"""What a test needs from the host, found out by trying. A test that can't run is skipped with its reason.

def test_it():
    needs_root()
    needs_program("crun")
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import pytest

PROBE_TIMEOUT_S = 10.0
FULL = bool(os.environ.get("DRUPE_TEST_FULL"))
INTEROP = bool(os.environ.get("DRUPE_TEST_INTEROP"))
T = TypeVar("T")


def needs_root() -> None:
    """Skip unless the test runs as root with CAP_SYS_ADMIN in the initial user namespace's sense: unshare(2) works."""
    if reason := _cannot_unshare():
        pytest.skip(reason)


def needs_program(*names: str) -> None:
    """Skip unless every program is on PATH (sbin directories included)."""
    for name in names:
        if program(name) is None:
            pytest.skip(f"program {name!r} is not installed")


def program(name: str) -> str | None:
    """Full path of `name`, looked for in PATH and the sbin directories, which a plain user's PATH lacks."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin")


def needs_full(what: str) -> None:
    """Skip what takes long, unless DRUPE_TEST_FULL is set."""
    if not FULL:
        pytest.skip(f"{what}: takes long, make test-full (DRUPE_TEST_FULL=1) runs it")


def only_full(what: str) -> pytest.MarkDecorator:
    """As `needs_full`, before a fixture is made for it."""
    return pytest.mark.skipif(not FULL, reason=f"{what}: make test-full")


def each(step: int, of: Sequence[T]) -> Sequence[T]:
    """Each `step`-th one of a list, from the first on: enough of what differs little; `make test-full` has all."""
    return of if FULL else of[::step]


def only_interop(what: str) -> pytest.MarkDecorator:
    """What is run only where DRUPE_TEST_INTEROP is set."""
    return pytest.mark.skipif(not INTEROP, reason=f"{what}: make test-interop")


def needs_path(path: str, *, package: str = "") -> None:
    """Skip unless `path` exists; `package` is what to install."""
    if not Path(path).exists():
        pytest.skip(f"{path} does not exist" + (f" (install {package})" if package else ""))


def needs_cgroup_controller(name: str) -> None:
    """Skip unless the controller can be used: its own v1 hierarchy, or listed in the v2 root's cgroup.controllers."""
    if Path(f"/sys/fs/cgroup/{name}").is_dir():
        return
    listed = Path("/sys/fs/cgroup/cgroup.controllers")
    if not listed.exists() or name not in listed.read_text().split():
        pytest.skip(f"cgroup controller {name!r} is not available here")


def needs_filesystem(name: str) -> None:
    """Skip unless the running kernel knows the file system (proc_filesystems(5))."""
    known = {line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()}
    if name not in known:
        pytest.skip(f"this kernel has no {name} file system")


def needs_keeper() -> None:
    """Skip unless the keeper has been built (scripts/build-native.sh)."""
    if not keeper_binary().exists():
        pytest.skip("the keeper is not built (scripts/build-native.sh)")


def keeper_binary() -> Path:
    """Where scripts/build-native.sh puts the keeper."""
    return Path(__file__).parents[2] / "src/drupe/_bin/drupe-keeper"


@functools.cache
def _cannot_unshare() -> str:
    if os.geteuid() != 0:
        return "needs root"
    try:
        unshare = ["unshare", "--mount", "--net", "--ipc", "--uts", "true"]
        done = subprocess.run(unshare, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"needs namespaces: {error}"
    return "" if done.returncode == 0 else f"needs namespaces: {done.stderr.strip()}"
