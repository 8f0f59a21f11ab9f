"""gVisor pods through a real daemon: network, files, terminals, limits, death and recovery."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from drupe.errors import DrupeError
from drupe.spec.control import Delete
from framework import probes
from framework.daemon import COMMAND, Daemon
from framework.leaks import wait_until

pytestmark = pytest.mark.root
G = ("--sandbox", "gvisor")
LOOP = "i=0; while :; do i=$((i+1)); echo $i >/count; sleep 0.05; done"


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    probes.needs_program("runsc")
    daemon = request.getfixturevalue("fresh_daemon" if "fresh_daemon" in request.fixturenames else "daemon")
    yield
    daemon.delete_pods()
    assert list((daemon.run / "gvisor").glob("*")) == []
    assert sentries(daemon) == []


def sentries(daemon: Daemon) -> list[int]:
    """Pids of the sentries and gofers of a daemon."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].startswith(b"runsc-") and any(str(daemon.run).encode() in word for word in words):
            found.append(int(path.parent.name))
    return found


def sentry_of(daemon: Daemon) -> int:
    """The one sentry."""
    (pid,) = [pid for pid in sentries(daemon) if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"runsc-sandbox")]
    return pid


def start(daemon: Daemon, *argv: str, name: str = "g") -> None:
    daemon.command("run", "-d", "--name", name, *G, *argv, check=True)


def said(daemon: Daemon, *argv: str, timeout_s: float = 30) -> str:
    return daemon.command(*argv, check=True, timeout_s=timeout_s).stdout


def state(daemon: Daemon, ref: str) -> str:
    return said(daemon, "inspect", ref).partition('"state": "')[2].partition('"')[0]


# -- what it is -------------------------------------------------------------------------------------------------------


def test_it_is_another_kernel_and_exit_codes_pass(daemon: Daemon) -> None:
    done = daemon.command("run", "--rm", *G, "busybox", "sh", "-c", "dmesg | head -1; exit 5")
    assert (done.returncode, "gVisor" in done.stdout) == (5, True)


def test_only_sentry_and_gofer_stand_for_a_pod_and_they_are_confined(daemon: Daemon) -> None:
    """No watcher, no client of an exec; seccomp, no new privileges, root and namespaces of their own."""
    start(daemon, "busybox", "sleep", "60")
    before = sentries(daemon)
    running = subprocess.Popen([COMMAND, "exec", "g", "sleep", "2"], env=daemon.environment())
    time.sleep(0.5)
    assert sentries(daemon) == before and len(before) == 2
    running.wait()
    for pid in before:
        status = Path(f"/proc/{pid}/status").read_text()
        assert "Seccomp:\t2" in status and "NoNewPrivs:\t1" in status
        for kind in ("user", "net", "mnt"):
            assert Path(f"/proc/{pid}/ns/{kind}").readlink() != Path(f"/proc/self/ns/{kind}").readlink()
    assert sorted(entry.name for entry in Path(f"/proc/{sentry_of(daemon)}/root").iterdir()) == ["etc", "proc"]


# -- files ------------------------------------------------------------------------------------------------------------


def test_mounts_volumes_and_files_are_true_in_both_directions(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "given").write_text("from the host\n")
    start(daemon, "-v", f"{tmp_path}:/ro:ro", "-v", f"{tmp_path}:/rw", "-v", "data:/data", "--tmpfs", "/t:size=1m",
          "-v", f"{tmp_path}:/tmp/below", "busybox", "sleep", "60")  # fmt: skip
    for path in ("/ro/given", "/tmp/below/given"):
        assert said(daemon, "exec", "g", "cat", path) == "from the host\n"
    refused = daemon.command("exec", "g", "sh", "-c", "echo x >/ro/no")
    assert refused.returncode != 0 and not (tmp_path / "no").exists()
    said(daemon, "exec", "g", "sh", "-c", "echo out >/rw/out; echo v >/data/v; echo l >/layer; echo t >/tmp/t")
    assert (tmp_path / "out").read_text() == "out\n"
    assert (daemon.root / "volumes/data/data/v").read_text() == "v\n"
    for path, text in (("/layer", "l\n"), ("/tmp/t", "t\n"), ("/data/v", "v\n")):
        said(daemon, "cp", f"g:{path}", str(tmp_path / "copy"))
        assert (tmp_path / "copy").read_text() == text
    said(daemon, "cp", str(tmp_path / "given"), "g:/brought")
    assert said(daemon, "exec", "g", "cat", "/brought") == "from the host\n"
    hidden = daemon.command("cp", str(tmp_path / "given"), "g:/t/x")
    assert hidden.returncode != 0 and "/t is in the memory" in hidden.stderr
    full = daemon.command("exec", "g", "dd", "if=/dev/zero", "of=/t/x", "bs=1k", "count=2000")
    assert full.returncode != 0 and "No space" in full.stderr


