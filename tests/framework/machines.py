"""Machines for tests: what they need of the host, and the guest image that scripts/setup.sh --tests has built."""

from __future__ import annotations

from pathlib import Path

import pytest

from drupe import guest
from drupe.errors import DrupeError
from drupe.sandboxers.vm.share import find_virtiofsd
from framework import probes
from framework.guests import cache


def root() -> Path:
    """The directory below which the guest images are: `drupe guest build --root`."""
    return cache() / "machines"


def needs_machines() -> None:
    """Skip, saying why, where no machine can be started."""
    probes.needs_root()
    probes.needs_keeper()
    probes.needs_program("qemu-system-x86_64")
    try:
        find_virtiofsd()
        guest.find(root())
    except DrupeError as error:
        pytest.skip(f"{error.message} (scripts/setup.sh --tests)")
