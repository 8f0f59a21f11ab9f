"""What every run needs: the contender's contract, timing to the first byte, percentiles, and the output lines."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

GREETING = ("echo", "hello")
STOPPABLE = ("sh", "-c", 'trap "exit 0" TERM; sleep 1000 & wait')  # ends at SIGTERM, as PID 1 would not by default
STEP_TIMEOUT_S = 60.0
TRIES = 5
ORDER_SEED = 1
TRAP_S = 0.05  # a shell has set its trap by then; before, PID 1 would ignore SIGTERM
ISOLATED = "DRUPE_BENCH_ISOLATED"


class BenchError(Exception):
    """A contender failed: the benchmark is void, with this line as the reason."""


class LostOutput(BenchError):
    """A command ended well and its output was not there: Podman does so now and then."""


class Kept(Protocol):
    """What can be weighed: containers that stay."""

    name: str

    def keep(self) -> None:
        """Start one more container that idles."""

    def pss_bytes(self) -> int:
        """Memory of everything but the workloads."""

    def helpers(self) -> int:
        """Processes that serve the kept containers and are not workloads: monitors, shims."""

    def drop(self) -> None:
        """Remove what `keep` made."""


class Contender(Kept, Protocol):
    """One runtime under measurement. Each call cleans up after itself, outside the measured time; times are ms."""

    def start(self, *, bridge: bool = False) -> float:
        """From the call to the first byte that a new container writes."""

    def exec(self) -> float:
        """The same for a process in a running container."""

    def stop(self) -> float:
        """From asking a running container to stop (SIGTERM) until it is removed."""

    def burst(self, count: int) -> float:
        """`count` starts at once, until each has written its first byte."""

    def close(self) -> None:
        """Remove everything."""


class Report:
    """Prints one JSON object a line and keeps the raw samples beside it."""

    def __init__(self, directory: Path, kind: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._samples = directory / "samples.jsonl"
        self._lines = directory / "lines.jsonl"
        self._kind = kind

    def compare(self, name: str, ours: Sequence[float], peer: str, theirs: Sequence[float]) -> None:
        """One line of times, and its samples."""
        peer_p50 = percentile(theirs, 50)
        self._write(
            {
                "name": name,
                "kind": self._kind,
                "n": len(ours),
                "p50_ms": round(percentile(ours, 50), 3),
                "p95_ms": round(percentile(ours, 95), 3),
                "p99_ms": round(percentile(ours, 99), 3),
                "peer": peer,
                "peer_p50_ms": round(peer_p50, 3),
                "ratio": round(percentile(ours, 50) / peer_p50, 3),
            },
            {"ours_ms": list(ours), "peer_ms": list(theirs)},
        )

    def memory(
        self,
        name: str,
        *,
        pods: Sequence[int],
        pss: Sequence[int],
        helpers: int,
        peer: str,
        programs: Mapping[str, float] | None = None,
    ) -> None:
        """One line of memory: the slope of PSS over the number of pods, and the processes beside the workloads.
        programs: the same slope, in MB, of each program."""
        line = {
            "name": name,
            "kind": self._kind,
            "n": max(pods),
            "peer": peer,
            "pss_mb_per_pod": round(slope(pods, [value / 1e6 for value in pss]), 4),
            "helper_processes_per_pod": round(helpers / max(pods), 3),
        }
        if programs:
            line["programs_mb_per_pod"] = {program: round(each, 2) for program, each in programs.items()}
        self._write(line, {"pods": list(pods), "pss_bytes": list(pss)})

    def phases(
        self, name: str, *, n: int, peer: str, p50_ms: Mapping[str, float], raw: Mapping[str, Sequence[float]]
    ) -> None:
        """One line of what the parts of a start took."""
        line = {"name": name, "kind": self._kind, "n": n, "peer": peer, "phases_p50_ms": dict(p50_ms)}
        self._write(line, {"phases_ms": {part: list(values) for part, values in raw.items()}})

    def leaks(self, name: str, *, cycles: int, left: Mapping[str, int], grown_bytes: int) -> None:
        """One line of what there was more of after making and removing `cycles` pods."""
        line = {"name": name, "kind": self._kind, "n": cycles, "left": dict(left), "grown_kb": grown_bytes // 1024}
        self._write(line, {})

    def table(self, name: str, *, n: int, unit: str, rows: Mapping[str, Mapping[str, float]]) -> None:
        """One line of many figures, each a median: by what was measured, by whose it is."""
        self._write({"name": name, "kind": self._kind, "n": n, "unit": unit, "rows": rows}, {})

    def skip(self, name: str, peer: str, reason: str) -> None:
        """A comparison that could not be made, and why."""
        self._write({"name": name, "kind": self._kind, "peer": peer, "skipped": reason}, {})

    def _write(self, line: dict[str, Any], raw: dict[str, Any]) -> None:
        text = json.dumps(line)
        print(text, flush=True)
        with self._lines.open("a") as file:
            file.write(text + "\n")
        with self._samples.open("a") as file:
            file.write(json.dumps(line | raw) + "\n")


def isolate() -> None:
    """Start again in private mount and network namespaces; return in them, ready for every contender.

    /run is a tmpfs, so that no peer meets the host's own daemon. crun refuses an empty hybrid cgroup tree: it is
    unmounted here.
    """
    if os.environ.get(ISOLATED) is None:
        os.environ[ISOLATED] = "1"
        os.execvp("unshare", ["unshare", "--mount", "--net", sys.executable, *sys.argv])
    run("ip", "link", "set", "lo", "up")
    run("mount", "-t", "tmpfs", "-o", "mode=755", "run", "/run")
    if Path("/sys/fs/cgroup/unified").is_mount():
        run("umount", "/sys/fs/cgroup/unified")
        # crun makes directories there all the same, and forgets them: with a real controller it makes none of its own
        run("mount", "--bind", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/unified")


def weigh_one(contender: Kept, counts: tuple[int, ...], report: Report, *, name: str = "memory") -> None:
    """Read PSS at each of `counts` kept containers."""
    contender.drop()
    pss, helpers, kept = [], 0, 0
    for count in counts:
        for _ in range(count - kept):
            contender.keep()
        kept = count
        pss.append(contender.pss_bytes())
        helpers = contender.helpers()
    report.memory(name, peer=contender.name, pods=counts, pss=pss, helpers=helpers)
    contender.drop()


def percentile(samples: Sequence[float], percent: float) -> float:
    """Nearest-rank percentile: always a value that was measured."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Least-squares slope of ys over xs."""
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread


