"""Kernels that wait for pods: one serves one pod, they are few, and go with what they wait for."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from drupe.keeper.programs import find_program
from drupe.sandboxers.appkernel.options import PROGRAM, AppkernelOptions
from framework.appkernels import KERNEL, PYTHON, leaves_nothing, skip_without_platform
from framework.daemon import Daemon
from framework.leaks import SPARE, mounts, wait_until
from framework.residue import comm, is_alive, names

pytestmark = [pytest.mark.root]
WITHIN_S = 60.0
COUNT = AppkernelOptions().spares
KILLS = 300
# Starts kernels that wait, ends each within its first milliseconds, and prints what is left of them: their orphans are
# its children.
KILLED_YOUNG = """
import ctypes, os, random, socket, subprocess, sys, time
program, home, chance = sys.argv[1], sys.argv[2], random.Random(7)
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
for number in range(int(sys.argv[3])):
    claims, claimed = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with claims, claimed, control:
        control.bind(f"{home}/control{number}")
        control.listen()
        fds, pidfile = (control.fileno(), claimed.fileno()), f"{home}/pid"
        words = ["--control", fds[0], "--claim", fds[1], "--share", f"{home}/share", "--uid", 1900000000]
        subprocess.run([program, "serve", *map(str, words), "--pidfile", pidfile], pass_fds=fds, check=True)
        claimed.close()
        time.sleep(chance.uniform(0, 0.006))
        os.kill(int(open(pidfile).read()), 9)
late = time.monotonic() + 5
try:
    while time.monotonic() < late:
        os.waitpid(-1, os.WNOHANG)
        time.sleep(0.001)
except ChildProcessError:
    sys.exit()
left = open(f"/proc/self/task/{os.getpid()}/children").read().split()
print(*(f"{pid} {open(f'/proc/{pid}/comm').read()}" for pid in left))
for pid in left:
    os.kill(int(pid), 9)
