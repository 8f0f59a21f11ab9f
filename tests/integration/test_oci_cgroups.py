"""The cgroups of bundles: what is asked for holds, by whoever makes them; nothing of them is left.

`make test-cgroup2` runs these where cgroups are v2 alone.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drupe.resources.cgroups import detect
from drupe.resources.cgroups.detect import cgroup_of
from drupe.spec.resources import Resources
from framework import bundles
from framework.bundles import Runtime, config, make_bundle
from framework.daemon import Daemon
from framework.leaks import CGROUP_PARENT, wait_until
from framework.probes import needs_program

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]
MIB = 1 << 20
ROOT = Path("/sys/fs/cgroup")
WITH_STAND_INS = ("appkernel", "gvisor")
LIMITS = {"memory": {"limit": 64 * MIB}, "pids": {"limit": 55}, "cpu": {"quota": 50000, "period": 100000}}


def by_systemd() -> bool:
    """Whether it can be asked for a scope."""
    return Path("/proc/1/comm").read_text() == "systemd\n" and Path("/run/dbus/system_bus_socket").exists()


def runtime(kind: str, daemon: Daemon, root: Path) -> Runtime:
    if kind == "gvisor":
        needs_program("runsc")
    return bundles.of_kind(kind, daemon, root) if kind else bundles.drupe_oci(daemon, root)


def directory(path: str, controller: str) -> Path:
    return ROOT / path.lstrip("/") if detect().version == 2 else ROOT / controller / path.lstrip("/")


def memory_limit(path: str, pid: int) -> int:
    """The least from the process's cgroup up to this one: in systemd's scopes crun makes one more below."""
    name = "memory.max" if detect().version == 2 else "memory.limit_in_bytes"
    found, place = [], Path(cgroup_of(pid))
    while place.is_relative_to(path):
        limit = (directory(str(place), "memory") / name).read_text().strip()
        found += [] if limit == "max" else [int(limit)]
        place = place.parent
    return min(found)


@pytest.fixture(params=["", *WITH_STAND_INS], ids=lambda kind: kind or "runc")
def oci(request: pytest.FixtureRequest, daemon: Daemon, tmp_path: Path) -> Iterator[Runtime]:
    needs_program("crun")
    made = runtime(request.param, daemon, tmp_path / "state")
    yield made
    for line in made("list", "--quiet").stdout.split():
        made("delete", "--force", line, check=False)


@pytest.mark.parametrize("systemd", [False, True], ids=["path", "systemd"])
def test_limits_and_what_is_left(oci: Runtime, tmp_path: Path, systemd: bool) -> None:
    if systemd and not by_systemd():
        pytest.skip("systemd is not the first process here")
    name = tmp_path.name[-12:]
    given = path = f"/{CGROUP_PARENT}-{name}"
    if systemd:
        given, path = f"drupe-test.slice:drupe:{name}", f"/drupe.slice/drupe-test.slice/drupe-{name}.scope"
        oci.argv.append("--systemd-cgroup")
    document = config("sh", "-c", "echo up; exec sleep 1000", cgroup="")
    document["linux"] |= {"cgroupsPath": given, "resources": document["linux"]["resources"] | LIMITS}
    made = make_bundle(tmp_path / "bundle", document)
    pid = oci.create(made, "c1", tmp_path / "out")
    assert cgroup_of(pid).startswith(path), cgroup_of(pid)
    assert memory_limit(path, pid) == 64 * MIB
    oci("start", "c1")
    wait_until(lambda: (tmp_path / "out").read_text() == "up\n", what="it is up", timeout_s=60)
    assert oci("exec", "c1", "echo", "in").stdout == "in\n"
    told = json.loads(oci("events", "--stats", "c1").stdout)["data"]
    assert told["memory"]["usage"]["limit"] == 64 * MIB and told["memory"]["usage"]["usage"] > 0
    oci("update", "--memory", "96m", "--memory-swap", "96m", "c1")
    assert memory_limit(path, pid) == 96 * MIB
    oci("pause", "c1")
    assert oci.state("c1")["status"] == "paused"
    oci("resume", "c1")
    oci("kill", "c1", "KILL")
    wait_until(lambda: oci.state("c1")["status"] == "stopped", what="the end", timeout_s=60)
    oci("delete", "c1")
    wait_until(lambda: not directory(path, "memory").exists(), what="the end of the cgroup", timeout_s=60)


def test_cgroups_that_are_not_as_one_would_have_them(oci: Runtime, tmp_path: Path) -> None:
    """A frozen one is refused: nothing could begin in it, and whoever waits would wait for ever."""
    name = f"{CGROUP_PARENT}-{tmp_path.name[-12:]}"
    made = make_bundle(tmp_path / "bundle", config("sleep", "1000", cgroup=tmp_path.name[-12:]))
    cgroups = detect()
    cgroups.create(f"/{name}", Resources())
    cgroups.freeze(f"/{name}")
    try:
        refused = oci("create", "--bundle", made, "c1", check=False)
        assert refused.returncode == 1 and f"container's cgroup unexpectedly frozen: /{name}" in refused.stderr
    finally:
        cgroups.thaw(f"/{name}")
    oci.create(made, "c1", tmp_path / "out")
    oci("start", "c1")
    oci("pause", "c1")
    late = oci("exec", "c1", "true", check=False)
    assert late.returncode == 255 and "cannot exec in a paused container" in late.stderr
    oci("resume", "c1")
    oci("exec", "c1", "true")
    oci("delete", "--force", "c1")


def test_processes_in_the_cgroup_are_told_of(daemon: Daemon, tmp_path: Path) -> None:
    """As runc does, in the log where there is one."""
    oci = bundles.drupe_oci(daemon, tmp_path / "state")
    made = make_bundle(tmp_path / "bundle", config("sleep", "1000", cgroup=tmp_path.name[-12:]))
    oci.create(made, "c1", tmp_path / "out")
    oci.argv += ["--log", str(tmp_path / "log")]
    oci.create(made, "c2", tmp_path / "more")
    assert "container's cgroup is not empty: 1 process" in (tmp_path / "log").read_text()
    for one in ("c2", "c1"):
        oci("delete", "--force", one)


def test_memory_that_is_used_up_ends_it(oci: Runtime, tmp_path: Path) -> None:
    """And whoever watches is told of it."""
    greedy = ["sh", "-c", "read go; dd if=/dev/zero of=/dev/null bs=200M count=100; sleep 1"]
    document: dict[str, Any] = config(*greedy, cgroup=tmp_path.name[-20:])
    document["linux"]["resources"] |= {"memory": {"limit": 32 * MIB, "swap": 32 * MIB}}
    made = make_bundle(tmp_path / "bundle", document)
    create = [*oci.argv, "create", "--bundle", str(made), "c1"]
    read, write = os.pipe()
    with (tmp_path / "out").open("wb") as out:
        subprocess.run(create, env=oci.env, stdin=read, stdout=out, stderr=out, check=True, timeout=120)
    os.close(read)
    oci("start", "c1")
    watch = [*oci.argv, "events", "--interval", "100ms", "c1"]
    with subprocess.Popen(watch, env=oci.env, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert json.loads(watching.stdout.readline())["type"] == "stats"
        os.write(write, b"go\n")
        os.close(write)
        assert any(json.loads(line)["type"] == "oom" for line in watching.stdout)
        watching.kill()
    oci("delete", "--force", "c1")
