"""The same bundles through runc, crun and drupe-oci: a difference is listed with its reason, or a failure."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from framework import bundles, differences
from framework.bundles import Runtime
from framework.conformance import CASES, Site, compare
from framework.daemon import Daemon
from framework.probes import needs_program

pytestmark = pytest.mark.root


@pytest.mark.parametrize("name", CASES)
def test_what_the_workload_sees(daemon: Daemon, tmp_path: Path, name: str) -> None:
    needs_program("runc", "crun")
    state = tmp_path / "state"
    ours = observe(name, bundles.drupe_oci(daemon, state / "ours"), tmp_path)
    assert ours, "the case saw nothing"
    for other in (bundles.runc(state / "runc"), bundles.crun(state / "crun")):
        found = compare(ours, observe(name, other, tmp_path))
        listed = differences.keys(name, other.name)
        new = [
            f"{key}: {mine!r}, {other.name}: {its!r}" for key, (mine, its) in found.items() if not listed.covers(key)
        ]
        assert new == [], f"not listed: drupe-oci against {other.name}:\n" + "\n".join(sorted(new))
        assert listed.unused(found) == [], f"listed and not there: drupe-oci against {other.name}"


def observe(name: str, runtime: Runtime, directory: Path) -> dict[str, str]:
    """What the case sees of one runtime, in a directory of its own."""
    with tempfile.TemporaryDirectory(prefix=f"{directory.name}-") as own:
        Path(own).chmod(0o755)  # root of a user namespace must get through
        return CASES[name](Site(runtime, Path(own)))
