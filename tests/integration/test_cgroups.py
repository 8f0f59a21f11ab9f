"""Real cgroups: what is asked holds, is read back, is seen when it bites, and nothing stays."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drupe.errors import InvalidArgument, InvalidState, NotFound, Unsupported
from drupe.resources.cgroups import CgroupEvent, Cgroups, Watcher, detect
from drupe.resources.cgroups.v2 import CgroupsV2
from drupe.resources.processes import list_processes
from drupe.spec import IoLimit, Resources
from framework.leaks import CGROUP_PARENT

pytestmark = pytest.mark.root
UNIFIED = Path("/sys/fs/cgroup/unified")
EATER = "import sys\nb = []\nwhile True: b.append(bytearray(1 << 20))"


def unified() -> CgroupsV2:
    return CgroupsV2(str(UNIFIED), controllers=())


@pytest.fixture(params=["host", "unified"])
def cgroups(request: pytest.FixtureRequest) -> Cgroups:
    """The host's own tree, and where that is v1 the v2 tree beside it, for all that needs no controller."""
    if request.param == "host":
        return detect()
    if not (UNIFIED / "cgroup.controllers").exists():
        pytest.skip("this host has no v2 tree beside v1")
    return unified()


@pytest.fixture
def host() -> Iterator[Cgroups]:
    return detect()


@pytest.fixture
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    path = f"/{CGROUP_PARENT}/{request.node.name.translate(str.maketrans('[]-', '___'))}"
    yield path
    for tree in (detect(), *([unified()] if UNIFIED.exists() else [])):
        tree.kill_all(path)
        tree.delete(path)
        tree.delete(f"/{CGROUP_PARENT}")


@pytest.fixture
def start(path: str) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def run(cgroups: Cgroups, *argv: str, below: str = "", **options: Any) -> subprocess.Popen[bytes]:
        """Start a program held back until it is in the cgroup."""
        read_end, write_end = os.pipe()
        held = ("sh", "-c", 'read x; exec "$@"', "sh", *argv)
        process = subprocess.Popen(held, stdin=read_end, **options)
        started.append(process)
        cgroups.attach(path + below, process.pid)
        os.write(write_end, b"go\n")
        os.close(read_end)
        os.close(write_end)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def told(watcher: Watcher, event: CgroupEvent) -> bool:
    """Whether the watcher tells `event` within 20 s; others may come before."""
    deadline = time.monotonic() + 20
    while (left := deadline - time.monotonic()) > 0:
        if select.select([watcher], [], [], left)[0] and event in watcher.read():
            return True
    return False


def test_life_of_a_cgroup(cgroups: Cgroups, path: str, start: Callable[..., subprocess.Popen[bytes]]) -> None:
    cgroups.create(path, Resources())
    cgroups.create(f"{path}/sub", Resources())
    assert cgroups.exists(path)
    assert cgroups.children(path) == ["sub"]
    process = start(cgroups, "sleep", "60", below="/sub")
    assert cgroups.pids(path) == [process.pid]
    with pytest.raises(InvalidState, match=str(process.pid)):
        cgroups.delete(path, timeout_s=0.05)
    assert cgroups.kill_all(path, signal.SIGTERM) == 1
    assert process.wait(5) == -signal.SIGTERM
    cgroups.delete(path)
    cgroups.delete(path)
    assert not cgroups.exists(path)


