"""`drupe-oci-vm`: bundles of others in machines, behind stand-ins; seconds each, so for `make test-interop` alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from framework import bundles
from framework.bundles import KindRuntime, config, make_bundle
from framework.daemon import Daemon
from framework.leaks import wait_until
from framework.probes import needs_program
from framework.residue import residue

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not os.environ.get("DRUPE_TEST_INTEROP"), reason="machines take seconds: make test-interop"),
]


@pytest.fixture
def oci(machine_daemon: Daemon, tmp_path: Path) -> Iterator[KindRuntime]:
    needs_program("crun")
    runtime = bundles.of_kind("vm", machine_daemon, tmp_path / "state")
    yield runtime
    for line in runtime("list", "--quiet").stdout.split():
        runtime("delete", "--force", line)


def test_a_whole_life(oci: KindRuntime, tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "bundle", config("sh", "-c", "uname -r; exec sleep 1000", cgroup=tmp_path.name[-20:]))
    pid = oci.create(made, "c1", tmp_path / "out")
    assert oci.state("c1")["status"] == "created"
    oci("start", "c1")
    wait_until(
        lambda: (tmp_path / "out").read_text() not in ("", f"{os.uname().release}\n"), what="another kernel says"
    )
    assert oci("exec", "c1", "echo", "in exec").stdout == "in exec\n"
    assert oci("exec", "c1", "sh", "-c", "exit 5", check=False).returncode == 5
    assert "sleep" in oci("ps", "c1").stdout
    oci("kill", "c1", "KILL")
    wait_until(lambda: oci.state("c1")["status"] == "stopped", what="the end of the container")
    wait_until(lambda: not Path(f"/proc/{pid}/exe").exists(), what="the end of its stand-in")
    oci("delete", "c1")
    assert oci("list", "--quiet").stdout == ""


def test_limits_hold_inside(oci: KindRuntime, tmp_path: Path) -> None:
    """Where the guest's kernel counts: the machine itself has more memory, and its processes are none of the host's."""
    shown = "cd /mnt; for name in memory.max memory.low pids.max; do echo $name: $(cat $name); done"
    cgroup = {"destination": "/mnt", "type": "cgroup", "source": "cgroup", "options": ["ro"]}
    proc = {"destination": "/proc", "type": "proc", "source": "proc"}
    limits = {"memory": {"limit": 64 << 20, "reservation": 32 << 20}, "pids": {"limit": 33}}
    spaces = [{"type": name} for name in ("pid", "ipc", "uts", "mount", "network", "cgroup")]
    document = config(
        "sh", "-c", f"{shown}; exec sleep 1000", cgroup=tmp_path.name[-20:], mounts=[proc, cgroup],
        linux={"namespaces": spaces, "resources": limits},
    )  # fmt: skip
    oci.create(make_bundle(tmp_path / "bundle", document), "c1", tmp_path / "out")
    oci("start", "c1")
    wait_until(lambda: "pids.max" in (tmp_path / "out").read_text(), what="it tells its limits", timeout_s=60)
    said = (tmp_path / "out").read_text().split("\n")[:3]
    assert said == [f"memory.max: {64 << 20}", f"memory.low: {32 << 20}", "pids.max: 33"]
    oci("update", "--memory", str(96 << 20), "--pids-limit", "44", "c1")
    assert oci("exec", "c1", "cat", "/mnt/memory.max", "/mnt/pids.max").stdout == f"{96 << 20}\n44\n"
    oci("delete", "--force", "c1")


# what is changed in a bundle, and a word of the refusal
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "more memory than there is": ({"linux": {"resources": {"memory": {"limit": 1 << 50}}}}, "memory"),
    "processors that are not there": ({"linux": {"resources": {"cpu": {"cpus": "0-9999"}}}}, "cpuset_cpus"),
    "a sysctl of the whole host": ({"linux": {"sysctl": {"kernel.core_pattern": "|/bin/sh"}}}, "core_pattern"),
    "a sysctl that is a path": ({"linux": {"sysctl": {"../../etc/passwd": "1"}}}, "etc/passwd"),
    "a program as hypervisor": ({"annotations": {"drupe.vm.hypervisor": "../../bin/sh"}}, "does not offer"),
    "a host name of two lines": ({"hostname": "a\nb"}, "bad hostname"),
    "a bind of what is not there": (
        {"mounts": [{"destination": "/x", "type": "bind", "source": "/nope", "options": ["bind"]}]}, "/nope",
    ),
    "a disk that is not there": (
        {"linux": {
            "devices": [{"path": "/dev/x", "type": "b", "major": 250, "minor": 7}],
            "resources": {"devices": [{"allow": True, "type": "b", "major": 250, "minor": 7, "access": "rwm"}]},
        }}, "no block device 250:7",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bundles_are_refused_and_leave_nothing(
    oci: KindRuntime, machine_daemon: Daemon, tmp_path: Path, name: str
) -> None:
    changes, word = HOSTILE[name]
    made = make_bundle(tmp_path / "bundle", config("true", cgroup=tmp_path.name[-20:], **changes))
    refused = oci("run", "--bundle", made, "c1", check=False)
    assert refused.returncode == 1 and word in refused.stderr and "Traceback" not in refused.stderr
    assert oci("list", "--quiet").stdout == "" and residue(machine_daemon) == {}


def test_a_bundle_cannot_tell_the_guests_crun_what_to_do(oci: KindRuntime, tmp_path: Path) -> None:
    """Its annotations are for whoever asks for the state."""
    own = {"run.oci.handler": "krun", "run.oci.seccomp_bpf_data": "AAAA", "note": "kept"}
    disk = {"path": "/dev/x", "type": "b", "major": 254, "minor": 0}  # no rule lets it: the guest's own is no matter
    asks = ("sh", "-c", "echo ran; dd if=/dev/x count=0 2>&1")
    document = config(*asks, cgroup=tmp_path.name[-20:], annotations=own, linux={"devices": [disk]})
    document["linux"].pop("resources")
    done = oci("run", "--bundle", make_bundle(tmp_path / "bundle", document), "c1", check=False)
    assert done.stdout.startswith("ran\n") and "not permitted" in done.stdout
