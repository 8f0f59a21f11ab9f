"""What runc's own suite found (`make test-oci-suites`): callers that know runc find the same here."""

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
from framework.callers import on_terminal
from framework.daemon import Daemon
from framework.leaks import wait_until
from framework.probes import needs_program

pytestmark = pytest.mark.root
NULL = Path("/dev/null")


@pytest.fixture(params=["runc", "appkernel"])
def oci(request: pytest.FixtureRequest, daemon: Daemon, tmp_path: Path) -> Iterator[Runtime]:
    needs_program("crun")
    made = bundles.drupe_oci(daemon, tmp_path / "state")
    if request.param != "runc":
        made = bundles.of_kind(request.param, daemon, tmp_path / "state")
    yield made
    for line in made("list", "--quiet").stdout.split():
        made("delete", "--force", line)


@pytest.fixture
def running(oci: Runtime, tmp_path: Path) -> Runtime:
    """With a container c1 that waits."""
    oci.create(bundle(tmp_path, "sleep", "1000"), "c1", tmp_path / "out")
    oci("start", "c1")
    return oci


def bundle(directory: Path, *args: str, **changes: Any) -> Path:
    return make_bundle(directory / "bundle", config(*args, cgroup=directory.name[-20:], **changes))


def test_relative_paths_are_the_callers(oci: Runtime, tmp_path: Path) -> None:
    """Not the bundle's, to which crun changes."""
    made, here = bundle(tmp_path, "sleep", "1000"), tmp_path / "here"
    here.mkdir()
    with (tmp_path / "out").open("wb") as out:
        argv = [*oci.argv, "--log", "log", "create", "--bundle", str(made), "--pid-file", "pid", "c1"]
        subprocess.run(argv, cwd=here, env=oci.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=True)
    assert int((here / "pid").read_text()) == oci.state("c1")["pid"]


def test_execs_and_their_codes(running: Runtime, tmp_path: Path) -> None:
    """Whatever is wrong with an exec itself is 255."""
    for argv in (("--pid-file", "/nowhere/at/all", "c1", "true"), ("c1", "no-such-program"), ("nobody", "true")):
        failed = running("exec", *argv, check=False)
        assert failed.returncode == 255 and failed.stderr, argv
    upwards = running("exec", "--cgroup", "..", "c1", "true", check=False)
    assert upwards.returncode == 255 and "cgroup" in upwards.stderr
    process = {"args": ["echo", "by descriptor"], "cwd": "/", "env": ["PATH=/bin"]}
    read, write = os.pipe()
    os.write(write, json.dumps(process).encode())
    os.close(write)
    assert running("exec", "--process", f"/dev/fd/{read}", "c1", pass_fds=[read]).stdout == "by descriptor\n"
    os.close(read)


def test_the_hosts_null_device_stays_the_hosts(running: Runtime, tmp_path: Path) -> None:
    """crun gives an exec's streams to its user, who could then change the mode of what all others use."""
    before, user = NULL.stat(), 54321  # nobody else's
    try:
        with (tmp_path / "said").open("wb") as out:
            argv = [*running.argv, "exec", "--detach", "--user", f"{user}:{user}", "c1", "sleep", "1000"]
            subprocess.run(argv, env=running.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=True)
        assert user not in (NULL.stat().st_uid, NULL.stat().st_gid)
    finally:
        os.chown(NULL, before.st_uid, before.st_gid)


def test_a_terminal_is_its_users(oci: Runtime, tmp_path: Path) -> None:
    process = {"terminal": True, "user": {"uid": 1000, "gid": 1000}, "args": ["sh", "-c", "stat -c %u:%g $(tty)"]}
    made = bundle(tmp_path, process=process)
    assert on_terminal([*oci.argv, "run", "--bundle", str(made), "c1"], oci.env, b"") == (0, b"1000:5\n")


def test_what_is_told_of_a_container(running: Runtime, tmp_path: Path) -> None:
    listed = running("list", "--format", "json").stdout
    assert listed.startswith('[{"ociVersion":"') and json.loads(listed)[0]["rootfs"] == f"{tmp_path}/bundle/rootfs"
    running("kill", "c1", "0")
    running("kill", "c1", "KILL")
    wait_until(lambda: running.state("c1")["status"] == "stopped", what="its end", timeout_s=60)
    running("kill", "--all", "c1", "0")
    assert running("kill", "c1", "0", check=False).returncode == 1