def test_who_and_what_a_process_may(daemon: Daemon) -> None:
    start(daemon, "-u", "1000:1000", "--cap-drop", "ALL", "--ulimit", "nofile=100:200", "--read-only", "-h", "box",
          "busybox", "sleep", "60")  # fmt: skip
    script = "id -u; ulimit -n; hostname; grep CapEff /proc/self/status"
    lines = said(daemon, "exec", "g", "sh", "-c", script).splitlines()
    assert lines[:3] == ["1000", "100", "box"] and lines[3].split()[1] == "0000000000000000"
    assert "Read-only" in daemon.command("exec", "-u", "0", "g", "touch", "/x").stderr


def test_files_as_streams_of_an_exec(daemon: Daemon, tmp_path: Path) -> None:
    """A file keeps what was in it, and what others write to it meanwhile."""
    start(daemon, "busybox", "sleep", "60")
    target, source = tmp_path / "out", tmp_path / "in"
    source.write_text("skipped\nread\n")
    script = f"exec 3<{source}; read line <&3; echo before; {COMMAND} exec -i g "
    script += "sh -c 'cat; echo inside' <&3; echo after"
    subprocess.run(["sh", "-c", f"( {script} ) >{target}"], env=daemon.environment(), check=True, timeout=30)
    assert target.read_text().splitlines()[0] == "before"
    assert target.read_text().splitlines()[-2:] == ["inside", "after"]


# -- the network ------------------------------------------------------------------------------------------------------


def test_the_network_of_a_pod_and_again_after_a_restart(daemon: Daemon) -> None:
    """A published port, name lookup between pods, IPv6; all of it once more in a restarted container."""
    start(daemon, "-p", "127.0.0.1:18431:80", "busybox", "sh", "-c",
          "mkdir -p /w; echo served >/w/index.html; httpd -f -p 80 -h /w", name="web")  # fmt: skip
    for _ in range(2):
        wait_until(lambda: fetch(daemon) == "served\n", what="the port answers")
        for address in ("web", "-6"):
            target = "http://web/" if address == "web" else f"http://[{ip6(daemon, 'web')}]/"
            out = said(daemon, "run", "--rm", *G, "busybox", "wget", "-qO-", target)
            assert out == "served\n"
        said(daemon, "restart", "-t", "0", "web")


def fetch(daemon: Daemon) -> str:
    url = "http://127.0.0.1:18431/"
    fetching = f"from urllib.request import urlopen; print(urlopen({url!r}, timeout=2).read().decode(), end='')"
    return daemon.on_host(sys.executable, "-c", fetching).stdout


def ip6(daemon: Daemon, ref: str) -> str:
    out = said(daemon, "exec", ref, "ip", "-6", "addr", "show", "eth0")
    return next(word for word in out.split() if word.startswith("fd")).partition("/")[0]


def test_an_egress_policy_holds(daemon: Daemon) -> None:
    start(daemon, "busybox", "sh", "-c", "mkdir -p /w; echo served >/w/index.html; httpd -f -p 80 -h /w", name="web")
    fetched = daemon.command(
        "run", "--rm", *G, "--egress-default", "deny", "busybox", "wget", "-qO-", "-T", "2", "http://web/"
    )
    assert fetched.returncode != 0 and "served" not in fetched.stdout


def test_the_hosts_network(daemon: Daemon) -> None:
    out = said(daemon, "run", "--rm", *G, "--network", "host", "busybox", "ip", "addr")
    assert "drupe0" in out or "lo" in out
    assert len(out.splitlines()) >= len(daemon.on_host("ip", "-o", "link").stdout.splitlines())


# -- terminals --------------------------------------------------------------------------------------------------------


def test_a_terminal_takes_a_size_and_input(daemon: Daemon) -> None:
    start(daemon, "busybox", "sleep", "60")
    typed = "stty size; echo done\nexit\n"
    command = f"stty rows 33 cols 99; {COMMAND} exec -it g sh"
    done = subprocess.run(
        ["script", "-qec", command, "/dev/null"], env=daemon.environment(), input=typed, capture_output=True,
        text=True, timeout=30, check=False,
    )  # fmt: skip
    assert "33 99" in done.stdout and "done" in done.stdout


