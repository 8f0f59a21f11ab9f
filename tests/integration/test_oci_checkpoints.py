"""`drupe-oci checkpoint` and `restore`: by runc with CRIU, by gVisor, by the application
kernel, and refused by name where it cannot be."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework import bundles
from framework.bundles import Runtime, config, make_bundle
from framework.criu import working_criu
from framework.daemon import Daemon
from framework.leaks import wait_until
from framework.probes import needs_keeper, needs_program, needs_root

pytestmark = pytest.mark.root
# what it read when it began is in its memory alone
READS = "read token </token; while :; do echo $token >/new; mv /new /told; sleep 0.05; done"


@pytest.fixture(scope="module")
def runc_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose node was told to use runc, with a CRIU that works here, where there is one."""
    needs_root()
    needs_keeper()
    needs_program("runc")
    criu, _ = working_criu()
    directory = tmp_path_factory.mktemp("r")
    (directory / "drupe.toml").write_text('[kinds.runc]\nprogram = "runc"\n')
    daemon = Daemon(directory)
    try:
        path = f"{criu and criu.parent}:{os.environ['PATH']}"
        daemon.start(env={"DRUPE_CONFIG": str(directory / "drupe.toml"), "PATH": path})
        yield daemon
    finally:
        daemon.close()


@pytest.fixture(params=["runc", "gvisor", "appkernel"])
def oci(request: pytest.FixtureRequest, daemon: Daemon, runc_daemon: Daemon, tmp_path: Path) -> Iterator[Runtime]:
    """drupe-oci by a kind that can."""
    if request.param == "gvisor":
        needs_program("runsc", "crun")
        runtime: Runtime = bundles.of_kind("gvisor", daemon, tmp_path / "state")
    elif request.param == "appkernel":
        needs_program("crun")
        runtime = bundles.of_kind("appkernel", daemon, tmp_path / "state")
    else:
        if why := working_criu()[1]:
            pytest.skip(why)
        runtime = bundles.drupe_oci(runc_daemon, tmp_path / "state")
    yield runtime
    for line in runtime("list", "--quiet").stdout.split():
        runtime("delete", "--force", line)


def create(oci: Runtime, bundle: Path, name: str) -> None:
    """Run it in the background on no streams: CRIU knows only files of the container's."""
    detached(oci, "run", "--detach", "--bundle", bundle, name)


def detached(oci: Runtime, *words: object) -> None:
    argv = [*oci.argv, *map(str, words)]
    null = subprocess.DEVNULL
    done = subprocess.run(argv, env=oci.env, stdin=null, stdout=null, stderr=null, timeout=120, check=False)
    assert done.returncode == 0, (argv, oci("list").stdout)


def telling(root: Path) -> str:
    """What a container that runs on this root tells from now on."""
    (root / "told").unlink(missing_ok=True)
    wait_until((root / "told").exists, what="it tells", timeout_s=60)
    return (root / "told").read_text()


@pytest.fixture
def root(oci: Runtime, tmp_path: Path) -> Path:
    """That of a container c1 which has read "first", and would read "second" now."""
    made = make_bundle(tmp_path / "bundle", config("sh", "-c", READS, cgroup=tmp_path.name[-20:]))
    (made / "rootfs/token").write_text("first\n")
    create(oci, made, "c1")
    assert telling(made / "rootfs") == "first\n"
    (made / "rootfs/token").write_text("second\n")
    return made / "rootfs"


def test_it_goes_on_from_there(oci: Runtime, root: Path, tmp_path: Path) -> None:
    images, bundle = tmp_path / "images/1", tmp_path / "bundle"
    oci("checkpoint", "--image-path", images, "--work-path", tmp_path / "work", "c1")
    assert oci("list", "--quiet").stdout == "", "as with runc, it is gone"
    for name in ("c2", "c3"):  # as often as one likes
        detached(oci, "restore", "-d", "--bundle", bundle, "--image-path", images, "--pid-file", tmp_path / "pid", name)
        assert telling(root) == "first\n"
        assert oci.state(name)["pid"] == int((tmp_path / "pid").read_text())
        assert oci("exec", name, "echo", "here").stdout == "here\n"
        oci("delete", "--force", name)