def interleave(samplers: Mapping[str, Callable[[], float]], n: int, *, warm_up: int) -> dict[str, list[float]]:
    """n samples of each contender, turn by turn, each turn in an order of its own (drawn, from a fixed seed): drift of
    the host hits all alike, and so does what the one before left behind."""
    taken: dict[str, list[float]] = {name: [] for name in samplers}
    names, draw = list(samplers), random.Random(ORDER_SEED)
    for turn in range(-warm_up, n):
        draw.shuffle(names)
        for name in names:
            took = again(samplers[name])
            if turn >= 0:
                taken[name].append(took)
    return taken


def again(sampler: Callable[[], float]) -> float:
    """One sample; a lost output is tried again."""
    for _ in range(TRIES):
        with suppress(LostOutput):
            return sampler()
    return sampler()


def first_byte(argv: Sequence[str]) -> float:
    """ms from starting a command to the first byte of its standard output; waits for its end before it returns."""
    began = time.perf_counter()
    process = spawn(argv)
    assert process.stdout is not None
    seen = process.stdout.read(1)
    took = since(began)
    finish(process, argv, seen)
    return took


def spawn(argv: Sequence[str]) -> subprocess.Popen[bytes]:
    """A command with its output on pipes, unbuffered."""
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)


def finish(process: subprocess.Popen[bytes], argv: Sequence[str], seen: bytes) -> None:
    """Wait for a command. Raises BenchError unless it ended well, LostOutput when it wrote nothing."""
    _, errors = process.communicate(timeout=STEP_TIMEOUT_S)
    if not seen and process.returncode == 0:
        raise LostOutput(f"{' '.join(argv)}: no output")
    if process.returncode != 0:
        raise BenchError(f"{' '.join(argv)}: exit {process.returncode}: {errors.decode(errors='replace').strip()}")


