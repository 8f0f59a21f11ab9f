"""Limits through a real daemon: what was asked for is what the kernel has, at the start and after an update."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drupe.errors import DrupeError
from drupe.resources.cgroups import detect
from drupe.spec import IoLimit, Resources
from drupe.spec.control import Ref, Update
from framework.daemon import Daemon

pytestmark = pytest.mark.root

MIB = 1 << 20
ROOT = Path("/sys/fs/cgroup")
Limit = Callable[[str], str]

# what is asked for at the start, then by an update; where it stands (controller, v1 file, v2 file), and its values
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, str, str], tuple[str, str]]] = {
    "memory": (
        {"memory_bytes": 64 * MIB}, {"memory_bytes": 96 * MIB, "memory_swap_bytes": 96 * MIB},
        ("memory", "memory.limit_in_bytes", "memory.max"), (str(64 * MIB), str(96 * MIB)),
    ),
    "reservation": (
        {"memory_reservation_bytes": 24 * MIB}, {"memory_reservation_bytes": 48 * MIB},
        ("memory", "memory.soft_limit_in_bytes", "memory.low"), (str(24 * MIB), str(48 * MIB)),
    ),
    "pids": ({"pids": 50}, {"pids": 60}, ("pids", "pids.max", "pids.max"), ("50", "60")),
    "shares": (
        {"cpu_shares": 512}, {"cpu_shares": 2048}, ("cpu", "cpu.shares", "cpu.weight"), ("512|20", "2048|79"),
    ),
    "cpus": (
        {"cpus": 0.5}, {"cpus": 0.75}, ("cpu", "cpu.cfs_quota_us", "cpu.max"), ("50000( 100000)?", "75000( 100000)?"),
    ),
    "cpuset": (
        {"cpuset_cpus": "0"}, {"cpuset_cpus": "0-1"}, ("cpuset", "cpuset.cpus", "cpuset.cpus"), ("0", "0-1"),
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_pods_left(daemon: Daemon) -> Iterator[None]:
    """Each test starts and ends without pods."""
    yield
    daemon.delete_pods()


def needs(controller: str) -> None:
    if controller not in detect().controllers:
        pytest.skip(f"this host has no {controller} controller")


def value(daemon: Daemon, ref: str, place: tuple[str, str, str]) -> str:
    """What the kernel has for a container."""
    controller, v1, v2 = place
    with daemon.client() as client:
        path = client.call("container.inspect", Ref(ref=ref))["paths"]["cgroup"].strip("/")
    return v1_or_v2(path, controller, v1, v2).read_text().strip()


def v1_or_v2(path: str, controller: str, v1: str, v2: str) -> Path:
    named = [entry for entry in ROOT.iterdir() if controller in entry.name.split(",")]
    return named[0] / path / v1 if named else ROOT / path / v2


def change(daemon: Daemon, ref: str, **limits: Any) -> None:
    with daemon.client() as client:
        client.call("container.update", Update(ref=ref, resources=Resources(**limits)), timeout_s=20)


@pytest.mark.parametrize("name", CASES)
def test_a_limit_holds_from_the_start_and_after_an_update(daemon: Daemon, name: str) -> None:
    first, then, place, (at_start, after) = CASES[name]
    needs(place[0])
    ref = daemon.run_pod("sleep", "1000", resources=Resources(**first)).containers[0].id
    assert re.fullmatch(at_start, value(daemon, ref, place))
    change(daemon, ref, **then)
    assert re.fullmatch(after, value(daemon, ref, place))
    with daemon.client() as client:
        spec = client.call("container.inspect", Ref(ref=ref))["spec"]["resources"]
    assert {key: spec[key] for key in then} == then, "the new limits would be lost at the next start"


def test_an_updated_limit_survives_a_stop_and_a_start(daemon: Daemon) -> None:
    needs("pids")
    daemon.command("run", "-d", "--name", "t", "--network", "none", "--pids-limit", "50", "busybox", "sleep", "1000")
    daemon.command("update", "--pids-limit", "60", "t", check=True)
    daemon.command("stop", "-t", "0", "t", check=True)
    daemon.command("start", "t", check=True)
    assert value(daemon, "t", ("pids", "pids.max", "pids.max")) == "60"


def test_memory_and_swap_are_one_sum(daemon: Daemon) -> None:
    needs("memory")
    place = ("memory", "memory.memsw.limit_in_bytes", "memory.swap.max")
    limits = Resources(memory_bytes=32 * MIB, memory_swap_bytes=48 * MIB)
    try:
        ref = daemon.run_pod("sleep", "1000", resources=limits).containers[0].id
    except DrupeError as error:
        assert "swap" in str(error), "refused, and for another reason"
        return
    assert value(daemon, ref, place) in (str(48 * MIB), str(16 * MIB))


def test_io_limits(daemon: Daemon) -> None:
    needs("blkio" if detect().version == 1 else "io")
    disk = next((f"/dev/{entry.name}" for entry in Path("/sys/block").iterdir() if is_disk(entry)), None)
    if disk is None or not Path(disk).exists():
        pytest.skip("this host has no disk")
    limits = Resources(io=(IoLimit(path=disk, write_bps=5 * MIB, read_iops=300),))
    ref = daemon.run_pod("sleep", "1000", resources=limits).containers[0].id
    assert str(5 * MIB) in value(daemon, ref, ("blkio", "blkio.throttle.write_bps_device", "io.max"))
    assert "300" in value(daemon, ref, ("blkio", "blkio.throttle.read_iops_device", "io.max"))
    change(daemon, ref, io=(IoLimit(path=disk, write_bps=7 * MIB),))
    assert str(7 * MIB) in value(daemon, ref, ("blkio", "blkio.throttle.write_bps_device", "io.max"))


def is_disk(entry: Path) -> bool:
    return int((entry / "size").read_text()) > 0 and not entry.name.startswith(("ram", "loop", "zram"))


def test_the_pids_limit_bites(daemon: Daemon) -> None:
    needs("pids")
    script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 2 & done"
    done = daemon.command(
        "run", "--rm", "--network", "none", "--pids-limit", "8", "busybox", "sh", "-c", script, timeout_s=30
    )
    assert done.returncode != 0
    assert "can't fork" in done.stderr


def test_the_workload_runs_only_where_it_may(daemon: Daemon) -> None:
    needs("cpuset")
    script = "grep Cpus_allowed_list /proc/self/status"
    done = daemon.command("run", "--rm", "--network", "none", "--cpuset-cpus", "1", "busybox", "sh", "-c", script)
    assert done.stdout.split()[1:] == ["1"], done.stderr


def test_a_limit_that_cannot_hold_is_an_error_and_changes_nothing(daemon: Daemon) -> None:
    needs("memory")
    script = "head -c 30000000 /dev/zero > /dev/shm/x; echo full; sleep 1000"
    resources = Resources(memory_bytes=64 * MIB, memory_swap_bytes=64 * MIB)
    ref = daemon.run_pod("sh", "-c", script, resources=resources).containers[0].id
    while daemon.command("logs", ref).stdout != "full\n":
        pass
    with pytest.raises(DrupeError):
        change(daemon, ref, memory_bytes=8 * MIB, memory_swap_bytes=8 * MIB)
    place = ("memory", "memory.limit_in_bytes", "memory.max")
    assert value(daemon, ref, place) == str(64 * MIB)
    with pytest.raises(DrupeError, match=r"cpuset|processor"):
        change(daemon, ref, cpuset_cpus="0-4095")


def test_a_pods_limit_covers_its_containers(daemon: Daemon) -> None:
    needs("pids")
    pod = daemon.run_pod("sleep", "1000")
    with daemon.client() as client:
        client.call("pod.update", Update(ref=pod.id, resources=Resources(pids=5)))
        cgroup = client.call("container.inspect", Ref(ref=pod.containers[0].id))["paths"]["cgroup"].strip("/")
    place = v1_or_v2(cgroup, "pids", "pids.max", "pids.max")
    assert (place.parent.parent / place.name).read_text().strip() == "5"
    script = "for i in 1 2 3 4 5 6 7 8; do sleep 1 & done"
    assert "can't fork" in daemon.command("exec", pod.containers[0].id, "sh", "-c", script).stderr