"""
RUN = ("run", "--rm", "--sandbox", "appkernel", "--network", "none", "busybox")


@pytest.fixture
def daemon(fresh_daemon: Daemon, tmp_path: Path) -> Iterator[Daemon]:
    with leaves_nothing(fresh_daemon, tmp_path):
        yield fresh_daemon


def homes(daemon: Daemon) -> dict[str, int]:
    """Directories of kernels that wait, and the kernels."""
    found = {}
    for name in names(daemon.run / "appkernel"):
        file = daemon.run / "appkernel" / name / "kernel.pid"
        if file.exists() and comm(file.read_text()) == SPARE:
            found[name] = int(file.read_text())
    return found


def spares(daemon: Daemon) -> set[int]:
    """Those that wait, once there are as many as there shall be."""
    wait_until(lambda: len(homes(daemon)) == COUNT, what="kernels wait", timeout_s=WITHIN_S)
    return set(homes(daemon).values())


def say(daemon: Daemon, *argv: str) -> str:
    return daemon.command(*RUN, *argv, check=True).stdout


def kernel_of(daemon: Daemon, *flags: str) -> int:
    """Of a pod that is made now."""
    container = daemon.command("run", "-d", *flags, *RUN[2:], "sleep", "1000", check=True).stdout.strip()
    owner = json.loads(daemon.command("inspect", container, check=True).stdout)[0]["status"]["pod"]
    return int((daemon.run / "pods" / owner / "appkernel/kernel.pid").read_text())


def test_one_for_each_pod_and_nothing_of_another(daemon: Daemon) -> None:
    assert homes(daemon) == {}  # nobody has used the kind yet
    boots = {say(daemon, "cat", "/proc/sys/kernel/random/boot_id")}
    waits = spares(daemon)
    for name in ("one", "two"):
        kernel = kernel_of(daemon, "--name", name, "--hostname", name, "--memory", "64m")
        assert kernel in waits and comm(kernel) == PROGRAM
        waits |= spares(daemon)
        told = daemon.command("exec", name, "sh", "-c", "hostname; cat /proc/sys/kernel/random/boot_id; free -m").stdout
        host, boot, *memory = told.splitlines()
        assert host == name and boot not in boots and memory[1].split()[1] == "64"
        boots.add(boot)
        cgroup = Path(f"/proc/{kernel}/cgroup").read_text()
        assert f"{daemon.cgroup}/" in cgroup
        inside = [pid for pid in members(kernel) if comm(pid) in (PROGRAM, "drupe-guest")]
        assert len(inside) >= 4  # the kernel, the holder of namespaces, the first stub, and a program's
    assert len(waits) == COUNT + 2


def ended(pids: Iterable[int]) -> None:
    """Wait for that."""
    wait_until(lambda: not any(is_alive(pid) for pid in pids), what="all have ended", timeout_s=WITHIN_S)


def members(kernel: int) -> list[str]:
    """All processes in a kernel's cgroup (cgroups(7))."""
    for line in Path(f"/proc/{kernel}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        tree = "/sys/fs/cgroup" if not controllers else f"/sys/fs/cgroup/{controllers}"
        if "pids" in controllers.split(",") or not controllers:
            return Path(f"{tree}{path}/cgroup.procs").read_text().split()
    return []


def test_one_that_is_killed_while_it_is_made_leaves_nobody(tmp_path: Path) -> None:
    """Whatever it had begun: the holder of its stubs' namespaces, or the first stub."""
    skip_without_platform()
    (tmp_path / "share").mkdir()
    (tmp_path / "kill.py").write_text(KILLED_YOUNG)
    line = 'mount -t tmpfs share "$1/share" && exec "$2" -I "$1/kill.py" "$3" "$1" "$4"'
    words = ["unshare", "--mount", "sh", "-c", line, "sh", tmp_path, PYTHON, KERNEL, str(KILLS)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == ""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_those_that_died(daemon: Daemon, number: signal.Signals) -> None:
    say(daemon, "true")
    first = spares(daemon)
    for pid in first:
        os.kill(pid, number)
    ended(first)
    wait_until(lambda: names(daemon.run / "appkernel") == [], what="their directories are gone", timeout_s=WITHIN_S)
    assert say(daemon, "echo", "served") == "served\n"
    assert not spares(daemon) & first


def test_they_end_with_the_daemon(daemon: Daemon) -> None:
    """One that is killed, and one that ends."""
    say(daemon, "true")
    first = spares(daemon)
    daemon.kill()
    ended(first)
    daemon.start()
    wait_until(lambda: names(daemon.run / "appkernel") == [], what="their directories are gone", timeout_s=WITHIN_S)
    assert not [mount for mount in mounts(daemon.keeper_pid) if "/appkernel/" in mount]
    assert say(daemon, "echo", "served") == "served\n"
    spares(daemon)


def test_one_that_is_a_pods_is_known_to_be_after_a_restart(daemon: Daemon) -> None:
    """By the daemon as a whole, though other kinds see only that the keeper has it."""
    say(daemon, "true")
    waiting = spares(daemon)
    assert kernel_of(daemon, "--name", "lives") in waiting
    daemon.command("run", "-d", "--name", "other", "--sandbox", "runc", "--network", "none", "busybox", "sleep", "1000")
    daemon.kill()
    daemon.start()
    assert daemon.command("exec", "lives", "echo", "served", check=True).stdout == "served\n"
    assert "belongs to no pod" not in daemon.log.read_text()
    daemon.command("rm", "-f", "lives", "other", check=True)


def test_of_a_pod_that_was_never_started(daemon: Daemon) -> None:
    """It is the pod's for good, also when the daemon dies before the pod's start; the others end."""
    say(daemon, "true")
    first = spares(daemon)
    daemon.command("create", "--name", "late", *RUN[2:], "echo", "served", check=True)
    wait_until(lambda: PROGRAM in {comm(pid) for pid in first}, what="one is the pod's", timeout_s=WITHIN_S)
    own = {pid for pid in first if comm(pid) == PROGRAM}
    daemon.kill()
    daemon.start()
    ended(first - own)
    assert daemon.command("start", "-a", "late", check=True).stdout == "served\n"
    daemon.command("rm", "-f", "late", check=True)
    ended(first)


def test_of_a_program_that_was_replaced_none_is_used(daemon: Daemon, tmp_path: Path) -> None:
    program = tmp_path / PROGRAM
    shutil.copy2(find_program(PROGRAM), program)
    configure(daemon, f'program = "{program}"')
    say(daemon, "true")
    old = spares(daemon)
    newer = tmp_path / "newer"
    shutil.copy2(program, newer)
    newer.replace(program)
    assert kernel_of(daemon) not in old
    ended(old)


def test_as_many_as_are_set(daemon: Daemon) -> None:
    configure(daemon, "spares = 0")
    assert say(daemon, "echo", "served") == "served\n" == say(daemon, "echo", "served")
    assert names(daemon.run / "appkernel") == []
    configure(daemon, "spares = 3")
    say(daemon, "true")
    wait_until(lambda: len(homes(daemon)) == 3, what="three kernels wait", timeout_s=WITHIN_S)


def configure(daemon: Daemon, line: str) -> None:
    """Another setting, with a daemon that reads it."""
    daemon.kill()
    config = daemon.root / "drupe.toml"
    config.write_text(f"[kinds.appkernel]\n{line}\n")
    daemon.start(env={"DRUPE_CONFIG": str(config)})
