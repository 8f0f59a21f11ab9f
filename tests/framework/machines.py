"""Machines for tests: what they need of the host, and the guest image that scripts/setup.sh --tests has built."""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drupe import guest
from drupe.errors import DrupeError
from drupe.sandboxers.vm.virtiofsd import find_virtiofsd
from framework import probes
from framework.daemon import Daemon
from framework.guests import cache
from framework.leaks import wait_until
from framework.residue import residue

BOOTS_WITHIN_S = 180.0  # 3 s on a host that does nothing else; 60 were not enough under a load of 25
PACKAGE = Path(guest.__file__).parents[1]


def built() -> Path:
    """The root that has the guest image: scripts/setup.sh --tests has built it of what is here."""
    parts = [PACKAGE / "_bin/drupe-agent", *sorted((PACKAGE / "guest").glob("*.py"))]
    whole = hashlib.sha256(b"".join(part.read_bytes() for part in parts if part.exists()))
    return cache() / "machines" / whole.hexdigest()[:16]


def make_root(root: Path) -> Path:
    """Let a runtime's root have the guest images, without what else was kept beside them."""
    (root / "guests").symlink_to(built() / "guests")
    return root


def needs_machines() -> None:
    """Skip, saying why, where no machine can be started."""
    probes.needs_root()
    probes.needs_keeper()
    probes.needs_program("qemu-system-x86_64")
    try:
        find_virtiofsd()
        guest.find(built())
    except DrupeError as error:
        pytest.skip(f"{error.message} (scripts/setup.sh --tests)")


def pod_of(daemon: Daemon, name: str) -> dict[str, Any]:
    """What `drupe inspect` says of a pod."""
    found: dict[str, Any] = json.loads(daemon.command("inspect", "--type", "pod", name, check=True).stdout)[0]
    return found


def fails(daemon: Daemon, name: str, *, within_s: float) -> str:
    """Wait until a pod has failed; the cause."""
    wait_until(lambda: pod_of(daemon, name)["state"] == "failed", what="the pod has failed", timeout_s=within_s)
    return str(pod_of(daemon, name)["cause"])


def leaves_nothing(daemon: Daemon) -> Iterator[Daemon]:
    """For a fixture: a daemon of machines, and after the test that nothing of its pods is left and no bug was told."""
    yield daemon
    daemon.delete_pods()
    wait_until(lambda: not residue(daemon), what=f"nothing is left: {residue(daemon)}")
    assert "Traceback" not in daemon.log.read_text()


def prepared(daemon: Daemon) -> Daemon:
    """A daemon whose pods without limits start from a template. Skips where there are no machines."""
    needs_machines()
    make_quick_root(daemon.root)
    if not any(_kept().iterdir()):  # the first one of a run makes it, as a user does; a boot takes seconds
        daemon.command("template", "create", check=True, timeout_s=BOOTS_WITHIN_S)
        _copy(daemon.root / "vm/templates", _kept())
    return daemon


def make_quick_root(root: Path) -> Path:
    """`make_root`, with a template if this run of tests has one by now: for those who show no boot."""
    make_root(root)
    if any(_kept().iterdir()):
        templates = root / "vm/templates"
        templates.mkdir(mode=0o700, parents=True)
        _copy(_kept(), templates)
    return root


@functools.cache
def _kept() -> Path:
    """Where a run of tests keeps its template: all roots have the same guest image, so that one serves each of them."""
    kept = tempfile.mkdtemp(prefix="drupe-template-")
    atexit.register(shutil.rmtree, kept, ignore_errors=True)
    return Path(kept)


def _copy(source: Path, target: Path) -> None:
    """All that is there, and holes stay holes."""
    subprocess.run(["cp", "--archive", "--sparse=always", f"{source}/.", target], check=True)
