"""What a kind declares, it does: each feature through the whole of drupe, on every kind that can run here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from proofs import PROOFS
from stage import Stage

from drupe.errors import Unsupported
from drupe.sandboxers.features import FEATURES
from drupe.sandboxers.kinds import KINDS
from drupe.services.doctor import why_not
from drupe.spec import NetworkSpec, PodSpec
from drupe.spec.control import PodCreate
from framework.asks import CALLS, SPECS
from framework.daemon import Daemon

# who proves what is not proved here: where
ELSEWHERE = dict.fromkeys(CALLS, "tests/contract/sandboxer_suite.py") | {
    "attach": "tests/contract/sandboxer_suite.py",
    "block-mounts": "tests/integration/test_vm_changes.py",
    "host-hardware": "tests/contract/test_vm_hypervisors.py",
    "network-change": "tests/integration/test_network_changes.py",
    "processes": "tests/integration/test_cli.py",
    "files": "tests/integration/test_cli.py",
    "mount-propagation": "tests/integration/test_container_mounts.py",
    "io-limits": "tests/integration/test_limits.py",
    "huge-pages": "tests/integration/test_limits.py",
    "cgroup-files": "tests/integration/test_cgroups.py",
    "wasm-modules": "tests/contract/test_wasm.py",
}
LINUX = [name for name, kind in KINDS.items() if not kind.is_planned and kind.able()["linux-programs"] == "yes"]
BUILT = [name for name, kind in KINDS.items() if not kind.is_planned]


def test_each_feature_is_proved_somewhere() -> None:
    assert set(PROOFS) | set(ELSEWHERE) == set(FEATURES)
    assert not set(PROOFS) & set(ELSEWHERE)


@pytest.fixture(scope="module")
def daemon(open_daemon: Daemon) -> Daemon:
    """Ids of user namespaces can walk to its directories."""
    return open_daemon


@pytest.fixture(scope="module")
def reasons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Why a kind cannot run here, "" when it can."""
    cache = tmp_path_factory.mktemp("doctor") / "doctor.json"
    return {name: why_not(KINDS[name], cache=cache) for name in BUILT}


def on(daemon: Daemon, kind: str, tmp_path: Path, reasons: dict[str, str]) -> Stage:
    if reasons[kind]:
        pytest.skip(f"{kind} cannot run here: {reasons[kind]}")
    return Stage(daemon, kind, tmp_path)


@pytest.fixture(autouse=True)
def no_pods_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "daemon" in request.fixturenames:
        request.getfixturevalue("daemon").delete_pods()


@pytest.mark.root
@pytest.mark.parametrize("kind", LINUX)
@pytest.mark.parametrize("feature", PROOFS)
def test_what_is_declared_works(
    daemon: Daemon, kind: str, feature: str, tmp_path: Path, reasons: dict[str, str]
) -> None:
    stage = on(daemon, kind, tmp_path, reasons)
    if stage.able[feature].startswith("no"):
        pytest.skip(f"{kind} has no capability {feature!r} ({stage.able[feature]})")
    PROOFS[feature](stage)


@pytest.mark.root
@pytest.mark.parametrize("kind", BUILT)
def test_what_is_not_declared_is_refused_by_name(
    daemon: Daemon, kind: str, tmp_path: Path, reasons: dict[str, str]
) -> None:
    """Where the kind is chosen, before anything is made, with the name of the feature: each that a spec can ask for."""
    stage = on(daemon, kind, tmp_path, reasons)
    denied = [feature for feature in SPECS if stage.able[feature].startswith("no")]
    with daemon.client() as client:
        for feature in denied:
            spec = PodSpec(**{"sandbox": kind, "network": NetworkSpec(mode="none")} | SPECS[feature])
            with pytest.raises(Unsupported) as caught:
                client.call("system.choose", PodCreate(spec=spec))
            assert caught.value.details == {"kind": kind, "feature": feature}
