"""What the wasm kind declares, it does: each feature, through the whole of drupe, on a module compiled from C."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drupe.sandboxers.wasm.able import ABLE
from framework import guests
from framework.daemon import Daemon
from framework.leaks import wait_until

SUITE = "tests/contract/test_wasm.py"
THERE = "tests/integration/test_wasm.py"
# who proves what is not proved here: where
ELSEWHERE = dict.fromkeys(("exec", "tty", "attach", "signals", "pause", "update", "stats", "rootfs"), SUITE)
ELSEWHERE |= dict.fromkeys(
    ("wasm-modules", "multi-container", "idle", "processes", "cwd", "bind-mounts", "volumes", "tmpfs", "secrets",
     "read-only-mounts", "memory-limit", "user-namespace", "read-only-root"), THERE
)  # fmt: skip
ELSEWHERE |= {
    "network": "tests/integration/test_wasm_programs.py",
    "host-network": "tests/integration/test_wasm_programs.py",
    "egress-policy": "tests/integration/network: it is the pod's",
    "names": "tests/integration/network: it is the pod's",
    "network-change": "tests/integration/test_network_changes.py: it is the pod's",
    "container-limits": "tests/contract/test_features.py: cgroups know no kinds",
    "memory-tuning": "tests/contract/test_features.py: as above",
    "io-limits": "tests/integration/test_limits.py: as above",
    "huge-pages": "tests/integration/test_limits.py: as above",
    "cgroup-files": "tests/integration/test_cgroups.py: as above",
}
Proof = Callable[["Stage"], None]
PROOFS: dict[str, Proof] = {}


class Stage:
    """A daemon with the suite's image."""

    def __init__(self, daemon: Daemon, tmp: Path) -> None:
        self.daemon = daemon
        self.tmp = tmp

    def out(self, *argv: str) -> str:
        done = self.daemon.command("run", "--rm", "--network", "none", *argv, check=True)
        return done.stdout.strip()

    def running(self, *argv: str) -> dict[str, Any]:
        """All that is known of a container that runs on."""
        self.daemon.command("run", "-d", "--name", "it", "--network", "none", *argv, check=True)
        found: dict[str, Any] = json.loads(self.daemon.command("inspect", "it", check=True).stdout)[0]
        return found


def proves(feature: str) -> Callable[[Proof], Proof]:
    """Take a function as the proof of a feature."""

    def take(proof: Proof) -> Proof:
        PROOFS[feature] = proof
        return proof

    return take


def _pid(found: dict[str, Any]) -> Path:
    return Path(f"/proc/{found['status']['pid']}")


@proves("init")
def _(on: Stage) -> None:
    assert on.out("--init", "suite", "echo", "alone") == "alone"


@proves("files")
def _(on: Stage) -> None:
    on.running("--tmpfs", "/t", "suite", "sleep", "60")
    (on.tmp / "file").write_text("copied in")
    on.daemon.command("cp", str(on.tmp / "file"), "it:/t/file", check=True)
    assert on.daemon.command("exec", "it", "suite", "cat", "/t/file", check=True).stdout == "copied in"


@proves("user")
def _(on: Stage) -> None:
    status = (_pid(on.running("-u", "1234:2345", "--group-add", "99", "suite", "sleep", "60")) / "status").read_text()
    lines = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert (lines["Uid"].split()[0], lines["Gid"].split()[0], lines["Groups"].split()) == (
        "1234",
        "2345",
        ["99", "2345"],
    )


@proves("rlimits")
def _(on: Stage) -> None:
    limits = (_pid(on.running("--ulimit", "nofile=100:200", "suite", "sleep", "60")) / "limits").read_text()
    assert next(line.split()[3:5] for line in limits.splitlines() if line.startswith("Max open files")) == [
        "100",
        "200",
    ]


@proves("oom-score")
def _(on: Stage) -> None:
    found = on.running("--oom-score-adj", "500", "suite", "sleep", "60")
    assert (_pid(found) / "oom_score_adj").read_text() == "500\n"


