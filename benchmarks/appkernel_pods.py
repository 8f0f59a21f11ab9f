"""The application kernel's rows: pods of the kind beside bare crun and runsc (systrap), calls, programs under load."""

from __future__ import annotations

import re
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from appkernel import KERNEL, TIMEOUT_S, Field, calls_of_all, ticks
from common import BenchError, Contender, Report, interleave, pss_bytes, weigh_one
from gvisor import BareRunsc, sandboxes
from ours import Drupe, descendants

OURS, RUNSC = "application kernel", "runsc (systrap)"
SETTLE_S, IDLE_S = 1.0, 5.0
REDIS = """redis-server --port 7001 --save '' --dir /tmp --logfile /dev/null & server=$!
until redis-cli -p 7001 ping >/dev/null 2>&1; do sleep 0.05; done
redis-benchmark -p 7001 -n 20000 -c 20 -t set,get --csv; kill $server; wait $server"""
NGINX = """cd /tmp; head -c 10000 /dev/zero > file
printf 'worker_processes 1; pid /tmp/pid; error_log /dev/null; daemon off; user root; events {}
http { access_log off; server { listen 7002; root /tmp; } }' > conf
nginx -c /tmp/conf 2>/dev/null & server=$!
until ab -q -n 1 http://127.0.0.1:7002/file >/dev/null 2>&1; do sleep 0.05; done
ab -q -n 5000 -c 10 http://127.0.0.1:7002/file; kill $server; wait $server"""
RATE = re.compile(r'^"(SET|GET)","([\d.]+)"|^Requests per (second): +([\d.]+)', re.MULTILINE)


class KernelDrupe:
    """drupe's pods of the kind appkernel, over the daemon of `Drupe`."""

    name = "drupe"

    def __init__(self, ours: Drupe) -> None:
        self._ours = ours.of_kind("appkernel")
        self.start = self._ours.start
        self.exec = self._ours.exec
        self.burst = self._ours.burst
        self.keep = self._ours.keep
        self.drop = self._ours.drop

    def processes(self) -> list[int]:
        """Kernels and stubs: what a guest runs in is the kernel's, as gVisor's is the sentry's."""
        place = str(self._ours.run_dir).encode()
        roots = {int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if _is_kernel(path, place)}
        return [pid for pid in descendants(roots) if Path(f"/proc/{pid}/smaps_rollup").exists()]

    def pss_bytes(self) -> int:
        """All that stands for the pods, once they have come to rest."""
        time.sleep(SETTLE_S)
        return pss_bytes(self.processes())

    def helpers(self) -> int:
        """Processes beside kernels and stubs."""
        return len(self._ours.extra_processes() - set(self.processes()))


def _is_kernel(path: Path, place: bytes) -> bool:
    try:
        words = path.read_bytes().split(b"\0")
    except OSError:
        return False
    return words[0].endswith(b"drupe-appkernel") and any(word.startswith(place) for word in words)