def test_processes_by_ps_and_after_the_end(daemon: Daemon, tmp_path: Path) -> None:
    needs_program("crun")
    oci = bundles.drupe_oci(daemon, tmp_path / "state")
    oci.create(bundle(tmp_path, "sleep", "1000"), "c1", tmp_path / "out")
    oci("start", "c1")
    assert oci("ps", "c1", "-e", "-x").stdout.split()[:5] == ["PID", "TTY", "STAT", "TIME", "COMMAND"]
    oci("kill", "c1", "KILL")
    wait_until(lambda: oci.state("c1")["status"] == "stopped", what="its end", timeout_s=60)
    assert len(oci("ps", "c1").stdout.splitlines()) == 1
    assert oci("ps", "--format", "json", "c1").stdout == "[]\n"
    oci("delete", "c1")


def test_limits_are_taken_off(daemon: Daemon, tmp_path: Path) -> None:
    needs_program("crun")
    oci = bundles.drupe_oci(daemon, tmp_path / "state")
    limits = {"memory": {"limit": 64 << 20, "swap": 96 << 20}, "pids": {"limit": 55}, "cpu": {"quota": 50000}}
    document = config("sleep", "1000", cgroup=tmp_path.name[-20:])
    document["linux"]["resources"] |= limits
    pid = oci.create(make_bundle(tmp_path / "bundle", document), "c1", tmp_path / "out")
    cgroups, path = detect(), cgroup_of(pid)
    assert (cgroups.stats(path).pids_limit, cgroups.stats(path).memory_limit_bytes) == (55, 64 << 20)
    oci("update", "--pids-limit", "-1", "c1")
    oci("update", "--cpu-quota", "-1", "--memory", "-1", "c1")
    unlimited = Resources(pids=-1, memory_bytes=-1, memory_swap_bytes=-1, cpu_quota_us=-1)
    assert cgroups.verify(path, unlimited) == []
    oci("delete", "--force", "c1")


def test_kernel_file_systems_are_not_mounted_over_links(oci: Runtime, tmp_path: Path) -> None:
    made = bundle(tmp_path, "true")
    (made / "rootfs/proc").rmdir()
    (made / "rootfs/proc").symlink_to("/tmp")
    refused = oci("run", "--bundle", made, "c1", check=False)
    assert refused.returncode == 1 and "/proc must be mounted on ordinary directory" in refused.stderr


def test_devices_that_are_there_anyhow_are_asked_for(oci: Runtime, tmp_path: Path) -> None:
    devices = [
        {"path": f"/dev/{name}", "type": "c", "major": 5, "minor": minor} for name, minor in (("tty", 0), ("ptmx", 2))
    ]
    made = bundle(tmp_path, "sh", "-c", "[ -c /dev/tty ] && echo there", linux={"devices": devices})
    assert oci("run", "--bundle", made, "c1").stdout == "there\n"


def test_a_template_has_runcs_namespaces(oci: Runtime, tmp_path: Path) -> None:
    needs_program("runc")
    found = []
    for name, argv in (("theirs", ["runc"]), ("ours", oci.argv)):
        (tmp_path / name).mkdir()
        subprocess.run([*argv, "spec", "--bundle", str(tmp_path / name)], env=oci.env, check=True)
        spaces = json.loads((tmp_path / name / "config.json").read_text())["linux"]["namespaces"]
        found.append(sorted(one["type"] for one in spaces))
    assert found[0] == found[1]


def test_help_of_each_verb(oci: Runtime) -> None:
    verbs = [line.split()[0] for line in oci("--help").stdout.partition("COMMANDS:\n")[2].splitlines()[:17]]
    for verb in verbs:
        said = oci(verb, "--help").stdout
        assert said.startswith(f"NAME:\n   drupe-oci {verb} - ") and "--help, -h" in said, said
    assert "No help topic for 'fly'" in oci("fly", "--help", check=False).stderr
