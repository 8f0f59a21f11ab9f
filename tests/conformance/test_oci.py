"""The same bundles through runc, crun and drupe-oci: a difference is listed with its reason, or a failure."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from framework import bundles, differences, wasm_conformance
from framework.bundles import Refused, Runtime
from framework.conformance import CASES, INSIDE, REFUSED, Observe, Site, compare
from framework.daemon import Daemon
from framework.probes import needs_keeper, needs_program, needs_root

pytestmark = pytest.mark.root
# of the cases, those that `make test` holds the application kernel to
APPKERNEL_SHORTLY = (
    "capabilities of a user",
    "ids, environment, directory",
    "HOME",
    "what cannot start",
    "exec",
    "state",
)
# and a machine to
MACHINES_SHORTLY = ("ids, environment, directory", "state")


@pytest.mark.parametrize("name", CASES)
def test_what_the_workload_sees(daemon: Daemon, tmp_path: Path, name: str) -> None:
    needs_program("runc", "crun")
    state = tmp_path / "state"
    ours = observe(name, bundles.drupe_oci(daemon, state / "ours"), tmp_path)
    assert ours, "the case saw nothing"
    check(name, ours, by_runc(name), "runc")
    check(name, ours, observe(name, bundles.crun(state / "crun"), tmp_path), "crun")


@pytest.mark.parametrize("name", CASES)
def test_what_it_sees_in_gvisor(daemon: Daemon, tmp_path: Path, name: str) -> None:
    """Beside runc: what is inside is as runsc has it, whoever started that."""
    needs_program("runc", "crun", "runsc")
    ours = observe(name, bundles.of_kind("gvisor", daemon, tmp_path / "ours"), tmp_path)
    assert ours, "the case saw nothing"
    check(name, ours, by_runc(name), "runc", kind="gvisor")
    if name in INSIDE:
        check(name, ours, observe(name, bundles.runsc(tmp_path / "runsc"), tmp_path), "runsc", kind="gvisor")


def beside_runc(name: str, kind: str, daemon: Daemon, tmp_path: Path) -> None:
    """A case by the kind's `drupe-oci` and by runc: they differ only where the list says so."""
    needs_program("runc", "crun")
    ours = observe(name, bundles.of_kind(kind, daemon, tmp_path / "ours"), tmp_path)
    assert ours, "the case saw nothing"
    check(name, ours, by_runc(name), "runc", kind=kind)


@pytest.mark.parametrize("name", CASES)
def test_what_it_sees_under_the_application_kernel(daemon: Daemon, tmp_path: Path, name: str) -> None:
    """Beside runc, as a program sees Linux."""
    if name not in APPKERNEL_SHORTLY and not os.environ.get("DRUPE_TEST_INTEROP"):
        pytest.skip("what shows the least: make test-interop")
    beside_runc(name, "appkernel", daemon, tmp_path)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", CASES)
def test_what_it_sees_in_a_machine(machine_daemon: Daemon, tmp_path: Path, name: str) -> None:
    """Beside runc: a Linux of its own, whose programs are made by crun."""
    if name not in MACHINES_SHORTLY and not os.environ.get("DRUPE_TEST_INTEROP"):
        pytest.skip("a machine for each of its bundles: make test-interop")
    beside_runc(name, "vm", machine_daemon, tmp_path)


@pytest.mark.parametrize("name", wasm_conformance.CASES)
def test_what_a_module_sees(daemon: Daemon, tmp_path: Path, name: str) -> None:
    needs_program("runc", "crun")
    pytest.importorskip("wasmtime")
    cases = wasm_conformance.CASES
    ours = observe(name, bundles.of_kind("wasm", daemon, tmp_path / "ours"), tmp_path, cases)
    assert ours, "the case saw nothing"
    check(name, ours, observe(name, bundles.runc(tmp_path / "runc"), tmp_path, cases), "runc", kind="wasm")


def check(name: str, ours: dict[str, str], theirs: dict[str, str], other: str, *, kind: str = "runc") -> None:
    """What differs is listed, and what is listed differs."""
    found = compare(ours, theirs)
    listed = differences.keys(name, other, kind)
    new = [f"{key}: {mine!r}, {other}: {its!r}" for key, (mine, its) in found.items() if not listed.covers(key)]
    assert new == [], f"not listed: drupe-oci ({kind}) against {other}:\n" + "\n".join(sorted(new))
    assert listed.unused(found) == [], f"listed and not there: drupe-oci ({kind}) against {other}"


@functools.cache
def by_runc(name: str) -> dict[str, str]:
    """What the case sees of runc: once, and each kind is held to it."""
    with tempfile.TemporaryDirectory() as directory:
        return observe(name, bundles.runc(Path(directory) / "state"), Path(directory))


def observe(name: str, runtime: Runtime, directory: Path, cases: Mapping[str, Observe] = CASES) -> dict[str, str]:
    """What the case sees of one runtime, in a directory of its own."""
    with tempfile.TemporaryDirectory(prefix=f"{directory.name}-") as own:
        Path(own).chmod(0o755)  # root of a user namespace must get through
        try:
            return cases[name](Site(runtime, Path(own)))
        except Refused as refusal:
            return {REFUSED: str(refusal)}


@pytest.mark.parametrize("name", ["exec", "exec by a file", "hooks", "hooks that fail", "state", "what cannot start"])
def test_with_runc_as_the_program_it_is_runc(runc_daemon: Daemon, tmp_path: Path, name: str) -> None:
    """What differs is the program's, and none of it ours."""
    needs_program("runc")
    ours = observe(name, bundles.drupe_oci(runc_daemon, tmp_path / "ours"), tmp_path)
    assert compare(ours, by_runc(name)) == {}


@pytest.fixture(scope="module")
def runc_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose node was told to use runc."""
    needs_root()
    needs_keeper()
    directory = tmp_path_factory.mktemp("r")
    config = directory / "drupe.toml"
    config.write_text('[kinds.runc]\nprogram = "runc"\n')
    daemon = Daemon(directory)
    try:
        daemon.start(env={"DRUPE_CONFIG": str(config)})
        yield daemon
    finally:
        daemon.close()
