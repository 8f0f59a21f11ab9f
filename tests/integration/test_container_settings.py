"""Settings of a container, seen from inside it: what was asked for is what the kernel says."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from drupe.spec import Namespaces, NetworkSpec, PodSpec
from drupe.spec.control import Delete, PodCreate, Ref
from framework.daemon import Daemon
from framework.leaks import wait_until

pytestmark = pytest.mark.root

Run = Callable[..., str]
MIB = 1 << 20


@pytest.fixture(autouse=True)
def nothing_left(daemon: Daemon) -> Iterator[None]:
    """Each test starts and ends without pods and volumes."""
    yield
    daemon.delete_pods()
    for name in daemon.command("volume", "ls", "-q").stdout.split():
        daemon.command("volume", "rm", name)


@pytest.fixture
def inside(daemon: Daemon) -> Run:
    """Run a shell line in a container with the given flags; what it printed."""

    def run(script: str, *flags: str) -> str:
        done = daemon.command("run", "--rm", "--network", "none", *flags, "busybox", "sh", "-c", script, check=True)
        return done.stdout.strip()

    return run


def start(daemon: Daemon, *argv: str) -> CompletedProcess[str]:
    return daemon.command("run", "-d", "--network", "none", *argv, check=True)


def test_rlimits(inside: Run) -> None:
    flags = ("--ulimit", "nofile=123:456", "--ulimit", "core=0")
    assert inside("ulimit -Sn; ulimit -Hn; ulimit -c", *flags).split() == ["123", "456", "0"]


def test_oom_score_adj(inside: Run) -> None:
    assert inside("cat /proc/self/oom_score_adj", "--oom-score-adj", "500") == "500"


def test_sysctls_belong_to_the_pod(inside: Run) -> None:
    script = "cat /proc/sys/net/core/somaxconn /proc/sys/kernel/msgmax"
    flags = ("--sysctl", "net.core.somaxconn=321", "--sysctl", "kernel.msgmax=4321")
    assert inside(script, *flags).split() == ["321", "4321"]
    assert Path("/proc/sys/kernel/msgmax").read_text().strip() != "4321"


def test_sysctls_of_the_host_are_refused(daemon: Daemon) -> None:
    done = daemon.command("run", "--rm", "--network", "none", "--sysctl", "kernel.panic=7", "busybox", "true")
    assert done.returncode == 125
    assert "kernel.panic" in done.stderr


def test_shared_memory(inside: Run) -> None:
    script = "df -k /dev/shm | tail -1 | awk '{print $2}'"
    assert inside(script) == str(64 << 10)
    assert inside(script, "--shm-size", "16m") == str(16 << 10)


def test_a_read_only_root_with_memory_to_write_to(inside: Run) -> None:
    script = "touch /x 2>&1; stat -c %a /tmp; touch /tmp/x && echo written; df -k /tmp | tail -1 | awk '{print $2}'"
    told, mode, written, size = inside(script, "--read-only", "--tmpfs", "/tmp:size=4m,mode=1777").splitlines()
    assert told.endswith("Read-only file system")
    assert (mode, written, size) == ("1777", "written", "4096")


def test_a_device_with_its_rights(inside: Run) -> None:
    script = "stat -c %t:%T /dev/k; (exec 3</dev/k) && echo read; (exec 3>/dev/k) 2>/dev/null || echo refused"
    assert inside("test -e /dev/kmsg || echo none") == "none"
    assert inside(script, "--device", "/dev/kmsg:/dev/k:r", "--cap-add", "SYSLOG").split() == ["1:b", "read", "refused"]


def test_devices_that_were_not_given_are_closed(inside: Run) -> None:
    """Also to one who may make nodes."""
    script = "mknod /dev/k c 1 11 && (exec 3</dev/k) 2>/dev/null || echo refused"
    assert inside(script, "--cap-add", "MKNOD") == "refused"


def test_an_init_reaps_orphans(daemon: Daemon) -> None:
    orphans = "for i in 1 2 3; do (sleep 0.01 &) ; done; sleep 0.3; grep -l 'State:.Z' /proc/[0-9]*/status | wc -l"
    assert daemon.command("run", "--rm", "--init", "--network", "none", "busybox", "sh", "-c", orphans).stdout == "0\n"
    start(daemon, "--init", "--name", "t", "busybox", "sleep", "1000")
    assert daemon.command("exec", "t", "cat", "/proc/1/comm").stdout != "sleep\n"


def test_the_stop_signal_and_its_grace(daemon: Daemon) -> None:
    said = "trap 'echo usr1; exit 7' USR1; trap 'echo term' TERM; echo ready; while :; do sleep 0.02; done"
    start(daemon, "--name", "t", "--stop-signal", "USR1", "busybox", "sh", "-c", said)
    wait_until(lambda: "ready" in daemon.command("logs", "t").stdout, what="it has set its traps")
    daemon.command("stop", "t", check=True)
    assert daemon.command("logs", "t").stdout == "ready\nusr1\n"
    assert daemon.command("wait", "t").stdout.strip() == "7"
    start(daemon, "--name", "deaf", "--stop-timeout", "0.3", "busybox", "sh", "-c", said)
    wait_until(lambda: "ready" in daemon.command("logs", "deaf").stdout, what="it has set its traps")
    began = time.monotonic()
    daemon.command("stop", "deaf", check=True)
    assert 0.3 <= time.monotonic() - began < 5
    assert daemon.command("logs", "deaf").stdout == "ready\nterm\n"
    assert daemon.command("wait", "deaf").stdout.strip() == "137"


def test_a_new_volume_takes_what_the_image_has(inside: Run, daemon: Daemon) -> None:
    names = inside("ls -A /etc", "-v", "fresh:/etc").split()
    assert "passwd" in names
    assert set(names) <= set(inside("ls -A /v", "-v", "fresh:/v").split())
    daemon.command("volume", "create", "filled", check=True)
    inside("touch /v/mine", "-v", "filled:/v")
    assert "passwd" not in inside("ls -A /etc", "-v", "filled:/etc").split()


def test_an_image_as_a_mount_is_read_only(inside: Run) -> None:
    flags = ("--mount", "type=image,source=busybox,target=/img")
    there, told = inside("test -x /img/bin/busybox && echo there; touch /img/x 2>&1 || true", *flags).splitlines()
    assert there == "there"
    assert told.endswith("Read-only file system")


def test_a_cgroup_parent(daemon: Daemon) -> None:
    parent = f"{daemon.cgroup.strip('/')}-parent"
    container = start(daemon, "--cgroup-parent", f"/{parent}", "busybox", "sleep", "1000").stdout.strip()
    with daemon.client() as client:
        pid = client.call("container.status", Ref(ref=container)).pid
    paths = [line.split(":", 2)[2] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    assert any(path.startswith(f"/{parent}/drupe-") for path in paths), paths
    daemon.delete_pods()
    left = [p for root in Path("/sys/fs/cgroup").iterdir() for p in root.glob(f"{parent}/*/") if p.is_dir()]
    assert left == []
    for root in Path("/sys/fs/cgroup").iterdir():
        if (root / parent).is_dir():
            (root / parent).rmdir()


def test_a_bad_cgroup_parent_is_refused_before_anything_is_made(daemon: Daemon) -> None:
    for parent in ("//x", "relative", "/a/../b"):
        done = daemon.command("run", "--rm", "--network", "none", "--cgroup-parent", parent, "busybox", "true")
        assert done.returncode == 125, parent
        assert "bad cgroup path" in done.stderr
    assert daemon.command("ps", "-aq").stdout == ""


# -- mounts that travel -------------------------------------------------------------------------------------------


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A host directory on a shared mount, made after the daemon started."""
    place = tmp_path / "shared"
    place.mkdir()
    subprocess.run(["mount", "--bind", place, place], check=True)
    subprocess.run(["mount", "--make-shared", place], check=True)
    yield place
    subprocess.run(["umount", "--recursive", place], check=True)