def test_freeze_holds_and_thaw_lets_go(
    cgroups: Cgroups, path: str, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    cgroups.create(path, Resources())
    process = start(cgroups, "sh", "-c", "while :; do echo x; done", stdout=subprocess.PIPE)
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    cgroups.freeze(path)
    while process.stdout.read():
        pass
    assert select.select([process.stdout], [], [], 0.05)[0] == []
    cgroups.thaw(path)
    assert select.select([process.stdout], [], [], 5)[0] != []


def test_killing_a_frozen_fork_bomb_leaves_nobody(
    cgroups: Cgroups, path: str, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    cgroups.create(path, Resources())
    process = start(cgroups, "sh", "-c", "while :; do sleep 0.01 & done", stderr=subprocess.DEVNULL)
    while len(cgroups.pids(path)) < 10:
        assert process.poll() is None
    assert cgroups.kill_all(path) >= 10
    process.wait(5)
    cgroups.delete(path)
    start_over = list_processes([process.pid])
    assert start_over == []


def test_kill_gets_a_paused_cgroup(cgroups: Cgroups, path: str, start: Callable[..., subprocess.Popen[bytes]]) -> None:
    cgroups.create(path, Resources())
    process = start(cgroups, "sleep", "60")
    cgroups.freeze(path)
    assert cgroups.kill_all(path, signal.SIGTERM) == 1
    if cgroups.version == 1:  # v2 lets a fatal signal through the freezer
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.05)
    cgroups.kill_all(path, signal.SIGKILL)
    assert process.wait(5) in (-signal.SIGKILL, -signal.SIGTERM)


def test_attach_needs_process_and_cgroup(cgroups: Cgroups, path: str) -> None:
    with pytest.raises(NotFound, match=path):
        cgroups.attach(path, os.getpid())
    cgroups.create(path, Resources())
    with pytest.raises(NotFound, match="no process"):
        cgroups.attach(path, 4_000_000)


def test_every_limit_is_applied_and_read_back(host: Cgroups, path: str) -> None:
    wanted = Resources(
        cpus=0.5, cpu_shares=300, cpuset_cpus="0", cpuset_mems="0", memory_bytes=50_000_001,
        memory_reservation_bytes=20_000_000, pids=33,
    )  # fmt: skip
    host.create(path, wanted)
    assert host.verify(path, wanted) == []
    for other in (
        Resources(memory_bytes=200_000_000, cpus=2.0),
        Resources(memory_bytes=30_000_000, memory_swap_bytes=40_000_000),
        Resources(memory_bytes=-1),
        Resources(memory_bytes=60_000_000, memory_swap_bytes=-1, pids=-1, cpu_quota_us=-1),
    ):
        host.apply(path, other)
        assert host.verify(path, other) == []
    problems = host.verify(path, Resources(cpu_shares=600, pids=5))
    assert len(problems) == 2


@pytest.mark.skipif(not Path("/dev/vda").exists(), reason="needs the block device /dev/vda")
def test_io_limits(host: Cgroups, path: str) -> None:
    wanted = Resources(io=(IoLimit(path="/dev/vda", read_bps=1 << 20, write_bps=2 << 20, read_iops=50, write_iops=60),))
    host.create(path, wanted)
    assert host.verify(path, wanted) == []


def test_what_the_host_lacks_is_refused_before_anything_is_made(host: Cgroups, path: str) -> None:
    if "hugetlb" in host.controllers:
        pytest.skip("this host limits huge pages")
    with pytest.raises(Unsupported, match="hugetlb"):
        host.create(path, Resources(hugepages={"2MB": 0}))
    assert not host.exists(path)


def test_pids_limit_bites(host: Cgroups, path: str, start: Callable[..., subprocess.Popen[bytes]]) -> None:
    host.create(path, Resources(pids=5))
    process = start(host, "sh", "-c", "for i in 1 2 3 4 5 6 7 8; do sleep 5 & done; wait", stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert b"fork" in process.stderr.readline()
    stats = host.stats(path)
    assert stats.pids <= stats.pids_limit == 5


def test_cpu_limit_throttles(host: Cgroups, path: str, start: Callable[..., subprocess.Popen[bytes]]) -> None:
    host.create(path, Resources(cpus=0.05))
    start(host, "sh", "-c", "while :; do :; done")
    deadline = time.monotonic() + 10
    while host.stats(path).cpu_throttled_periods < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    stats = host.stats(path)
    assert stats.cpu_throttled_ns > 0
    assert stats.cpu_usage_ns > 0
    assert 0 < stats.cpu_user_ns + stats.cpu_system_ns <= stats.cpu_usage_ns * 1.5 + 50_000_000


def test_memory_limit_kills_counts_and_tells(
    host: Cgroups, path: str, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    host.create(path, Resources(memory_bytes=24 << 20))
    watcher = host.watch(path)
    try:
        process = start(host, sys.executable, "-I", "-S", "-c", EATER)
        assert told(watcher, CgroupEvent.OOM)
        assert process.wait(10) == -signal.SIGKILL
        assert host.oom_kills(path) == 1
        stats = host.stats(path)
        assert stats.oom_kills == 1
        assert stats.memory_limit_bytes == 24 << 20
        assert 20 << 20 < stats.memory_peak_bytes <= 24 << 20
        host.delete(path)
        assert told(watcher, CgroupEvent.REMOVED)
        assert watcher.read() == []
    finally:
        watcher.close()
        watcher.close()


def test_oom_of_a_pod_counts_its_containers(
    host: Cgroups, path: str, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    host.create(path, Resources(memory_bytes=24 << 20))
    host.create(f"{path}/c1", Resources())
    process = start(host, sys.executable, "-I", "-S", "-c", EATER, below="/c1")
    assert process.wait(20) == -signal.SIGKILL
    assert host.oom_kills(path) == 1
    assert host.oom_kills(f"{path}/c1") == 1


def test_watcher_works_in_an_event_loop(
    host: Cgroups, path: str, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    host.create(path, Resources(memory_bytes=24 << 20))
    watcher = host.watch(path)

    async def story() -> list[CgroupEvent]:
        loop = asyncio.get_running_loop()
        told: asyncio.Future[list[CgroupEvent]] = loop.create_future()

        def look() -> None:  # v2 wakes us for other counts too
            if (events := watcher.read()) and not told.done():
                told.set_result(events)

        loop.add_reader(watcher.fileno(), look)
        start(host, sys.executable, "-I", "-S", "-c", EATER)
        try:
            return await asyncio.wait_for(told, 20)
        finally:
            loop.remove_reader(watcher.fileno())

    try:
        assert CgroupEvent.OOM in asyncio.run(story())
    finally:
        watcher.close()


def test_pressure_events_on_v2(path: str, start: Callable[..., subprocess.Popen[bytes]]) -> None:
    if not (UNIFIED / "cpu.pressure").exists():
        pytest.skip("needs a v2 tree with PSI")
    tree = unified()
    tree.create(path, Resources())
    watcher = tree.watch(path, pressure={"cpu": 5})
    try:
        for _ in range(2 * (os.cpu_count() or 1) + 2):
            start(tree, "sh", "-c", "while :; do :; done")
        assert told(watcher, CgroupEvent.CPU_PRESSURE)
        assert tree.stats(path).pressure["cpu.some.avg10"] >= 0
        tree.kill_all(path)
        tree.delete(path)
        assert told(watcher, CgroupEvent.REMOVED)
        assert select.select([watcher], [], [], 0.05)[0] == []
    finally:
        watcher.close()


def test_v1_cannot_tell_cpu_pressure(host: Cgroups, path: str) -> None:
    if host.version != 1:
        pytest.skip("the host has cgroup v2")
    host.create(path, Resources())
    with pytest.raises(Unsupported, match="cpu pressure"):
        host.watch(path, pressure={"cpu": 5})


def test_stats_of_a_hundred_containers_are_cheap(host: Cgroups, path: str) -> None:
    for number in range(100):
        host.create(f"{path}/c{number}", Resources())
    best = min(_timed(lambda: [host.stats(f"{path}/c{n}") for n in range(100)]) for _ in range(5))
    assert best <= 0.060  # of processor time, which a busy host makes longer: twice what it takes


def _timed(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def test_processes_of_a_cgroup(host: Cgroups, path: str, start: Callable[..., subprocess.Popen[bytes]]) -> None:
    host.create(path, Resources())
    process = start(host, "sleep", "61", user=65534)
    deadline = time.monotonic() + 5
    while not (found := list_processes(host.pids(path), users={65534: "nobody"}))[0].command.startswith("sleep"):
        assert time.monotonic() < deadline
    (info,) = found
    assert (info.pid, info.ppid, info.uid, info.user) == (process.pid, os.getpid(), 65534, "nobody")
    assert info.command == "sleep 61"
    assert info.state in "SRD"
    assert info.rss_bytes > 0
    assert abs(info.started_at - time.time()) < 30
    process.kill()
    process.wait()
    assert list_processes([process.pid, 2**22 + 1]) == []


# ── processes that join by themselves, and devices ──

ALLOWED = [
    {"allow": False, "access": "rwm"},
    {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rw"},
    {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "m"},
    {"allow": True, "type": "c", "major": 136, "access": "rwm"},
]


def joined(host: Cgroups, path: str, script: str) -> str:
    """What a shell says that moved itself into the cgroup first."""
    files = host.join_files(path)
    if not files:
        pytest.skip(f"cgroup v{host.version}: nobody can move itself without a lock there")
    join = f"for file in {' '.join(files)}; do echo 0 > $file || exit 1; done; "
    done = subprocess.run(["sh", "-c", join + script], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def test_a_process_joins_every_hierarchy(host: Cgroups, path: str) -> None:
    host.create(path, Resources())
    lines = joined(host, path, "cat /proc/$$/cgroup").splitlines()
    places = {line.split(":")[1]: line.split(":")[2] for line in lines if line.split(":")[1]}
    assert set(places.values()) == {path}
    assert host.controllers <= {name for names in places for name in names.split(",")}


def test_devices_are_restricted(host: Cgroups, path: str) -> None:
    host.create(path, Resources())
    if host.join_files(path):
        host.restrict_devices(path, ALLOWED)
    said = joined(host, path, "cat /dev/null && echo null; head -c1 /dev/zero; mknod /dev/null2 c 1 5; true")
    assert said.splitlines()[0] == "null"
    assert said.count("not permitted") == 2


def test_devices_can_all_be_allowed_again(host: Cgroups, path: str) -> None:
    host.create(path, Resources())
    if host.join_files(path):
        host.restrict_devices(path, ALLOWED)
        host.restrict_devices(path, [{"allow": True, "access": "rwm"}])
    assert joined(host, path, "head -c1 /dev/zero | wc -c").strip() == "1"


def test_a_device_rule_that_is_not_understood_is_refused(host: Cgroups, path: str) -> None:
    host.create(path, Resources())
    one_away = {"allow": False, "type": "c", "major": 1, "minor": 3, "access": "rwm"}
    with pytest.raises((InvalidArgument, Unsupported), match="device"):
        host.restrict_devices(path, [one_away])
