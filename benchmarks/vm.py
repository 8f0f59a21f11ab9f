"""The vm kind: pods from a template beside cold boots, of the same image under the same accelerator. A machine boots
cold when no template has its size, so the cold pods ask for some memory more."""

from __future__ import annotations

import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from common import (
    GREETING,
    STEP_TIMEOUT_S,
    STOPPABLE,
    BenchError,
    Report,
    first_bytes,
    interleave,
    pss_bytes,
    run,
    since,
    slope,
)
from ours import IMAGE, NETWORKS, Drupe, pipe

from drupe.rpc.client import Client, Stream
from drupe.spec import ContainerSpec, ExecSpec, PodSpec, PodStatus, Resources
from drupe.spec.control import Delete, ExecStart, PodRun, Ref, Wait
from drupe.spec.template import TemplateCreate

BOOT_TIMEOUT_S = 120.0
WARM_BYTES, COLD_BYTES = 128 << 20, 144 << 20
AT_ONCE = 8
SETTLE_S = 3.0  # an idle machine's memory, not that of a start
COLD, KILLED = "a cold boot", "a program that is killed"
HANG_TIMEOUT_MS, LOOK_EVERY_S = 60_000, 0.005
PROGRAMS = ("vmm", "virtiofsd")
# Parts of a start, and the phases that the daemon tells of each. All that is in none of them is the host's own part.
PARTS = {
    "network": ("start network",),
    "share": ("start share", "start roots"),
    "vmm": ("start vmm",),
    "kernel": ("start kernel", "start restore", "start renew", "start devices"),
    "agent": ("start agent",),
    "container": ("start container", "start output"),
}
NOT_OURS = ("vmm", "kernel", "agent", "container")  # the monitor's and the guest's


