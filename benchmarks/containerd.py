"""Stock containerd 2.1 with its own runc shim beside the same containerd with drupe: pods by its CRI, tasks by
`ctr run`, and the start of the small programs that are called for each task.

containerd, its network for pods and our daemon are those of the tests (tests/framework/cri_host.py): a host in mount
and network namespaces of its own, one for both contenders.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from common import (
    GREETING,
    BenchError,
    Report,
    first_byte,
    interleave,
    processes,
    pss_bytes,
    since,
    wait_until,
    weigh_one,
)
from ours import descendants, namespace_of

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from framework.bundles import COMMAND
from framework.containerds import IMAGE, NAMESPACE, SOCKET, VERSIONS
from framework.cri import container_config
from framework.cri_host import CriHost

VERSION = VERSIONS["2.1"]
FOREVER = ("sleep", "100000")
PEER = "runc"
PEER_NAME = "runc's shim"
HANDLERS = ("drupe-runc", PEER)
RUNTIMES = {"drupe": "io.containerd.drupe.v2", "runc": "io.containerd.runc.v2"}


def missing() -> str:
    """Why it cannot be measured here; "" when it can."""
    if VERSION.directory is None or not (VERSION.directory / "containerd").exists():
        return f"containerd {VERSION.name} is not there (scripts/setup.sh --tests fetches it)"
    return ""


@contextmanager
def open_host(work: Path, store: Path) -> Iterator[CriHost]:
    """containerd and drupe, with the image of `store`."""
    host = CriHost(work, VERSION, store)
    host.env.pop("DRUPE_RUN", None)  # of the daemon that the other races use
    try:
        host.open()
        yield host
    finally:
        host.close()


class Pods:
    """Pods of one runtime handler of containerd's CRI, each with one container."""

    def __init__(self, host: CriHost, handler: str) -> None:
        self.name = handler
        self._host = host
        self._numbers = itertools.count()
        self._kept: list[tuple[str, str]] = []
        self._address = ""

    def ready(self, *, host_network: bool = False) -> float:
        """RunPodSandbox (with its network), CreateContainer, StartContainer."""
        began = time.perf_counter()
        pod, _ = self._make(host_network=host_network)
        took = since(began)
        self._remove(pod)
        return took

    def ready_in_host_network(self) -> float:
        """The same without what the network's plug-ins take, which is the same for all."""
        return self.ready(host_network=True)

    def exec(self) -> float:
        """ExecSync in one kept container."""
        if not self._kept:
            self.keep()
        began = time.perf_counter()
        said = self._host.cri.exec(self._kept[0][1], *GREETING)
        took = since(began)
        if said != "hello\n":
            raise BenchError(f"exec wrote {said!r}")
        return took

    def stop(self) -> float:
        """StopContainer without grace, RemoveContainer, StopPodSandbox, RemovePodSandbox."""
        pod, container = self._make()
        cri = self._host.cri
        began = time.perf_counter()
        cri.StopContainer(container_id=container, timeout=0)
        cri.RemoveContainer(container_id=container)
        cri.remove_pod(pod)
        return since(began)

    def burst(self, count: int) -> float:
        """`count` pods at once, until all are ready."""
        with ThreadPoolExecutor(count) as pool:
            began = time.perf_counter()
            made = list(pool.map(lambda _: self._make(), range(count)))
            took = since(began)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda pair: self._remove(pair[0]), made))
        return took

    def keep(self) -> None:
        """One more pod that idles."""
        self._kept.append(self._make())

    def pss_bytes(self) -> int:
        """runc's: of its shims alone. Ours: of daemon, keeper and the processes that hold a pod's namespaces."""
        return pss_bytes(self._shims() if self.name == PEER else [*own_processes(self._host), *self._pauses()])

    def helpers(self) -> int:
        """Shims, and processes that only keep a pod's namespaces."""
        return len(self._shims()) + len(self._pauses())

    def drop(self) -> None:
        """Remove kept pods."""
        for pod, _ in self._kept:
            self._remove(pod)
        self._kept.clear()
        wait_until(lambda: not self._shims(), "the shims end")

    def _make(self, *, host_network: bool = False) -> tuple[str, str]:
        name = f"{self.name}-{next(self._numbers)}"
        given: dict[str, Any] = {"host_network": True, "hostname": ""} if host_network else {}
        pod = self._host.pod(name, self.name, **given)
        config = container_config("main", *FOREVER, image=IMAGE)
        config.linux.security_context.namespace_options.CopyFrom(pod[1].linux.security_context.namespace_options)
        return pod[0], self._host.cri.run(pod[0], config, pod[1])

    def _remove(self, pod: str) -> None:
        self._host.cri.remove_pod(pod)

    def _shims(self) -> list[int]:
        return processes("containerd-shim", SOCKET) if self.name == PEER else []

    def _pauses(self) -> list[int]:
        status = self._host.cri.PodSandboxStatus
        infos = (status(pod_sandbox_id=pod, verbose=True).info["info"] for pod, _ in self._kept)
        return [int(json.loads(info)["pid"]) for info in infos]


class CtrRun:
    """`ctr run --rm` with one of containerd's runtimes, in the foreground."""

    def __init__(self, host: CriHost, runtime: str) -> None:
        assert VERSION.directory is not None
        self._base = [*host._nsenter(), str(VERSION.directory / "ctr"), "--address", SOCKET, "--namespace", NAMESPACE]
        self._runtime = runtime
        self._numbers = itertools.count()
        host.load()

    def start(self) -> float:
        """To the first byte."""
        name = f"bench-{self._runtime}-{next(self._numbers)}"
        took = first_byte([*self._base, "run", "--rm", "--runtime", self._runtime, IMAGE, name, *GREETING])
        wait_until(lambda: not processes("containerd-shim", name), "the shim ends")
        return took


