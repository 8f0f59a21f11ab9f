"""The leak checker sees each kind of leak: a checker that sees nothing would pass every test."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from framework import leaks, probes


def new_since(before: leaks.Snapshot, directory: Path) -> set[str]:
    """Kinds of leaks there are now."""
    return set(leaks.difference(before, leaks.snapshot(directory)))


def test_a_process_is_seen_by_its_mark(tmp_path: Path) -> None:
    """Any process that inherited the environment counts, daemonized or not."""
    before = leaks.snapshot(tmp_path)
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        try:
            leaks.wait_until(lambda: new_since(before, tmp_path) == {"processes"}, what="the process is seen")
        finally:
            process.kill()
    assert new_since(before, tmp_path) == set()


def test_a_process_without_the_mark_is_seen_by_its_directory(tmp_path: Path) -> None:
    """A workload gets a clean environment; that it works in the tests' directory gives it away."""
    before = leaks.snapshot(tmp_path)
    with subprocess.Popen(["sleep", "60"], env={}, cwd=tmp_path) as process:
        try:
            leaks.wait_until(lambda: "processes" in new_since(before, tmp_path), what="the process is seen")
        finally:
            process.kill()


def test_what_is_of_another_run_is_not_ours(tmp_path: Path) -> None:
    """Directories of runs side by side are called alike: `pytest-1`, `pytest-12`."""
    other = tmp_path.with_name(tmp_path.name + "2")
    other.mkdir()
    before = leaks.snapshot(tmp_path)
    with subprocess.Popen(["sleep", "60"], env={}, cwd=other) as process:
        assert process.pid not in set(leaks.our_processes(tmp_path))
        assert "processes" not in new_since(before, tmp_path)
        process.kill()
    for text, is_it in ((f"{tmp_path} tmpfs", True), (f"{tmp_path}/x", True), (f"{other}/x", False)):
        assert leaks.mentions(text, tmp_path) == is_it


def test_an_open_file_is_seen(tmp_path: Path) -> None:
    """A descriptor that a test forgot to close."""
    before = leaks.snapshot(tmp_path)
    with tempfile.TemporaryFile():
        assert new_since(before, tmp_path) == {"files"}
    assert new_since(before, tmp_path) == set()


def test_a_mount_is_seen(tmp_path: Path) -> None:
    """A mount below the tests' directory."""
    probes.needs_root()
    before = leaks.snapshot(tmp_path)
    subprocess.run(["mount", "-t", "tmpfs", "leak", tmp_path], check=True)
    try:
        assert new_since(before, tmp_path) == {"mounts"}
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_cgroup_is_seen(tmp_path: Path) -> None:
    """A cgroup below the tests' parent."""
    probes.needs_root()
    tops = [path for path in (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")) if os.access(path, os.W_OK)]
    if not tops:
        pytest.skip("no writable cgroup tree")
    before = leaks.snapshot(tmp_path)
    cgroup = tops[0] / f"{leaks.CGROUP_PARENT}-leak"
    cgroup.mkdir()
    try:
        assert new_since(before, tmp_path) == {"cgroups"}
    finally:
        cgroup.rmdir()


SEES_AN_INTERFACE = """
import subprocess, sys
from pathlib import Path
from framework import leaks
before = leaks.snapshot(Path(sys.argv[1]))
subprocess.run(["ip", "link", "add", "leak0", "type", "veth", "peer", "name", "leak1"], check=True)
print(sorted(leaks.difference(before, leaks.snapshot(Path(sys.argv[1])))))
"""


def test_an_interface_is_seen(tmp_path: Path) -> None:
    """An interface on the host; tried in a network namespace that ends with the try."""
    probes.needs_root()
    probes.needs_program("ip", "unshare")
    argv = ["unshare", "--net", sys.executable, "-c", SEES_AN_INTERFACE, tmp_path]
    tests = str(Path(leaks.__file__).parents[1])
    done = subprocess.run(argv, env=os.environ | {"PYTHONPATH": tests}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['interfaces']"


def test_what_goes_away_by_itself_is_no_leak(tmp_path: Path) -> None:
    """A process that ends within the settling time is not reported."""
    before = leaks.snapshot(tmp_path)
    with subprocess.Popen(["sleep", "0.05"]):
        assert leaks.leaks(before, tmp_path) == {}