@proves("image-mounts")
def _(on: Stage) -> None:
    (on.tmp / "tree").mkdir()
    (on.tmp / "tree/file").write_text("of another image")
    on.daemon.command("image", "import", "--format", "rootfs", "--tag", "other", str(on.tmp / "tree"), check=True)
    assert on.out("--mount", "type=image,source=other,target=/i", "suite", "cat", "/i/file") == "of another image"


@proves("cpu-limits")
def _(on: Stage) -> None:
    on.running("--cpus", "0.2", "suite", "spin")

    def throttled() -> bool:
        found = json.loads(on.daemon.command("stats", "--no-stream", "--json", "it").stdout)
        stats = (found[0] if isinstance(found, list) else found)["stats"]
        return bool(stats["cpu_throttled_periods"])

    wait_until(throttled, what="it is held back")


@proves("cpu-sets")
def _(on: Stage) -> None:
    found = on.running("--cpuset-cpus", "0", "suite", "sleep", "60")
    assert os.sched_getaffinity(found["status"]["pid"]) == {0}


@proves("pids-limit")
def _(on: Stage) -> None:
    """It holds for the threads of the engine, the one thing that a guest makes it start."""
    found = on.running("--pids-limit", "20", "suite", "sleep", "60")
    files = [Path(f"/sys/fs/cgroup{tree}{_cgroup(found)}/pids.max") for tree in ("/pids", "")]
    assert [file.read_text() for file in files if file.exists()] == ["20\n"]


def _cgroup(found: dict[str, Any]) -> str:
    lines = (_pid(found) / "cgroup").read_text().splitlines()
    paths = {line.split(":")[1]: line.split(":", 2)[2] for line in lines}
    return paths.get("pids", paths.get("", ""))


@proves("hostname")
def _(on: Stage) -> None:
    assert on.out("--hostname", "chosen", "suite", "printenv", "HOSTNAME") == "chosen"


@proves("host-ipc")
def _(on: Stage) -> None:
    found = on.running("--ipc", "host", "suite", "sleep", "60")
    assert (_pid(found) / "ns/ipc").readlink() == Path("/proc/self/ns/ipc").readlink()


@proves("host-uts")
def _(on: Stage) -> None:
    found = on.running("--uts", "host", "suite", "sleep", "60")
    assert (_pid(found) / "ns/uts").readlink() == Path("/proc/self/ns/uts").readlink()


@proves("sysctls")
def _(on: Stage) -> None:
    found = on.running("--sysctl", "net.ipv4.ip_default_ttl=77", "suite", "sleep", "60")
    pid = str(found["status"]["pid"])
    said = on.daemon.on_host("nsenter", "-t", pid, "-n", "cat", "/proc/sys/net/ipv4/ip_default_ttl").stdout
    assert said == "77\n"


@proves("drop-capabilities")
def _(on: Stage) -> None:
    """It has none to begin with."""
    status = (_pid(on.running("--cap-drop", "ALL", "suite", "sleep", "60")) / "status").read_text()
    assert "CapEff:\t0000000000000000" in status


def test_each_feature_is_proved_somewhere() -> None:
    declared = {feature for feature, said in ABLE.items() if not said.startswith("no")}
    assert set(PROOFS) | set(ELSEWHERE) == declared
    assert not set(PROOFS) & set(ELSEWHERE)


@pytest.fixture(scope="module")
def with_suite(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Daemon:
    pytest.importorskip("wasmtime")
    module = tmp_path_factory.mktemp("suite") / "suite.wasm"
    shutil.copyfile(guests.suite(), module)
    daemon.command("image", "import", "--tag", "suite", str(module), check=True)
    return daemon


@pytest.fixture
def stage(with_suite: Daemon, tmp_path: Path) -> Iterator[Stage]:
    yield Stage(with_suite, tmp_path)
    with_suite.delete_pods()


@pytest.mark.root
@pytest.mark.parametrize("feature", PROOFS)
def test_what_is_declared_works(stage: Stage, feature: str) -> None:
    PROOFS[feature](stage)