# -- limits -----------------------------------------------------------------------------------------------------------


def test_out_of_memory_is_told_as_such(daemon: Daemon) -> None:
    done = daemon.command(
        "run", "--name", "oom", *G, "-m", "96m", "busybox", "sh", "-c", "x=x; while :; do x=$x$x; done"
    )
    assert done.returncode == 137 and "out of memory" in done.stderr
    assert "OOMKilled" in said(daemon, "inspect", "oom")


def test_the_cgroup_of_the_pod_holds_sentry_and_gofer(daemon: Daemon) -> None:
    start(daemon, "-m", "256m", "--cpus", "0.5", "busybox", "sleep", "60")
    pids = sentries(daemon)
    assert len(pids) == 2
    for pid in pids:
        assert daemon.cgroup in Path(f"/proc/{pid}/cgroup").read_text()
    assert "256 MiB" in said(daemon, "stats", "--no-stream", "g")


@pytest.mark.parametrize(
    ("flags", "feature"),
    [(("--pids-limit", "5"), "tasks"), (("--privileged",), "privileged"), (("--pid", "host"), "PID"),
     (("--sysctl", "net.ipv4.ip_forward=1"), "sysctls"), (("--device", "/dev/null"), "devices")],
)  # fmt: skip
def test_what_it_cannot_is_refused_by_name(daemon: Daemon, flags: tuple[str, ...], feature: str) -> None:
    done = daemon.command("run", "--rm", *G, *flags, "busybox", "true")
    assert done.returncode != 0 and "gvisor sandboxes cannot" in done.stderr and feature in done.stderr


