"""Machines that change while they run: as a user asks for it, and as the workload sees it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from framework import machines, probes
from framework.daemon import Daemon
from framework.leaks import wait_until

pytestmark = [pytest.mark.root, pytest.mark.timeout(400)]
MIB = 1 << 20


@pytest.fixture
def daemon(machine_daemon: Daemon) -> Iterator[Daemon]:
    yield machine_daemon
    machine_daemon.delete_pods()


def out(daemon: Daemon, *argv: str) -> str:
    said: str = daemon.command(*argv, check=True, timeout_s=120).stdout.strip()
    return said


def run(daemon: Daemon, name: str, *words: str, script: str = "exec sleep 1000") -> None:
    out(daemon, "run", "-d", "--name", name, "--sandbox", "vm", *words, "busybox", "sh", "-c", script)


def inside(daemon: Daemon, name: str, script: str) -> str:
    return out(daemon, "exec", name, "sh", "-c", script)


def pod(daemon: Daemon, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out(daemon, "inspect", "--type", "pod", name))[0]
    return found


def memory_mib(daemon: Daemon, name: str) -> int:
    return int(inside(daemon, name, "awk '/^MemTotal/ {print int($2/1024)}' /proc/meminfo"))


def processors(daemon: Daemon, name: str) -> int:
    return int(inside(daemon, name, "grep -c ^processor /proc/cpuinfo"))


def test_a_running_pod_gets_more_and_gives_it_back(fresh_daemon: Daemon) -> None:
    """Memory is filled that was not there before; a restarted daemon goes on with the machine as it is."""
    machines.needs_machines()
    machines.make_root(fresh_daemon.root)
    daemon = fresh_daemon
    run(daemon, "sized", "--network", "none", "--memory", "64m", "--tmpfs", "/full:size=1g")
    before = pod(daemon, "sized")["machine"]
    assert (before["memory_bytes"], before["processors"]) == (64 * MIB + before["overhead_bytes"], 1)
    assert 0 < before["guest_bytes"] < before["overhead_bytes"]
    assert 0 < before["host_bytes"] < before["vmm_bytes"]
    small = memory_mib(daemon, "sized")
    assert inside(daemon, "sized", "cat /sys/fs/cgroup/memory.max") == str(64 * MIB)

    out(daemon, "update", "--memory", "256m", "--cpus", "2", "sized")
    grown = pod(daemon, "sized")["machine"]
    assert (grown["memory_bytes"] - before["memory_bytes"], grown["processors"]) == (192 * MIB, 2)
    assert (memory_mib(daemon, "sized") - small, processors(daemon, "sized")) == (192, 2)
    assert inside(daemon, "sized", "cat /sys/fs/cgroup/memory.max") == str(256 * MIB)
    inside(daemon, "sized", "head -c 180000000 /dev/zero >/full/it")

    daemon.kill()
    daemon.start()
    inside(daemon, "sized", "rm -f /full/it")
    out(daemon, "update", "--memory", "64m", "--cpus", "1", "sized")
    back = pod(daemon, "sized")["machine"]
    assert (back["memory_bytes"], back["processors"]) == (before["memory_bytes"], 1)
    assert (memory_mib(daemon, "sized"), processors(daemon, "sized")) == (small, 1)
    out(daemon, "update", "--cpus", "2", "sized")  # a processor that comes back
    assert (processors(daemon, "sized"), pod(daemon, "sized")["state"]) == (2, "running")
    refused = daemon.command("update", "--memory", "9000g", "sized")
    assert refused.returncode != 0
    assert "at most" in refused.stderr


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Disks with an ext4 file system each."""
    probes.needs_program("mkfs.ext4", "debugfs", "losetup")
    paths = [tmp_path / f"disk{number}" for number in range(8)]
    for path in paths:
        path.touch()
        os.truncate(path, 8 * MIB)
        subprocess.run(["mkfs.ext4", "-q", path], check=True)
    return paths


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[str]:
    """A block device of the host."""
    backing = tmp_path / "backing"
    backing.write_bytes(b"from the host".ljust(MIB, b"\0"))
    done = subprocess.run(["losetup", "--find", "--show", backing], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no loop device: {done.stderr.strip()}")
    yield done.stdout.strip()
    subprocess.run(["losetup", "--detach", done.stdout.strip()], check=True)


def test_disks_come_to_a_running_pod_and_go(daemon: Daemon, images: list[Path], loop: str) -> None:
    """Eight file systems and a device, for one more container of a machine that runs; and what it wrote is on them."""
    run(daemon, "first")
    before = inside(daemon, "first", "ls /sys/block")
    mounts = [f"--mount=type=block,source={path},target=/d{number}" for number, path in enumerate(images)]
    script = "for n in 0 1 2 3 4 5 6 7; do echo disk $n >/d$n/said; done; head -c 13 /dev/extra; echo; sleep 1000"
    more = ("--pod", "first", "--name", "more", "--device", f"{loop}:/dev/extra:r")
    out(daemon, "run", "-d", *more, *mounts, "busybox", "sh", "-c", script)
    wait_until(lambda: out(daemon, "logs", "more") == "from the host", what="it has read the device")
    assert daemon.command("exec", "more", "sh", "-c", "echo x >/dev/extra").returncode != 0  # for reading only
    assert len(inside(daemon, "first", "ls /sys/block").split()) == len(before.split()) + 9
    out(daemon, "rm", "-f", "more")
    assert inside(daemon, "first", "ls /sys/block") == before
    for number, path in enumerate(images):
        said = subprocess.run(["debugfs", "-R", "cat /said", path], capture_output=True, text=True, check=True)
        assert said.stdout == f"disk {number}\n"


def test_what_is_no_disk_is_refused(daemon: Daemon) -> None:
    """Before anything is made."""
    refused = daemon.command("run", "--rm", "--sandbox", "vm", "--device", "/dev/null:/dev/sink", "busybox", "true")
    assert (refused.returncode != 0, "no block device" in refused.stderr) == (True, True)
    plain = ("--mount", "type=block,source=/etc/passwd,target=/d")
    refused = daemon.command("run", "--rm", "--sandbox", "vm", *plain, "busybox", "true")
    assert (refused.returncode, "/etc/passwd has no file system of the kind ext4" in refused.stderr) == (125, True)
    missing = ("--mount", "type=block,source=/nowhere,target=/d")
    assert daemon.command("run", "--rm", "--sandbox", "vm", *missing, "busybox", "true").returncode != 0


def test_a_machine_that_cannot_change(fresh_daemon: Daemon, tmp_path: Path) -> None:
    """A microvm: roots are disks of its start, and each thing that it cannot do is said."""
    machines.needs_machines()
    machines.make_root(fresh_daemon.root)
    config = tmp_path / "drupe.toml"
    config.write_text('[kinds.vm]\nmachine_type = "microvm"\n')
    fresh_daemon.kill()
    fresh_daemon.start(env={"DRUPE_CONFIG": str(config)})
    run(fresh_daemon, "small", "--memory", "64m")
    assert inside(fresh_daemon, "small", "ls /sys/class/net").split() == ["eth0", "lo"]
    less = fresh_daemon.command("update", "--memory", "32m", "small", check=True)
    assert "the machine keeps its 160 MiB" in less.stderr
    out(fresh_daemon, "network", "create", "back")
    for argv in (("update", "--memory", "128m", "small"), ("network", "connect", "back", "small")):
        refused = fresh_daemon.command(*argv)
        assert (refused.returncode != 0, "machine" in refused.stderr) == (True, True)
    assert len(pod(fresh_daemon, "small")["endpoints"]) == 1
    again = fresh_daemon.command("restart", "-t", "1", "small")
    assert (again.returncode != 0, "cannot be started again" in again.stderr) == (True, True)