def mount_tmpfs(place: Path) -> None:
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "test", place], check=True)
    (place / "file").touch()


def test_a_bind_holds_what_the_host_mounted_after_the_daemon_started(inside: Run, shared: Path) -> None:
    mount_tmpfs(shared / "late")
    assert inside("ls /s/late /l", "-v", f"{shared}:/s", "-v", f"{shared}/late:/l").split() == [
        "/l:", "file", "/s/late:", "file",
    ]  # fmt: skip
    assert (shared / "late/file").exists()


def test_a_mount_of_the_host_appears_below_an_rslave_bind_only(daemon: Daemon, shared: Path) -> None:
    start(daemon, "--name", "t", "-v", f"{shared}:/s:rslave", "-v", f"{shared}:/p", "busybox", "sleep", "1000")
    mount_tmpfs(shared / "late")
    assert daemon.command("exec", "t", "ls", "/s/late").stdout == "file\n"
    assert daemon.command("exec", "t", "ls", "/p/late").stdout == "", "a private bind got a mount of the host"
    daemon.command("rm", "-f", "t", check=True)
    assert (shared / "late/file").exists(), "the end of a container unmounted something of the host's"


def test_a_mount_made_below_an_rshared_bind_appears_on_the_host(daemon: Daemon, shared: Path) -> None:
    (shared / "deep").mkdir()
    mount_tmpfs(shared / "late")
    flags = ("--privileged", "-v", f"{shared}:/s:rshared", "-v", f"{shared}:/v:rslave")
    start(daemon, "--name", "t", *flags, "busybox", "sleep", "1000")
    daemon.command("exec", "--privileged", "t", "mount", "-t", "tmpfs", "x", "/s/deep", check=True)
    daemon.command("exec", "t", "touch", "/s/deep/file", check=True)
    assert (shared / "deep/file").exists()
    daemon.command("rm", "-f", "t", check=True)
    assert (shared / "late/file").exists(), "the end of a container unmounted something of the host's"


