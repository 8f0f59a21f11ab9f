"""What a newcomer types first: the demo and the benchmark, in namespaces of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from framework import images, machines, probes

ROOT = Path(__file__).parents[2]
TIMES = ["name", "kind", "n", "p50_ms", "p95_ms", "p99_ms", "peer", "peer_p50_ms", "ratio"]
INSIDE = "ip link set lo up && mount -t tmpfs run /run && exec"

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(400)]


def in_namespaces(*argv: object, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a network and a mount namespace of its own, with a fresh /run."""
    command = ["unshare", "--net", "--mount", "sh", "-c", f'{INSIDE} "$@"', "sh", *map(str, argv)]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip


def test_the_demo_passes(tmp_path: Path, busybox: Path) -> None:
    """`make demo` runs to its end, checks what it shows, and leaves no pod behind."""
    probes.needs_keeper()
    probes.needs_program("crun", "mmdebstrap", "nft")
    machines.needs_machines()
    root, run = tmp_path / "root", tmp_path / "run"
    images.copy_store(busybox, root)
    machines.make_quick_root(root)
    made = subprocess.run(
        [ROOT / "scripts/make-debian-image.sh", "--root", root / "images"], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    few = {"DEMO_STARTS": "1", "DEMO_PODS": "1", "DEMO_STOP_DAEMON": "1"}
    done = in_namespaces(ROOT / "scripts/demo.sh", DRUPE_ROOT=str(root), DRUPE_RUN=str(run), **few)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr}"
    assert "The demo passed" in done.stdout


def test_the_benchmark_prints_what_it_promises(tmp_path: Path) -> None:
    """One JSON object a line, with exactly the promised keys, and the raw samples beside."""
    probes.needs_keeper()
    probes.needs_program("crun", "ip")
    bench = [sys.executable, ROOT / "benchmarks/bench.py", "--quick", "--samples", "2", "--keep", tmp_path]
    done = in_namespaces(*bench, "--only", "start", "exec", "memory")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    times = [line for line in lines if "p50_ms" in line]
    assert times and all(list(line) == TIMES for line in times)
    assert [line["pss_mb_per_pod"] for line in lines if line["name"] == "memory" and line.get("peer") == "drupe"]
    assert all(line["skipped"] for line in lines if "skipped" in line)
    raw = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [len(line["ours_ms"]) for line in raw if "ours_ms" in line] == [2] * len(times)