class Races:
    """All of them, or those that are wanted by name."""

    def __init__(self, ours: Drupe, crun: Contender, work: Path, report: Report, wanted: list[str]) -> None:
        self._ours = KernelDrupe(ours)
        self._plain = ours.of_kind("runc")
        self._crun = crun
        self._runsc = BareRunsc(work=work, lower=ours.layers(), config=ours.oci_config())
        self._work, self._report, self._wanted = work, report, wanted

    def run(self, n: int, *, pods: tuple[int, ...], bursts: tuple[tuple[int, int], ...]) -> None:
        """n: samples of a start and of an exec. bursts: starts at once, and how often."""
        rows: dict[str, Callable[[], None]] = {
            "appkernel-start": lambda: self._starts(n),
            "appkernel-exec": lambda: self._execs(n),
            **{f"appkernel-parallel-{count}": partial(self._bursts, count, rounds) for count, rounds in bursts},
            "appkernel-memory": lambda: self._memory(pods),
            "appkernel-idle": lambda: self._idle(pods[-1]),
            "appkernel-calls": lambda: self._calls(max(1, n // 6)),
            "appkernel-programs": lambda: self._programs(max(1, n // 6)),
        }
        for name, measure in rows.items():
            if not self._wanted or name in self._wanted:
                measure()

    def drop(self) -> None:
        """Remove what is kept."""
        self._ours.drop()
        self._runsc.close()

    def _starts(self, n: int) -> None:
        samplers = {"drupe": self._ours.start, "crun": self._crun.start, "runsc": self._runsc.start}
        taken = interleave(samplers, n, warm_up=2)
        for peer in ("crun", "runsc"):
            self._report.compare("appkernel-start", taken["drupe"], f"{peer} run", taken[peer])

    def _execs(self, n: int) -> None:
        samplers = {"drupe": self._ours.exec, "crun": self._crun.exec, "runsc": self._runsc.exec}
        taken = interleave(samplers, n, warm_up=2)
        for peer in ("crun", "runsc"):
            self._report.compare("appkernel-exec", taken["drupe"], f"{peer} exec", taken[peer])

    def _bursts(self, count: int, rounds: int) -> None:
        """So many starts at once, until the last one's first byte; also beside our own pods without a kernel."""
        bursts: dict[str, Callable[[int], float]] = {
            "drupe": self._ours.burst,
            "drupe (runc)": self._plain.burst,
            "crun": self._crun.burst,
            "runsc": self._runsc.burst,
        }
        samplers = {name: partial(burst, count) for name, burst in bursts.items()}
        taken = interleave(samplers, rounds, warm_up=1)
        for peer in ("drupe (runc)", "crun", "runsc"):
            self._report.compare(f"appkernel-parallel-{count}", taken["drupe"], f"{peer} run", taken[peer])

    def _memory(self, pods: tuple[int, ...]) -> None:
        for contender in (self._ours, self._runsc):
            weigh_one(contender, pods, self._report, name="appkernel-memory")

    def _idle(self, count: int) -> None:
        """Processor time of a pod that does nothing, in ms a second."""
        used: dict[str, float] = {}
        for way, contender in ((OURS, self._ours), (RUNSC, self._runsc)):
            for _ in range(count):
                contender.keep()
            time.sleep(SETTLE_S)
            used[way] = round(self._used_ms(contender) / count / IDLE_S, 2)
            contender.drop()
        self._report.table("appkernel-idle", n=count, unit="ms of processor time a second", rows={"idle pod": used})

    def _used_ms(self, contender: KernelDrupe | BareRunsc) -> float:
        pids = contender.processes() if isinstance(contender, KernelDrupe) else sandboxes(self._work / "runsc")
        before = ticks(pids)
        time.sleep(IDLE_S)
        return (ticks(pids) - before) * 10

    def _calls(self, rounds: int) -> None:
        place = self._work / "calls"
        place.mkdir()
        costs = calls_of_all(Field(place), rounds)
        self._report.table("appkernel-calls", n=rounds, unit="ns", rows=costs)

    def _programs(self, rounds: int) -> None:
        """Requests a second of servers under load, both in one sandbox, over the host's own files."""
        ways = {
            "native": ["sh", "-c"],
            OURS: [str(KERNEL), "run", "--root", "/", "--network", "--", "/bin/sh", "-c"],
            RUNSC: ["runsc", "--network=none", "--platform=systrap", "--ignore-cgroups", "do", "sh", "-c"],
        }
        taken: dict[str, dict[str, list[float]]] = {}
        for _ in range(rounds):
            for way, argv in ways.items():
                for name, rate in {**_rates([*argv, REDIS], "redis"), **_rates([*argv, NGINX], "nginx")}.items():
                    taken.setdefault(name, {}).setdefault(way, []).append(rate)
        rows = {name: {way: statistics.median(rates) for way, rates in by.items()} for name, by in taken.items()}
        self._report.table("appkernel-programs", n=rounds, unit="requests a second", rows=rows)


def _rates(argv: list[str], program: str) -> dict[str, float]:
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    found = {f"{program} {a or 'static'}": float(b or d) for a, b, _, d in RATE.findall(done.stdout)}
    if not found:
        raise BenchError(f"{' '.join(argv[:3])} … {program}: exit {done.returncode}: {done.stderr[-400:]}")
    return found