class VmDrupe:
    """Pods of one size and one form of root, over the daemon of `Drupe`; from a template when `cold` is not set."""

    def __init__(self, ours: Drupe, *, cold: bool, rootfs: str = "virtiofs") -> None:
        self.name = f"drupe vm, {rootfs}, {'cold boots' if cold else 'from a template'}"
        self.parts: list[dict[str, float]] = []
        self._ours = ours.of_kind("vm")
        self._memory_bytes = COLD_BYTES if cold else WARM_BYTES
        self._rootfs = rootfs
        self._kept: list[PodStatus] = []
        self._before = ours.extra_processes()

    def start(self) -> float:
        """A new pod with one container, to its first byte."""
        with ExitStack() as stack:
            began = time.perf_counter()
            call, output = self._run(stack)
            seen = os.read(output, 1)
            took = since(began)
            self.parts.append(self._finish(call, seen, took))
        return took

    def burst(self) -> float:
        """Several at once."""
        with ExitStack() as stack:
            began = time.perf_counter()
            calls = [self._run(stack) for _ in range(AT_ONCE)]
            seen = first_bytes([output for _, output in calls])
            took = since(began)
            for (call, _), byte in zip(calls, seen, strict=True):
                self._finish(call, byte, took)
        return took

    def exec(self) -> float:
        """A process in a running machine, to its first byte."""
        if not self._kept:
            self.keep()
        params = ExecStart(ref=self._kept[0].containers[0].id, spec=ExecSpec(argv=GREETING))
        with ExitStack() as stack:
            output, theirs = pipe(stack)
            began = time.perf_counter()
            call = stack.enter_context(self._ours.client.stream("exec.start", params, fds={"stdout": theirs}))
            os.close(theirs)
            seen = os.read(output, 1)
            took = since(began)
            if not seen or call.wait().code != 0:
                raise BenchError("exec wrote nothing")
        return took

    def _run(self, stack: ExitStack) -> tuple[Stream, int]:
        output, theirs = pipe(stack)
        params = PodRun(spec=self._spec(GREETING))
        call = stack.enter_context(self._ours.client.stream("pod.run", params, fds={"stdout": theirs}))
        os.close(theirs)
        return call, output

    def _finish(self, call: Stream, seen: bytes, took_ms: float) -> dict[str, float]:
        """Wait for its end and remove it; how long the parts of its start took."""
        client, pod = self._ours.client, call.wait()
        if not seen:
            raise BenchError(f"pod {pod.id} wrote nothing")
        client.call("container.wait", Wait(ref=pod.containers[0].id), timeout_s=STEP_TIMEOUT_S)
        told = client.call("pod.status", Ref(ref=pod.id), timeout_s=STEP_TIMEOUT_S).timings_ms
        client.call("pod.delete", Delete(ref=pod.id, force=True), timeout_s=STEP_TIMEOUT_S)
        parts = {part: sum(told.get(phase, 0.0) for phase in phases) for part, phases in PARTS.items()}
        return parts | {"own": took_ms - sum(parts[part] for part in NOT_OURS)}

    def keep(self) -> None:
        """One more pod that idles."""
        params = PodRun(spec=self._spec(STOPPABLE))
        self._kept.append(self._ours.client.call("pod.run", params, timeout_s=BOOT_TIMEOUT_S))

    def weigh(self, counts: Sequence[int], report: Report) -> None:
        """PSS at each number of kept pods: of monitors (with the guests' memory) and virtiofsd, and of the daemon."""
        self.drop()
        seen: list[dict[str, int]] = []
        for count in counts:
            while len(self._kept) < count:
                self.keep()
            time.sleep(SETTLE_S)
            seen.append(self._by_program())
        programs = {name: slope(counts, [one.get(name, 0) / 1e6 for one in seen]) for name in seen[-1]}
        whole = [sum(one.values()) for one in seen]
        report.memory("vm-memory", peer=self.name, pods=counts, pss=whole, helpers=len(self._mine()), programs=programs)
        self.drop()

    def weigh_daemon(self, counts: Sequence[int], report: Report) -> None:
        """PSS of the daemon and the keeper at each number of kept pods."""
        self.drop()
        self.keep()
        pss = []
        for count in counts:
            while len(self._kept) < count:
                self.keep()
            pss.append(pss_bytes(list(self._ours.roots())))
        report.memory("vm-daemon", peer=self.name, pods=counts, pss=pss, helpers=len(self._mine()))
        self.drop()

    def fails(self, program: str, number: signal.Signals) -> float:
        """From a signal to a program that runs a machine until its pod has failed."""
        self.keep()
        pod, client = self._kept.pop(), self._ours.client
        pid = int((self._ours.run_dir / f"pods/{pod.id}/vm/{program}.pid").read_text())
        began = time.perf_counter()
        os.kill(pid, number)
        took = self._failed(pod.id, began)
        client.call("pod.delete", Delete(ref=pod.id, force=True), timeout_s=STEP_TIMEOUT_S)
        return took

    def _failed(self, pod_id: str, began: float) -> float:
        client = self._ours.client
        while client.call("pod.status", Ref(ref=pod_id), timeout_s=STEP_TIMEOUT_S).state != "failed":
            if since(began) > HANG_TIMEOUT_MS:
                raise BenchError(f"pod {pod_id} has not failed")
            time.sleep(LOOK_EVERY_S)
        return since(began)

    def drop(self) -> None:
        """Remove kept pods."""
        for pod in self._kept:
            self._ours.client.call("pod.delete", Delete(ref=pod.id, force=True), timeout_s=STEP_TIMEOUT_S)
        self._kept.clear()

    def _mine(self) -> set[int]:
        return self._ours.extra_processes() - self._before

    def _by_program(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for pid in self._mine():
            if Path(f"/proc/{pid}/smaps_rollup").exists():
                name = Path(f"/proc/{pid}/comm").read_text().strip()
                found[name] = found.get(name, 0) + pss_bytes([pid])
        return found

    def _spec(self, argv: tuple[str, ...]) -> PodSpec:
        return PodSpec(
            sandbox="vm",
            network=NETWORKS[False],
            annotations={"drupe.vm.rootfs": self._rootfs},
            resources=Resources(memory_bytes=self._memory_bytes),
            containers=(ContainerSpec(image=IMAGE, argv=argv),),
        )


class Races:
    """The rows of the kind, those of `wanted` if it names any."""

    def __init__(self, ours: Drupe, report: Report, wanted: Sequence[str]) -> None:
        self._prepare(ours.client)
        self._ours, self._report, self._wanted = ours, report, wanted
        self._cold = VmDrupe(ours, cold=True)
        self._warm = {"": VmDrupe(ours, cold=False), "-block": VmDrupe(ours, cold=False, rootfs="block")}

    def _prepare(self, client: Client) -> None:
        """The guest image, and a template of the size that is not booted cold."""
        run(sys.executable, "-m", "drupe", "guest", "build", "--quiet")
        client.call("template.create", TemplateCreate(memory_bytes=WARM_BYTES), timeout_s=BOOT_TIMEOUT_S)

    def drop(self) -> None:
        """Remove kept pods."""
        for one in (self._cold, *self._warm.values()):
            one.drop()

    def run(self, samples: int, *, rounds: int, pods: Sequence[int]) -> None:
        """samples: of a start and of an exec. rounds: of several starts at once. pods: numbers at which memory is
        read."""
        if self._wants("vm-template", "vm-template-block", "vm-phases", "vm-own"):
            self._race_starts(samples)
        if self._wants("vm-exec"):
            self._compare("vm-exec", samples, self._warm["-block"].exec, "an exec of the runc kind", self._ours.exec)
        if self._wants(f"vm-parallel-{AT_ONCE}"):
            block = self._warm["-block"]
            self._compare(f"vm-parallel-{AT_ONCE}", rounds, block.burst, f"{AT_ONCE} cold boots", self._cold.burst)
        if self._wants("vm-memory"):
            for one in (self._cold, *self._warm.values()):
                one.weigh(pods, self._report)
        if self._wants("vm-hang"):
            self._race_hangs(max(rounds, 5))
        if self._wants("vm-daemon"):
            self._warm["-block"].weigh_daemon((1, 4, AT_ONCE), self._report)

    def _wants(self, *names: str) -> bool:
        return not self._wanted or bool({"vm", *names} & {*self._wanted})

    def _race_starts(self, samples: int) -> None:
        contenders = {"cold": self._cold} | self._warm
        taken = interleave({name: one.start for name, one in contenders.items()}, samples, warm_up=1)
        for name, one in contenders.items():
            one.parts = one.parts[-samples:]
            phases = {part: [parts[part] for parts in one.parts] for part in one.parts[0]}
            middle = {part: round(statistics.median(values), 1) for part, values in phases.items()}
            self._report.phases("vm-phases", n=samples, peer=one.name, p50_ms=middle, raw=phases)
            if name != "cold":
                self._report.compare(f"vm-template{name}", taken[name], COLD, taken["cold"])
                own = [parts["own"] for parts in one.parts]
                self._report.compare(f"vm-own{name}", own, "the whole start", taken[name])

    def _race_hangs(self, n: int) -> None:
        """Programs that are stopped beside such that are killed, of machines with a share."""
        share = self._warm[""]
        harms = {
            f"{name} {number.name}": partial(share.fails, name, number)
            for name in PROGRAMS
            for number in (signal.SIGSTOP, signal.SIGKILL)
        }
        taken = interleave(harms, n, warm_up=0)
        killed = [took for name in PROGRAMS for took in taken[f"{name} SIGKILL"]]
        stopped = [took for name in PROGRAMS for took in taken[f"{name} SIGSTOP"]]
        self._report.compare("vm-hang", stopped, KILLED, killed)

    def _compare(self, name: str, n: int, ours: Callable[[], float], peer: str, theirs: Callable[[], float]) -> None:
        taken = interleave({"ours": ours, "theirs": theirs}, n, warm_up=0 if "parallel" in name else 1)
        self._report.compare(name, taken["ours"], peer, taken["theirs"])
