"""Limits become the right files on both cgroup versions, and a host that lacks one says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drupe.errors import InvalidArgument, NotFound, Unsupported
from drupe.resources.cgroups import detect
from drupe.resources.cgroups.limits import limits_of, limits_to_oci, parse_cpu_list
from drupe.resources.cgroups.v1 import CgroupsV1
from drupe.resources.cgroups.v2 import CgroupsV2, weight_of_shares
from drupe.spec import IoLimit, Resources

ALL_V2 = ("cpu", "cpuset", "io", "memory", "pids", "hugetlb")
FILES = (
    "cgroup.subtree_control", "cgroup.procs", "cgroup.events", "cpu.max", "cpu.weight", "cpuset.cpus", "cpuset.mems",
    "memory.max", "memory.low", "memory.swap.max", "memory.high", "pids.max", "io.weight", "io.max", "hugetlb.2MB.max",
)  # fmt: skip
EVERYTHING = Resources(
    cpus=1.5,
    cpu_shares=512,
    cpuset_cpus="0-1",
    cpuset_mems="0",
    memory_bytes=64 << 20,
    memory_swap_bytes=96 << 20,
    memory_reservation_bytes=32 << 20,
    pids=100,
    io_weight=500,
    hugepages={"2MB": 4 << 20},
    unified={"memory.high": "60000000"},
)


@pytest.fixture
def tree(tmp_path: Path) -> CgroupsV2:
    """A v2 tree of plain files, with cgroup /a/b made by "the kernel"."""
    for directory in ("", "a", "a/b"):
        (tmp_path / directory).mkdir(exist_ok=True)
        for name in FILES if directory == "a/b" else ("cgroup.subtree_control", "cgroup.procs"):
            (tmp_path / directory / name).touch()
    return CgroupsV2(str(tmp_path), controllers=ALL_V2)


def text(tree: CgroupsV2, name: str) -> str:
    return (Path(tree.root) / "a/b" / name).read_text()


def test_v2_writes_every_setting_and_hands_controllers_down(tree: CgroupsV2) -> None:
    tree.create("/a/b", EVERYTHING)
    written = {name: text(tree, name) for name in FILES if text(tree, name)}
    assert written == {
        "cpu.max": "150000 100000",
        "cpu.weight": str(weight_of_shares(512)),
        "cpuset.cpus": "0-1",
        "cpuset.mems": "0",
        "memory.max": str(64 << 20),
        "memory.low": str(32 << 20),
        "memory.swap.max": str(32 << 20),
        "memory.high": "60000000",
        "pids.max": "100",
        "io.weight": "default 4950",
        "hugetlb.2MB.max": str(4 << 20),
    }
    for directory in ("", "a"):
        control = (Path(tree.root) / directory / "cgroup.subtree_control").read_text()
        assert control == "+cpu +cpuset +io +memory +pids +hugetlb"
    assert text(tree, "cgroup.subtree_control") == ""


def test_v2_verify_reports_each_difference(tree: CgroupsV2) -> None:
    tree.create("/a/b", EVERYTHING)
    assert tree.verify("/a/b", EVERYTHING) == []
    (Path(tree.root) / "a/b/pids.max").write_text("99\n")
    (Path(tree.root) / "a/b/cpuset.cpus").write_text("0\n")
    (Path(tree.root) / "a/b/memory.max").unlink()
    problems = tree.verify("/a/b", EVERYTHING)
    assert len(problems) == 3
    assert any("pids: asked for '100'" in p and "99" in p for p in problems)
    assert any("cpuset_cpus" in p for p in problems)
    assert any("memory_bytes: cannot read" in p for p in problems)


def test_v2_unlimited_is_max(tree: CgroupsV2) -> None:
    tree.apply("/a/b", Resources(memory_bytes=-1, pids=0, cpu_quota_us=-1))
    assert (text(tree, "memory.max"), text(tree, "pids.max"), text(tree, "cpu.max")) == ("max", "max", "max 100000")


def test_v2_reads_counters(tree: CgroupsV2) -> None:
    directory = Path(tree.root) / "a/b"
    contents = {
        "cpu.stat": "usage_usec 10\nuser_usec 6\nsystem_usec 4\nnr_periods 9\nnr_throttled 2\nthrottled_usec 3\n",
        "memory.current": "5000\n", "memory.peak": "9000\n", "memory.max": "max\n", "memory.swap.current": "1\n",
        "memory.stat": "anon 100\nfile 200\ninactive_file 150\n", "memory.events": "low 0\noom 3\noom_kill 2\n",
        "pids.current": "7\n", "pids.max": "100\n",
        "io.stat": "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n8:16 rbytes=10 wbytes=20 rios=30 wios=40\n",
        "cpu.pressure": "some avg10=1.50 avg60=0.00 avg300=0.00 total=12\n",
    }  # fmt: skip
    for name, content in contents.items():
        (directory / name).write_text(content)
    stats = tree.stats("/a/b")
    assert (stats.cpu_usage_ns, stats.cpu_user_ns, stats.cpu_system_ns) == (10_000, 6_000, 4_000)
    assert (stats.cpu_throttled_ns, stats.cpu_throttled_periods) == (3_000, 2)
    assert (stats.memory_usage_bytes, stats.memory_working_set_bytes, stats.memory_peak_bytes) == (5000, 4850, 9000)
    assert (stats.memory_limit_bytes, stats.memory_anon_bytes, stats.memory_file_bytes) == (0, 100, 200)
    assert (stats.oom_kills, stats.pids, stats.pids_limit, stats.swap_usage_bytes) == (2, 7, 100, 1)
    assert (stats.io_read_bytes, stats.io_write_bytes, stats.io_reads, stats.io_writes) == (11, 22, 33, 44)
    assert stats.pressure["cpu.some.avg10"] == 1.5


def test_v2_room_is_that_of_all_above(tree: CgroupsV2) -> None:
    below, above = Path(tree.root) / "a/b", Path(tree.root) / "a"
    (below / "memory.max").write_text("max\n")
    (below / "cpu.max").write_text("max 100000\n")
    assert tree.room("/a/b") == (0, 0)
    (below / "memory.max").write_text("5000\n")
    (above / "cpu.max").write_text("250000 100000\n")
    assert tree.room("/a/b") == (5000, 2)
    (below / "cpu.max").write_text("50000 100000\n")
    assert tree.room("/a/b") == (5000, 1)


def test_v1_room(tmp_path: Path) -> None:
    tree = CgroupsV1({"cpu": str(tmp_path / "cpu"), "memory": str(tmp_path / "memory")})
    for name, text_ in (("memory.limit_in_bytes", "7000"), ("cpu.cfs_quota_us", "-1"), ("cpu.cfs_period_us", "1000")):
        place = tmp_path / name.partition(".")[0] / "a"
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text_)
    assert tree.room("/a") == (7000, 0)
    (tmp_path / "cpu/a/cpu.cfs_quota_us").write_text("3000")
    assert tree.room("/a") == (7000, 3)


def test_a_cgroup_that_is_gone(tree: CgroupsV2) -> None:
    for call in (tree.stats, lambda p: tree.apply(p, EVERYTHING), lambda p: tree.verify(p, EVERYTHING), tree.freeze):
        with pytest.raises(NotFound, match="/a/gone"):
            call("/a/gone")
    assert tree.pids("/a/gone") == []
    assert tree.oom_kills("/a/gone") == 0
    assert tree.kill_all("/a/gone") == 0
    tree.delete("/a/gone")


@pytest.mark.parametrize("path", ["", "/", "a", "/a/", "//a", "/a/../b", "/./a", "/a\0"])
def test_bad_paths(tree: CgroupsV2, path: str) -> None:
    with pytest.raises(InvalidArgument, match="bad cgroup path"):
        tree.delete(path)


@pytest.mark.parametrize(
    ("resources", "word"),
    [
        (Resources(hugepages={"2MB": 0}), "hugetlb"),
        (Resources(pids=1), "pids"),
        (Resources(unified={"rdma.max": "x"}), "rdma"),
        (Resources(memory_swappiness=1), "swappiness"),
        (Resources(oom_kill_disable=True), "oom_kill_disable"),
    ],
)
def test_a_limit_without_its_controller_is_refused(tmp_path: Path, resources: Resources, word: str) -> None:
    poor = CgroupsV2(str(tmp_path), controllers=("cpu", "memory"))
    for call in (poor.check, poor.resources_to_oci, lambda r: poor.create("/x", r)):
        with pytest.raises(Unsupported, match=word):
            call(resources)
    assert list(tmp_path.iterdir()) == []


def test_v1_refuses_raw_v2_files() -> None:
    with pytest.raises(Unsupported, match=r"memory\.high"):
        CgroupsV1({"memory": "/x", "freezer": "/y"}).check(Resources(unified={"memory.high": "1"}))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"cpus": 1.0, "cpu_quota_us": 5000}, "not both"),
        ({"cpus": 0.0}, r"cpus 0\.0"),
        ({"cpu_quota_us": 10}, "cpu_quota_us 10"),
        ({"cpu_period_us": 10}, "cpu_period_us"),
        ({"cpu_shares": 1}, "cpu_shares 1"),
        ({"cpuset_cpus": "0-"}, "cpuset_cpus"),
        ({"cpuset_mems": "a"}, "cpuset_mems"),
        ({"memory_bytes": 4096}, "6 MiB"),
        ({"memory_swap_bytes": 1 << 30}, "needs memory_bytes"),
        ({"memory_bytes": 64 << 20, "memory_swap_bytes": 32 << 20}, "memory plus swap"),
        ({"memory_bytes": 64 << 20, "memory_reservation_bytes": 65 << 20}, "memory_reservation"),
        ({"memory_swappiness": 101}, "swappiness"),
        ({"pids": -2}, "pids"),
        ({"io_weight": 9}, "io_weight"),
        ({"hugepages": {"2M": 1}}, "2MB"),
        ({"unified": {"../x.y": "1"}}, "not the name"),
        ({"io": (IoLimit(path="/dev/null", read_bps=0),)}, "above zero"),
        ({"io": (IoLimit(path="/dev/null", read_bps=1),)}, "not a block device"),
    ],
)
def test_limits_that_make_no_sense(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        limits_of(Resources(**fields))


def test_missing_io_device() -> None:
    with pytest.raises(NotFound, match="/dev/absent"):
        limits_of(Resources(io=(IoLimit(path="/dev/absent", read_bps=1),)))


def test_oci_form() -> None:
    assert limits_to_oci(limits_of(EVERYTHING)) == {
        "cpu": {"quota": 150000, "period": 100000, "shares": 512, "cpus": "0-1", "mems": "0"},
        "memory": {"limit": 64 << 20, "swap": 96 << 20, "reservation": 32 << 20},
        "pids": {"limit": 100},
        "blockIO": {"weight": 500},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}],
        "unified": {"memory.high": "60000000"},
    }
    assert limits_to_oci(limits_of(Resources())) == {}


def test_swap_defaults_to_twice_the_memory_as_docker_does() -> None:
    assert limits_of(Resources(memory_bytes=64 << 20)).swap_bytes == 128 << 20
    assert limits_of(Resources(memory_bytes=-1)).swap_bytes == -1


@given(st.sets(st.integers(0, 500), min_size=1))
def test_cpu_lists_parse(cpus: set[int]) -> None:
    assert parse_cpu_list(",".join(map(str, sorted(cpus))) + "\n") == cpus


@given(st.integers(2, 262144))
def test_weights_stay_in_the_kernels_range(shares: int) -> None:
    assert 1 <= weight_of_shares(shares) <= 10000


MOUNTS_V1 = """24 1 0:22 / /proc rw - proc proc rw
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
"""


def test_detect_v1_with_joined_controllers(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTS_V1)
    found = detect(str(tmp_path / "mountinfo"))
    assert isinstance(found, CgroupsV1)
    assert found.controllers == {"cpu", "cpuacct", "memory"}
    assert found.roots["cpu"] == found.roots["cpuacct"] == "/sys/fs/cgroup/cpu,cpuacct"
    assert len(found.all_dirs("/x")) == 3


def test_detect_v2_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    (tmp_path / "mountinfo").write_text(f"30 1 0:26 / {tmp_path} rw - cgroup2 cgroup2 rw\n")
    assert detect(str(tmp_path / "mountinfo")).controllers == {"cpu", "memory", "pids"}
    (tmp_path / "mountinfo").write_text("24 1 0:22 / /proc rw - proc proc rw\n")
    with pytest.raises(Unsupported, match="no cgroup file system"):
        detect(str(tmp_path / "mountinfo"))
