"""`drupe-oci-vm`: bundles of others in machines, behind stand-ins; seconds each, so for `make test-interop` alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework import bundles, machines
from framework.bundles import KindRuntime, config, make_bundle
from framework.daemon import Daemon
from framework.leaks import wait_until
from framework.probes import needs_program

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not os.environ.get("DRUPE_TEST_INTEROP"), reason="machines take seconds: make test-interop"),
]


@pytest.fixture(scope="module")
def machine_daemon(open_daemon: Daemon) -> Daemon:
    machines.needs_machines()
    machines.make_root(open_daemon.root)
    return open_daemon


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