def test_a_seccomp_profile_is_loaded_inside(daemon: Daemon, tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text(
        '{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],'
        ' "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]}'
    )
    option = ("--security-opt", f"seccomp={profile}")
    done = daemon.command("run", "--rm", *G, *option, "busybox", "sh", "-c", "mkdir /x; ls -d /x")
    assert "not permitted" in done.stderr and done.returncode != 0


# -- death and recovery -----------------------------------------------------------------------------------------------


def test_a_killed_sentry_ends_the_container_at_once(daemon: Daemon) -> None:
    start(daemon, "busybox", "sleep", "60")
    began = time.monotonic()
    os.kill(sentry_of(daemon), signal.SIGKILL)
    assert said(daemon, "wait", "g") == "137\n" and time.monotonic() - began < 5
    assert "its sandbox was killed by signal 9" in said(daemon, "inspect", "g")
    wait_until(lambda: sentries(daemon) == [], what="nothing is left")


def test_a_stopped_sentry_is_an_error_in_time_and_can_be_removed(daemon: Daemon) -> None:
    start(daemon, "busybox", "sleep", "60")
    os.kill(sentry_of(daemon), signal.SIGSTOP)
    done = daemon.command("exec", "g", "true", timeout_s=20)
    assert done.returncode != 0 and "does not answer" in done.stderr
    daemon.command("rm", "-f", "g", check=True, timeout_s=20)


def test_a_pod_lives_through_the_death_of_daemon_and_keeper(fresh_daemon: Daemon) -> None:
    """Running, with an exec under way; then killed while nobody watches, and the end is known."""
    daemon = fresh_daemon
    start(daemon, "busybox", "sh", "-c", LOOP)
    said(daemon, "exec", "-d", "g", "sleep", "77")
    daemon.kill()
    daemon.start()
    wait_until(lambda: "sleep 77" in said(daemon, "top", "g") or "sleep" in said(daemon, "top", "g"), what="it lives")
    os.kill(daemon.keeper_pid, signal.SIGKILL)
    wait_until(lambda: daemon.command("exec", "g", "true").returncode == 0, what="another keeper has it")
    before = said(daemon, "exec", "g", "cat", "/count")
    time.sleep(0.3)
    assert said(daemon, "exec", "g", "cat", "/count") != before
    pid = sentry_of(daemon)
    daemon.kill()
    os.kill(pid, signal.SIGKILL)
    daemon.start()
    assert said(daemon, "wait", "g") == "137\n"
    daemon.command("rm", "g", check=True)


def test_a_daemon_killed_amid_a_deletion_leaves_nothing(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon
    start(daemon, "busybox", "sleep", "60")
    with daemon.client() as client, ThreadPoolExecutor() as pool:
        removing = pool.submit(client.call, "pod.delete", Delete(ref="g", force=True))
        time.sleep(0.02)
        daemon.kill()
        assert isinstance(removing.exception(30), DrupeError | None)
    daemon.start()
    daemon.command("rm", "-f", "g")
    wait_until(lambda: sentries(daemon) == [], what="nothing is left")


def test_several_containers_end_each_by_itself(daemon: Daemon, tmp_path: Path) -> None:
    spec = tmp_path / "pod.json"
    spec.write_text(
        '{"name": "many", "sandbox": "gvisor", "containers": ['
        '{"name": "a", "image": "busybox", "argv": ["sh", "-c", "echo from a >/dev/shm/x; sleep 1; exit 3"]},'
        '{"name": "b", "image": "busybox", "argv": ["sleep", "60"]}]}'
    )
    said(daemon, "pod", "run", "-f", str(spec))
    assert len([p for p in sentries(daemon) if b"runsc-sandbox" in Path(f"/proc/{p}/cmdline").read_bytes()]) == 1
    assert said(daemon, "wait", "many/a") == "3\n"
    assert said(daemon, "exec", "many/b", "cat", "/dev/shm/x") == "from a\n"
    os.kill(next(p for p in sentries(daemon) if b"runsc-sandbox" in Path(f"/proc/{p}/cmdline").read_bytes()), 9)
    assert said(daemon, "wait", "many/b") == "137\n"


# -- snapshots --------------------------------------------------------------------------------------------------------


def count(daemon: Daemon, ref: str) -> int:
    return int(said(daemon, "exec", ref, "cat", "/count") or 0)


def test_a_snapshot_goes_on_as_another_pod(fresh_daemon: Daemon) -> None:
    """Memory and files of one moment, an identity of its own, across a restart of the daemon; then a fork."""
    daemon = fresh_daemon
    start(daemon, "busybox", "sh", "-c", LOOP, name="first")
    wait_until(lambda: count(daemon, "first") > 5, what="it counts")
    said(daemon, "snapshot", "create", "first", "moment")
    at = count(daemon, "first")
    said(daemon, "rm", "-f", "first")
    daemon.kill()
    daemon.start()
    assert "moment" in said(daemon, "snapshot", "ls")
    pod = said(daemon, "snapshot", "restore", "--name", "second", "moment").strip()
    assert count(daemon, "second") > 5
    wait_until(lambda: count(daemon, "second") > at, what="it goes on")
    assert said(daemon, "exec", "second", "hostname") == pod[:12] + "\n"
    said(daemon, "fork", "--name", "third", "second")
    assert count(daemon, "third") > 5 and state(daemon, "second") == "running"
    addresses = {said(daemon, "exec", ref, "ip", "-4", "addr", "show", "eth0") for ref in ("second", "third")}
    assert len(addresses) == 2
    image = next((daemon.root / "snapshots").glob("*/memory/image/checkpoint.img"))
    with image.open("ab") as file:
        file.write(b"x")
    damaged = daemon.command("snapshot", "restore", "moment")
    assert damaged.returncode != 0 and "is damaged" in damaged.stderr
    said(daemon, "snapshot", "rm", "moment")
    assert list((daemon.root / "snapshots").iterdir()) == []


def test_a_snapshot_of_what_cannot_be_one(daemon: Daemon) -> None:
    said(daemon, "run", "-d", "--name", "plain", "--sandbox", "runc", "busybox", "sleep", "60")
    refused = daemon.command("snapshot", "create", "plain")
    assert refused.returncode != 0 and "runc sandboxes cannot snapshot" in refused.stderr


def test_what_the_sandbox_logs(daemon: Daemon) -> None:
    start(daemon, "busybox", "sleep", "60")
    assert "boot: " in said(daemon, "logs", "--sandbox", "g")


def test_kvm_is_not_chosen_because_its_device_is_there(daemon: Daemon) -> None:
    done = daemon.command("run", "--rm", *G, "--annotation", "drupe.gvisor.platform=kvm", "busybox", "true")
    if done.returncode == 0:
        pytest.skip("KVM works on this host")
    assert "platform kvm cannot be used here" in done.stderr
    assert (
        said(daemon, "run", "--rm", *G, "--annotation", "drupe.gvisor.platform=ptrace", "busybox", "echo", "ok")
        == "ok\n"
    )
