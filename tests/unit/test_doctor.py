"""The doctor's bookkeeping: verdicts, cache, deadlines. What it finds on a real host is tested in integration."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from drupe.sandboxers.kinds import KINDS
from drupe.services import doctor
from drupe.services.doctor import Check, can_run_runc, probe_all
from drupe.services.probing import Inconclusive, Problem, expect, program, run

NEEDS = {
    name for kind in KINDS.values() for need in kind.needs for name in ((need,) if isinstance(need, str) else need)
}
GOOD: dict[str, Callable[[], str]] = {name: lambda: "" for name in sorted({*NEEDS, "EROFS"})}


def broken(error: Exception) -> Callable[[], str]:
    def probe() -> str:
        raise error

    return probe


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replace the probes."""

    def use(**changed: Callable[[], str]) -> None:
        table = tuple(Check(name, probe) for name, probe in (GOOD | changed).items())
        monkeypatch.setattr(doctor, "CHECKS", table)

    return use


def state_of(probes: list[doctor.Probe], name: str) -> tuple[str, str, str]:
    found = next(probe for probe in probes if probe.name == name)
    return found.state, found.cause, found.mend


def test_what_kinds_need_is_probed() -> None:
    """A kind rests on checks that are there, and one that can run rests on some."""
    assert {check.name for check in doctor.CHECKS} >= NEEDS
    assert all(kind.needs for kind in KINDS.values() if not kind.is_planned)


def test_all_good(checks: Callable[..., None], tmp_path: Path) -> None:
    checks()
    probes = probe_all(fresh=True, cache=tmp_path / "c.json")
    assert can_run_runc(probes)


@pytest.mark.parametrize("name", ["root", "keeper", "overlay", "cgroups"])
def test_what_runc_needs(checks: Callable[..., None], tmp_path: Path, name: str) -> None:
    checks(**{name: broken(Problem("not here", "get it"))})
    probes = probe_all(fresh=True, cache=tmp_path / "c.json")
    assert not can_run_runc(probes)
    assert state_of(probes, name) == ("fail", "not here", "get it")
    assert state_of(probes, "kind runc")[1] == f"needs: {name}"


def test_one_of_crun_and_runc_is_enough(checks: Callable[..., None], tmp_path: Path) -> None:
    checks(crun=broken(Problem("no")))
    assert can_run_runc(probe_all(fresh=True, cache=tmp_path / "c.json"))
    checks(crun=broken(Problem("no")), runc=broken(Problem("no")))
    assert not can_run_runc(probe_all(fresh=True, cache=tmp_path / "c.json"))


def test_a_warning_does_not_stop_runc(checks: Callable[..., None], tmp_path: Path) -> None:
    checks(EROFS=broken(Inconclusive("no", "apt-get")), cgroups=broken(Inconclusive("v1; without cpuset")))
    probes = probe_all(fresh=True, cache=tmp_path / "c.json")
    assert state_of(probes, "EROFS") == ("warn", "no", "apt-get")
    assert can_run_runc(probes)


def test_a_probe_that_breaks_is_a_finding(checks: Callable[..., None], tmp_path: Path) -> None:
    checks(EROFS=broken(ZeroDivisionError("x")))
    probes = probe_all(fresh=True, cache=tmp_path / "c.json")
    assert state_of(probes, "EROFS") == ("fail", "the probe itself broke: ZeroDivisionError: x", "")


def test_good_findings_are_cached_and_bad_ones_are_probed_again(checks: Callable[..., None], tmp_path: Path) -> None:
    cache = tmp_path / "c.json"
    checks(EROFS=broken(Problem("no")))
    probe_all(fresh=False, cache=cache)
    checks(overlay=broken(Problem("would be seen if probed")))
    probes = probe_all(fresh=False, cache=cache)
    assert state_of(probes, "overlay")[0] == "ok"
    assert state_of(probes, "EROFS")[0] == "ok"
    assert state_of(probe_all(fresh=True, cache=cache), "overlay")[0] == "fail"


def test_the_cache_belongs_to_a_boot_and_to_versions(
    checks: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "c.json"
    checks()
    probe_all(fresh=False, cache=cache)
    checks(overlay=broken(Problem("no")))
    monkeypatch.setattr(doctor, "cache_key", lambda: "another boot")
    assert state_of(probe_all(fresh=False, cache=cache), "overlay")[0] == "fail"


@pytest.mark.parametrize("content", [b"", b"{", b'{"key": 3}'])
def test_a_damaged_or_unwritable_cache_does_no_harm(
    checks: Callable[..., None], tmp_path: Path, content: bytes
) -> None:
    checks()
    (tmp_path / "c.json").write_bytes(content)
    assert can_run_runc(probe_all(fresh=False, cache=tmp_path / "c.json"))
    assert can_run_runc(probe_all(fresh=False, cache=tmp_path / "no such directory" / "c.json"))


def test_probes_run_at_once(checks: Callable[..., None], tmp_path: Path) -> None:
    def slow() -> str:
        time.sleep(0.05)
        return ""

    checks(**dict.fromkeys(GOOD, slow))
    began = time.monotonic()
    probes = probe_all(fresh=True, cache=tmp_path / "c.json")
    assert time.monotonic() - began < 0.05 * len(GOOD)
    assert all(probe.took_ms >= 45 for probe in probes if probe.name in GOOD)


def test_a_program_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    script = f"sleep 97 & echo $! > {tmp_path}/pid; wait"
    with pytest.raises(Problem, match="no answer within"):
        run(["sh", "-c", script], deadline_s=0.2)
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(FileNotFoundError):
        while Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
            time.sleep(0.005)
        raise FileNotFoundError


def test_what_a_program_said_is_the_cause() -> None:
    with pytest.raises(Problem, match="second"):
        expect(run(["sh", "-c", "echo first >&2; echo second >&2; exit 3"]), "x", mend="m")
    with pytest.raises(Problem, match="exit code 3"):
        expect(run(["sh", "-c", "exit 3"]), "x", mend="m")
    with pytest.raises(Problem, match="no-such-program is not installed") as caught:
        program("no-such-program", package="nsp")
    assert caught.value.mend == "apt-get install nsp"