def test_propagation_that_the_host_does_not_have_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    subprocess.run(["mount", "--bind", tmp_path, tmp_path], check=True)
    try:
        subprocess.run(["mount", "--make-private", tmp_path], check=True)
        for mode in ("rshared", "rslave", "shared", "slave"):
            bind = f"{tmp_path}:/s:{mode}"
            done = daemon.command("run", "--rm", "--network", "none", "-v", bind, "busybox", "true")
            assert done.returncode == 125, mode
            assert f"mount --make-shared {tmp_path}" in done.stderr
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert daemon.command("ps", "-aq").stdout == ""


def test_binds_are_there_again_after_a_stop(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/name").write_text("first\n")
    (tmp_path / "file").write_text("text\n")
    flags = ("-v", f"{tmp_path}/dir:/d", "-v", f"{tmp_path}/file:/f:ro")
    start(daemon, "--name", "t", *flags, "busybox", "sh", "-c", "cat /d/name /f; sleep 1000")
    wait_until(lambda: daemon.command("logs", "t").stdout == "first\ntext\n", what="it has read both")
    daemon.command("stop", "-t", "0", "t", check=True)
    (tmp_path / "dir/name").write_text("second\n")
    daemon.command("start", "t", check=True)
    wait_until(lambda: daemon.command("logs", "t").stdout.endswith("second\ntext\n"), what="it has read both again")
    assert daemon.command("exec", "t", "sh", "-c", "echo x > /f").returncode != 0


def test_a_pod_that_shares_pids_and_never_started_is_deleted(daemon: Daemon) -> None:
    """Its PID 1 lives in the pod's cgroup since the pod was made."""
    spec = PodSpec(
        name="shares",
        network=NetworkSpec(mode="none"),
        namespaces=Namespaces(pid="pod"),
        sysctls={"kernel.msgmax": "99"},
    )
    with daemon.client() as client:
        made = client.call("pod.create", PodCreate(spec=spec))
        assert made.state == "ready"
        began = time.monotonic()
        client.call("pod.delete", Delete(ref=made.id))
    assert time.monotonic() - began < 1.5