def program(*argv: str) -> Callable[[], float]:
    """A sampler: the time of a program from its start to its end."""

    def sample() -> float:
        began = time.perf_counter()
        pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=_QUIET)
        _, status = os.waitpid(pid, 0)
        took = since(began)
        if os.waitstatus_to_exitcode(status) != 0:
            raise BenchError(f"{' '.join(argv)} failed")
        return took

    return sample


_QUIET = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]


def clients() -> dict[str, Callable[[], float]]:
    """What is started for each task or call, doing nothing; and the least that any program can take."""
    beside = COMMAND.parent
    return {
        "shim": program(str(beside / "containerd-shim-drupe-v2"), "-v"),
        "oci": program(str(beside / "drupe-oci"), "--version"),
        "true": program("/bin/true"),
    }


# -- what is left -----------------------------------------------------------------------------------------------------


def own_processes(host: CriHost) -> list[int]:
    """Our daemon, its keeper and what they started, but for the containers' processes."""
    here = Path("/proc/self/ns/pid").readlink()
    keeper = int(host.inside("cat", "/run/drupe/keeper.pid").stdout)
    return [pid for pid in descendants({daemon_pid(host), keeper}) if namespace_of(pid) == here]


def daemon_pid(host: CriHost) -> int:
    """Of our daemon in there."""
    return int(host._services[0].pid)


def residue(host: CriHost) -> dict[str, int]:
    """What must not grow: open files, processes, mounts, cgroups, network namespaces, files of state."""
    own = own_processes(host)
    inside = f"/proc/{daemon_pid(host)}/root"
    mounts = sum(len(Path(f"/proc/{pid}/mountinfo").read_text().splitlines()) for pid in own)
    return {
        "files": sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in own),
        "processes": len(own),
        "mounts": mounts,
        "cgroups": sum(1 for _ in Path("/sys/fs/cgroup").rglob("cgroup.procs")),
        "netns": len(list(Path(f"{inside}/run/netns").iterdir())),
        "state": sum(len(files) + len(dirs) for _, dirs, files in os.walk(f"{inside}/run/drupe")),
    }


def cycle(pods: Pods, host: CriHost, count: int) -> tuple[dict[str, int], int]:
    """Make and remove `count` pods; what there is more of then, and by how many bytes our daemon and keeper have grown.
    The first pods are not counted: what is made once is no leak."""
    for _ in range(min(20, count)):
        pods.ready()
    before, pss = settled(host), pss_bytes(own_processes(host))
    for _ in range(count):
        pods.ready()
    after = settled(host)
    more = {name: after[name] - before[name] for name in before if after[name] > before[name]}
    return more, pss_bytes(own_processes(host)) - pss


def settled(host: CriHost) -> dict[str, int]:
    """What is there once nothing is under way."""
    seen = residue(host)
    while (now := _later(host)) != seen:
        seen = now
    return seen


def _later(host: CriHost) -> dict[str, int]:
    time.sleep(0.5)
    return residue(host)


# -- the rows ---------------------------------------------------------------------------------------------------------


class Races:
    """Every row, or those that `only` names."""

    def __init__(self, host: CriHost, report: Report, only: list[str]) -> None:
        self._host = host
        self._report = report
        self._only = only
        self._ours, self._peer = (Pods(host, handler) for handler in HANDLERS)

    def run(self, n: int, burst: tuple[int, int], pods: tuple[int, ...], cycles: int) -> None:
        """n: samples of each row; burst: pods at once, and rounds; pods: at which memory is read."""
        count, rounds = burst
        self._race("cri-ready", Pods.ready, n)
        self._race("cri-host-network", Pods.ready_in_host_network, n)
        self._race("cri-exec", Pods.exec, n)
        self._race("cri-stop", Pods.stop, n)
        self._race(f"cri-parallel-{count}", lambda one: one.burst(count), rounds)
        self._run_tasks(n)
        for contender in (self._ours, self._peer) if self._wants("cri-memory") else ():
            weigh_one(contender, pods, self._report, name="cri-memory")
        self._cycle(cycles)
        self._start_clients(n)

    def _wants(self, name: str) -> bool:
        return not self._only or name in self._only

    def _race(self, name: str, sample: Callable[[Pods], float], n: int) -> None:
        if self._wants(name):
            samplers = {one.name: partial(sample, one) for one in (self._ours, self._peer)}
            taken = interleave(samplers, n, warm_up=1 if "parallel" in name else 2)
            self._report.compare(name, taken[self._ours.name], PEER_NAME, taken[self._peer.name])
            self._ours.drop()
            self._peer.drop()

    def _run_tasks(self, n: int) -> None:
        if self._wants("ctr-run"):
            samplers = {name: CtrRun(self._host, runtime).start for name, runtime in RUNTIMES.items()}
            taken = interleave(samplers, n, warm_up=2)
            self._report.compare("ctr-run", taken["drupe"], PEER_NAME, taken[PEER])

    def _cycle(self, cycles: int) -> None:
        if self._wants("cri-cycles"):
            left, grown_bytes = cycle(self._ours, self._host, cycles)
            self._report.leaks("cri-cycles", cycles=cycles, left=left, grown_bytes=grown_bytes)

    def _start_clients(self, n: int) -> None:
        """Beside `true`: how much of their time is that of any program."""
        if self._wants("client"):
            taken = interleave(clients(), n, warm_up=2)
            for name in ("shim", "oci"):
                self._report.compare(f"client-{name}", taken[name], "true", taken["true"])