def test_it_may_be_left_running(oci: Runtime, root: Path, tmp_path: Path) -> None:
    for _ in range(2):  # the second is written over the first
        oci("checkpoint", "--leave-running", "--image-path", tmp_path / "images", "c1")
        assert oci.state("c1")["status"] == "running" and telling(root) == "first\n"


def test_mistakes_leave_nothing(oci: Runtime, root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    make_bundle(tmp_path / "other", config("true", cgroup=f"{tmp_path.name[-20:]}-o"))
    restore = ("restore", "-d", "--bundle", tmp_path / "other", "--image-path")
    mistakes = [
        ("checkpoint", "--image-path", root / "token", "c1"),
        ("checkpoint", "--image-path", tmp_path / "images", "nobody"),
        (*restore, tmp_path / "missing", "c2"),
        (*restore, tmp_path / "empty", "c2"),
        (*restore, tmp_path / "empty", "c1"),
    ]
    for words in mistakes:
        done = oci(*words, check=False)
        assert done.returncode == 1 and done.stderr and "Traceback" not in done.stderr, words
    assert oci("list", "--quiet").stdout == "c1\n" and telling(root) == "first\n"


@pytest.fixture
def crun(daemon: Daemon, tmp_path: Path) -> Iterator[Runtime]:
    needs_program("crun")
    if "+CRIU" in subprocess.run(["crun", "--version"], capture_output=True, text=True, check=True).stdout:
        pytest.skip("this crun is built with CRIU")
    runtime = bundles.drupe_oci(daemon, tmp_path / "state")
    yield runtime
    runtime("delete", "--force", "c1")


def test_what_cannot_says_why(crun: Runtime, tmp_path: Path) -> None:
    create(crun, make_bundle(tmp_path / "bundle", config("sleep", "1000", cgroup=tmp_path.name[-20:])), "c1")
    refused = crun("checkpoint", "c1", check=False)
    assert refused.returncode == 1 and "crun here is built without CRIU" in refused.stderr
    assert "hint: [kinds.runc] program" in refused.stderr and crun.state("c1")["status"] == "running"


def test_a_criu_that_does_not_work_says_why(runc_daemon: Daemon, tmp_path: Path) -> None:
    broken = tmp_path / "criu"
    broken.write_text('#!/bin/sh\necho "Error (criu/vdso.c:381): vdso: Unexpected rt vDSO area bounds" >&2; exit 1\n')
    broken.chmod(0o755)
    oci = bundles.drupe_oci(runc_daemon, tmp_path / "state")
    create(oci, make_bundle(tmp_path / "bundle", config("sleep", "1000", cgroup=tmp_path.name[-20:])), "c1")
    try:
        refused = oci("--criu", broken, "checkpoint", "c1", check=False)
        missing = oci("--criu", tmp_path / "none", "checkpoint", "c1", check=False)
    finally:
        oci("delete", "--force", "c1")
    assert "does not work on this kernel (vdso: Unexpected rt vDSO area bounds)" in refused.stderr
    assert "none is not installed" in missing.stderr


@pytest.mark.parametrize("kind", ["vm", "wasm"])
def test_kinds_that_cannot_refuse_before_anything_is_made(daemon: Daemon, tmp_path: Path, kind: str) -> None:
    needs_program("crun")
    oci = bundles.of_kind(kind, daemon, tmp_path / "state")
    bundle = make_bundle(tmp_path / "bundle", config("true", cgroup=tmp_path.name[-20:]))
    refused = oci("restore", "--bundle", bundle, "--image-path", tmp_path, "c1", check=False)
    assert refused.returncode == 1 and f"{kind} sandboxes cannot checkpoint a container" in refused.stderr
    assert oci("list", "--quiet").stdout == ""


def test_flags_without_a_meaning_are_refused(daemon: Daemon, tmp_path: Path) -> None:
    needs_program("crun", "runsc")
    oci = bundles.of_kind("gvisor", daemon, tmp_path / "state")
    bundle = make_bundle(tmp_path / "bundle", config("true", cgroup=tmp_path.name[-20:]))
    for flag in ("--tcp-established", "--lazy-pages", "--lsm-profile=x"):
        refused = oci("restore", flag, "--bundle", bundle, "--image-path", tmp_path, "c1", check=False)
        assert refused.returncode == 1 and f"{flag.partition('=')[0]} is not carried out" in refused.stderr