def burst_of_commands(commands: Sequence[Sequence[str]]) -> float:
    """ms from starting all commands at once until each has written its first byte.

    Podman loses the output of a short container now and then under load: then its end, a little later, counts.
    """
    began = time.perf_counter()
    running = [spawn(argv) for argv in commands]
    seen = first_bytes([process.stdout.fileno() for process in running if process.stdout])
    took = since(began)
    for process, argv, byte in zip(running, commands, seen, strict=True):
        finish(process, argv, byte or b"lost")
    return took


def first_bytes(fds: Sequence[int]) -> list[bytes]:
    """The first byte of each descriptor, read as they come; b"" where none came."""
    poll, got = select.poll(), dict.fromkeys(fds, b"")
    for fd in fds:
        poll.register(fd, select.POLLIN)
    waiting = set(fds)
    while waiting:
        ready = poll.poll(STEP_TIMEOUT_S * 1000)
        if not ready:
            raise BenchError(f"no output from {len(waiting)} of {len(fds)} within {STEP_TIMEOUT_S:g} s")
        for fd, _ in ready:
            got[fd] = os.read(fd, 1)
            poll.unregister(fd)
            waiting.discard(fd)
    return [got[fd] for fd in fds]


def run(*argv: str) -> str:
    """Run a command to its end, outside measured time; its output. Raises BenchError."""
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=STEP_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        raise BenchError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip()[-400:]}")
    return done.stdout


def since(began: float) -> float:
    """ms since `began` (time.perf_counter)."""
    return (time.perf_counter() - began) * 1000


def wait_for_end(pid: int) -> None:
    """Return when process `pid` has ended (it need not be a child)."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if not select.select([fd], [], [], STEP_TIMEOUT_S)[0]:
            raise BenchError(f"process {pid} did not end")
    finally:
        os.close(fd)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait, outside measured time, until the condition holds. Raises BenchError naming `what`."""
    deadline = time.monotonic() + STEP_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"not within {STEP_TIMEOUT_S:g} s: {what}")
        time.sleep(0.002)


def processes(program: str, token: str) -> list[int]:
    """Processes whose program name starts with `program` and whose command line contains `token`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name, line = (entry / "comm").read_text(), (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if name.startswith(program[:15]) and token.encode() in line:
                found.append(int(entry.name))
    return found


def pss_bytes(pids: Sequence[int]) -> int:
    """Proportional set size of some processes together (proc(5), smaps_rollup)."""
    total = 0
    for pid in pids:
        with suppress(ProcessLookupError, FileNotFoundError):  # it has just ended
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def with_own_sources(config: dict[str, Any], directory: Path, *, besides: str = "") -> dict[str, Any]:
    """A config.json with copies of what it mounts from a pod of ours, which may go before a peer is done.

    besides: a destination that is left as it is.
    """
    directory.mkdir(parents=True)
    config = copy.deepcopy(config)
    for number, mount in enumerate(config["mounts"]):
        if mount["type"] != "bind" or mount["destination"] == besides:
            continue
        source, copied = Path(mount["source"]), directory / str(number)
        if source.is_dir():
            copied.mkdir()
        else:
            shutil.copyfile(source, copied)
        mount["source"] = str(copied)
    return config
