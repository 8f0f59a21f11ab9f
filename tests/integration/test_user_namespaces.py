"""Pods with ids of their own: volumes, files and archives speak the ids of inside."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from drupe.spec.control import FileRef, Ref
from framework.daemon import Daemon

pytestmark = pytest.mark.root

Drupe = Callable[..., "CompletedProcess[str]"]


@pytest.fixture(scope="module")
def daemon(open_daemon: Daemon) -> Daemon:
    """Ids of user namespaces can walk to its directories."""
    return open_daemon


@pytest.fixture(autouse=True)
def nothing_left(daemon: Daemon, drupe: Drupe) -> Iterator[None]:
    """Each test starts and ends without pods and volumes."""
    yield
    daemon.delete_pods()
    for name in drupe("volume", "ls", "-q").stdout.split():
        drupe("volume", "rm", name)


@pytest.fixture
def mapped(drupe: Drupe) -> str:
    """A running container in a user namespace."""
    drupe("run", "-d", "--name", "u", "--userns", "auto", "--network", "none", "busybox", "sleep", "1000", check=True)
    return "u"


def test_a_state_directory_that_others_cannot_enter_is_named(daemon: Daemon, drupe: Drupe) -> None:
    daemon.run.parent.chmod(0o700)
    try:
        done = drupe("run", "--rm", "--userns", "auto", "--network", "none", "busybox", "true")
    finally:
        daemon.run.parent.chmod(0o711)
    assert done.returncode == 125
    assert f"{daemon.run.parent} keeps the ids of a user namespace out" in done.stderr
    assert f"chmod o+x {daemon.run.parent}" in done.stderr


def test_the_hosts_null_device_stays_the_hosts(drupe: Drupe) -> None:
    """crun gives a container's streams to its root, and shows it the host's /dev/null: it could change its mode."""
    null = Path("/dev/null")
    before = null.stat()
    try:
        done = drupe(
            "run", "--rm", "--userns", "0:1234000:65536", "--network", "none", "busybox", "chmod", "0", "/dev/null"
        )
        assert done.returncode == 1 and "Operation not permitted" in done.stderr
        assert null.stat().st_uid != 1234000 and null.stat().st_mode == before.st_mode
    finally:
        null.chmod(before.st_mode & 0o7777)
        os.chown(null, before.st_uid, before.st_gid)


def test_a_new_volume_is_the_workloads(drupe: Drupe) -> None:
    script = "touch /v/f /w/f && stat -c %u:%g /v /v/f /w /w/f"
    done = drupe(
        "run",
        "--rm",
        "--userns",
        "auto",
        "--network",
        "none",
        "-v",
        "named:/v",
        "-v",
        "/w",
        "busybox",
        "sh",
        "-c",
        script,
    )
    assert (done.returncode, done.stdout.split()) == (0, ["0:0"] * 4), done.stderr


def test_a_volume_made_before_is_handed_over_at_its_first_use(drupe: Drupe) -> None:
    drupe("volume", "create", "early", check=True)
    run = ("run", "--rm", "--userns", "0:3000000:65536", "--network", "none", "-v", "early:/v", "busybox")
    assert drupe(*run, "touch", "/v/mine").returncode == 0
    assert drupe(*run, "stat", "-c", "%u", "/v", "/v/mine", check=True).stdout.split() == ["0", "0"]
    other = ("run", "--rm", "--userns", "0:4000000:65536", "--network", "none", "-v", "early:/v", "busybox")
    assert drupe(*other, "touch", "/v/theirs").returncode != 0, "a volume in use was handed over"


def test_what_the_image_has_there_is_copied_with_its_owners(drupe: Drupe) -> None:
    done = drupe(
        "run",
        "--rm",
        "--userns",
        "auto",
        "--network",
        "none",
        "-v",
        "etc:/etc",
        "busybox",
        "stat",
        "-c",
        "%u:%g",
        "/etc/passwd",
    )
    assert done.stdout.strip() == "0:0", done.stderr


def test_files_are_told_and_made_with_the_ids_of_inside(daemon: Daemon, drupe: Drupe, mapped: str) -> None:
    drupe("exec", mapped, "sh", "-c", "mkdir /d && touch /d/f && chown 7:8 /d/f", check=True)
    with daemon.client() as client:
        info = client.call("file.stat", FileRef(ref=mapped, path="/d/f"))
        (listed,) = client.call("file.list", FileRef(ref=mapped, path="/d")).files
        host = client.call("container.inspect", Ref(ref=mapped))["status"]["pid"]
    assert (info.uid, info.gid) == (listed.uid, listed.gid) == (7, 8)
    assert Path(f"/proc/{host}/root/d/f").stat().st_uid >= 1_000_000


def test_written_files_have_the_owner_asked_for(daemon: Daemon, drupe: Drupe, mapped: str) -> None:
    from drupe.spec.control import FileWrite

    def write(path: str, **owner: int) -> None:
        read, end = os.pipe()
        os.close(end)
        try:
            with daemon.client() as client:
                client.call("file.write", FileWrite(ref=mapped, path=path, **owner), fds={"data": read})
        finally:
            os.close(read)

    write("/plain")
    write("/owned", uid=5, gid=6)
    assert drupe("exec", mapped, "stat", "-c", "%u:%g", "/plain", "/owned").stdout.split() == ["0:0", "5:6"]
    with pytest.raises(Exception, match="owner 70000 is not among the ids of the pod's user namespace"):
        write("/beyond", uid=70000)


def test_cp_keeps_owners_both_ways(drupe: Drupe, mapped: str, tmp_path: Path) -> None:
    source = tmp_path / "in"
    (source / "sub").mkdir(parents=True)
    (source / "sub/file").write_text("x")
    for path in (source, source / "sub", source / "sub/file"):
        os.chown(path, 5, 6)
    drupe("cp", "-a", str(source), f"{mapped}:/tmp", check=True)
    seen = drupe("exec", mapped, "stat", "-c", "%u:%g", "/tmp/in", "/tmp/in/sub", "/tmp/in/sub/file").stdout.split()
    assert seen == ["5:6"] * 3
    drupe("cp", str(source), f"{mapped}:/opt", check=True)
    assert drupe("exec", mapped, "stat", "-c", "%u:%g", "/opt/sub/file").stdout.strip() == "0:0"
    drupe("cp", "-a", f"{mapped}:/tmp/in", str(tmp_path / "out"), check=True)
    found = (tmp_path / "out/sub/file").stat()
    assert (found.st_uid, found.st_gid) == (5, 6)
