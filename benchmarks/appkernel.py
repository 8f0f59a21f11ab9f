"""The application kernel beside Linux and runsc (systrap), in one run: what system calls cost, how soon a program
speaks, what a further idle pod takes. The same tree of files for all: an EROFS image here, a directory there.

python benchmarks/appkernel.py [--rounds N] [--priority]

--priority: so that a busy machine is not what is measured: calls at real-time priority, starts at the highest other one
(crun cannot move a real-time process into its cgroup).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from common import first_byte, interleave, isolate, pss_bytes, run

KERNEL = Path(__file__).parents[1] / "src/drupe/_bin/drupe-appkernel"
CALLS = Path(__file__).with_name("calls.c")
GREETING = ("/bin/busybox", "echo", "hello")
IDLE = ("/bin/busybox", "sleep", "1000")
RUNSC = ("runsc", "--network=none", "--platform=systrap", "--ignore-cgroups")
TIMEOUT_S = 120
SETTLE_S = 2.0
IDLE_S = 5.0
PODS = 4


class Field:
    """A tree of files in both forms, and how each contender runs a command in it."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.tree = work / "tree"
        for name in ("bin", "etc", "tmp", "dev", "proc", "sys", "run"):
            (self.tree / name).mkdir(parents=True)
        shutil.copy("/bin/busybox", self.tree / "bin")
        shutil.copytree("/etc", self.tree / "etc", dirs_exist_ok=True, symlinks=True)
        run("gcc", "-O1", "-static", "-pthread", "-w", "-o", str(self.tree / "bin/calls"), str(CALLS))
        self.image = work / "image.erofs"
        run("mkfs.erofs", "--quiet", str(self.image), str(self.tree))
        self._numbers = iter(range(1_000_000))

    def native(self, *command: str) -> list[str]:
        """In the tree, as a plain process."""
        return ["chroot", str(self.tree), *command]

    def ours(self, *command: str) -> list[str]:
        """In the application kernel."""
        return [str(KERNEL), "run", "--root", str(self.image), "--", *command]

    def runsc(self, *command: str) -> list[str]:
        """`runsc run` of a bundle."""
        name, bundle = self.bundle(command)
        return [*RUNSC, "--root", str(self.work / "runsc"), "run", "--bundle", str(bundle), name]

    def crun(self, *command: str) -> list[str]:
        """`crun run` of a bundle."""
        name, bundle = self.bundle(command)
        return ["crun", "--root", str(self.work / "crun"), "run", "--bundle", str(bundle), name]

    def bundle(self, command: tuple[str, ...]) -> tuple[str, Path]:
        """A fresh bundle over the tree."""
        name = f"drupe-bench-{os.getpid()}-{next(self._numbers)}"
        bundle = self.work / name
        bundle.mkdir()
        run("runc", "spec", "--bundle", str(bundle))
        config = json.loads((bundle / "config.json").read_text())
        config["process"] |= {"args": list(command), "terminal": False}
        config["root"] = {"path": str(self.tree), "readonly": False}
        (bundle / "config.json").write_text(json.dumps(config))
        return name, bundle


def calls(argv: list[str]) -> dict[str, float]:
    """Nanoseconds by name."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    return {name: float(value) for name, value in map(str.split, done.stdout.splitlines())}


def table(rows: dict[str, dict[str, str]]) -> None:
    """Columns by name, rows by name, in Markdown."""
    columns = list(next(iter(rows.values())))
    print("| | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for name, cells in rows.items():
        print(f"| {name} | " + " | ".join(cells[column] for column in columns) + " |")
    print()


def calls_of_all(field: Field, rounds: int) -> dict[str, dict[str, float]]:
    """Nanoseconds by call and contender: medians of some rounds, in each all contenders one after the other."""
    ways = {"native": field.native, "application kernel": field.ours}
    if shutil.which("runsc"):
        ways["runsc (systrap)"] = field.runsc
    taken: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for way, make in ways.items():
            for name, value in calls(make("/bin/calls")).items():
                taken.setdefault(name, {}).setdefault(way, []).append(value)
    return {name: {way: statistics.median(values) for way, values in by.items()} for name, by in taken.items()}


def compare_calls(field: Field, rounds: int) -> None:
    """What a call costs, as a table."""
    costs = calls_of_all(field, rounds)
    table({f"{name} (ns)": {way: f"{value:.0f}" for way, value in by.items()} for name, by in costs.items()})


def compare_starts(field: Field, rounds: int) -> None:
    """From the command to the program's first byte."""
    ways = {"application kernel": field.ours, "crun run": field.crun, "runsc run": field.runsc}
    ways = {way: make for way, make in ways.items() if shutil.which(way.split()[0]) or way == "application kernel"}
    samplers = {way: partial(lambda make: first_byte(make(*GREETING)), make) for way, make in ways.items()}
    taken = interleave(samplers, rounds, warm_up=1)
    table({"start to first byte (ms, p50)": {way: f"{statistics.median(t):.1f}" for way, t in taken.items()}})


def tree_of(pid: int) -> list[int]:
    """A process and everything below it."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found.extend(int(child) for child in task.read_text().split())
    return found


@contextmanager
def idle_pods(argvs: list[list[str]]) -> Iterator[list[list[int]]]:
    """Pods that sleep: the processes of each."""
    pods = [subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) for argv in argvs]
    time.sleep(SETTLE_S)
    try:
        yield [tree_of(pod.pid) for pod in pods]
    finally:
        for pod in pods:
            for pid in tree_of(pod.pid):
                subprocess.run(["kill", "-KILL", str(pid)], check=False, capture_output=True)
            pod.wait()


def ticks(pids: list[int]) -> int:
    """Processor time of processes, in ticks of 10 ms."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in pids]
    return sum(int(field[11]) + int(field[12]) for field in fields)


def compare_idle(field: Field) -> None:
    """Memory of one more pod beside others of its kind, and what it does while it does nothing."""
    rows: dict[str, dict[str, str]] = {"memory of a further idle pod (PSS, KiB)": {}, "idle pod's time in 5 s (ms)": {}}
    for way, make in {"application kernel": field.ours, "runsc run": field.runsc}.items():
        if way == "runsc run" and not shutil.which("runsc"):
            continue
        with idle_pods([make(*IDLE) for _ in range(PODS - 1)]) as few:
            before = pss_bytes([pid for pod in few for pid in pod])
        with idle_pods([make(*IDLE) for _ in range(PODS)]) as pods:
            pids = [pid for pod in pods for pid in pod]
            rows["memory of a further idle pod (PSS, KiB)"][way] = f"{(pss_bytes(pids) - before) / 1024:.0f}"
            used = ticks(pids)
            time.sleep(IDLE_S)
            rows["idle pod's time in 5 s (ms)"][way] = f"{(ticks(pids) - used) * 10 / PODS:.1f}"
    table(rows)


def main() -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of calls; of starts six times as many")
    parser.add_argument("--priority", action="store_true", help="before all else that runs")
    options = parser.parse_args()
    isolate()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="drupe-bench-", dir="/var/tmp", ignore_cleanup_errors=True) as work:
        field = Field(Path(work))
        if options.priority:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        compare_calls(field, options.rounds)
        if options.priority:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
            os.setpriority(os.PRIO_PROCESS, 0, -20)
        compare_starts(field, 6 * options.rounds)
        compare_idle(field)


if __name__ == "__main__":
    main()
