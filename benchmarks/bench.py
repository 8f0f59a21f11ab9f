#!/usr/bin/env python3
"""drupe beside its peers, in one run: start, exec, stop, many starts at once, memory per pod. Method: README.md here.

    benchmarks/bench.py [--quick] [--keep DIR] [--only RACE …]

Prints one JSON object a line. Needs root; everything happens in private mount and network namespaces.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from common import BenchError, Contender, Report, interleave, isolate, weigh_one
from ours import Drupe, DrupeCommand
from peers import BareRuntime, Containerd, Podman

from drupe.errors import DrupeError

if TYPE_CHECKING:
    from wasm import WasmDrupe

HERE = Path(__file__).parent
KIND = "runc"


@dataclass(frozen=True)
class Plan:
    """How much to measure. n: samples of the main race, `start`; others: of every other one. bursts: (starts at once,
    rounds). pods, peer_pods: the numbers of pods at which memory is read. wasm_burst: Wasm pods at once. slow: samples
    of what takes seconds (gVisor's races). kernel_bursts: as `bursts`, of pods under the application kernel. cri_burst:
    pods of containerd's CRI at once, and rounds; cycles: such pods made and removed before what is left is counted.
    machine_rounds: of several machines at once.
    """

    n: int
    others: int
    bursts: tuple[tuple[int, int], ...]
    pods: tuple[int, ...]
    peer_pods: tuple[int, ...]
    wasm_burst: int = 200
    slow: int = 30
    kernel_bursts: tuple[tuple[int, int], ...] = ((8, 10), (50, 3))
    cri_burst: tuple[int, int] = (50, 5)
    cycles: int = 500
    machine_rounds: int = 3


QUICK = Plan(
    n=30,
    others=5,
    bursts=((10, 1),),
    pods=(1, 5, 10),
    peer_pods=(1, 2),
    wasm_burst=50,
    slow=2,
    kernel_bursts=((8, 2),),
    cri_burst=(10, 1),
    cycles=10,
    machine_rounds=1,
)
FULL = Plan(n=50, others=50, bursts=((10, 30), (50, 5)), pods=(1, 10, 50, 100), peer_pods=(1, 5, 10))


@dataclass
class Field:
    """The contenders that are here, and why the others are not."""

    ours: Drupe
    command: DrupeCommand
    oci: BareRuntime
    peers: dict[str, Contender]
    missing: dict[str, str]


@dataclass(frozen=True)
class Race:
    """One comparison. verb: what the peer's command is called in the line. ours, theirs: take one sample, in ms."""

    name: str
    verb: str
    peers: tuple[str, ...]
    n: int
    ours: Callable[[], float]
    theirs: Callable[[Contender], float]


def races(field: Field, plan: Plan) -> list[Race]:
    """Every comparison of times."""
    everyone = ("crun", "runc", "ctr", "podman")
    ours = field.ours
    return [
        Race("start", "run", everyone, plan.n, ours.start, lambda peer: peer.start()),
        Race(
            "start-bridge",
            "run",
            ("podman",),
            plan.others,
            partial(ours.start, bridge=True),
            lambda peer: peer.start(bridge=True),
        ),
        Race("command", "run", ("podman",), plan.others, field.command.start, lambda peer: peer.start()),
        Race("oci", "run", ("crun", "runc"), plan.others, field.oci.start, lambda peer: peer.start()),
        Race("oci-exec", "exec", ("crun", "runc"), plan.others, field.oci.exec, lambda peer: peer.exec()),
        Race("exec", "exec", everyone, plan.others, ours.exec, lambda peer: peer.exec()),
        Race("stop", "stop", everyone, plan.others, ours.stop, lambda peer: peer.stop()),
        *(
            Race(f"parallel-{count}", "run", everyone, rounds, partial(ours.burst, count), partial(burst, count))
            for count, rounds in plan.bursts
        ),
    ]


def race_gvisor(field: Field, plan: Plan, only: list[str], directory: Path, stack: ExitStack) -> None:
    """The rows of the gVisor kind, those of `only` if it names any; a line that says so where runsc is missing."""
    wanted = [name for name in only if name.startswith("gvisor")]
    if only and not wanted:
        return
    report = Report(directory, "gvisor")
    if shutil.which("runsc") is None:
        report.skip("gvisor-start", "runsc run", "runsc is not installed")
        return
    from gvisor import BareRunsc, GvisorDrupe

    ours = GvisorDrupe(field.ours)
    stack.callback(ours.drop)
    work = stack.enter_context(tempfile.TemporaryDirectory(prefix="drupe-bench-", dir="/var/tmp"))
    peer = BareRunsc(work=Path(work), lower=field.ours.layers(), config=ours.config())
    stack.callback(peer.close)
    for name, verb in (("start", "run"), ("exec", "exec"), ("delete", "delete")):
        if not wanted or f"gvisor-{name}" in wanted:
            taken = interleave({"drupe": getattr(ours, name), "runsc": getattr(peer, name)}, plan.slow, warm_up=1)
            report.compare(f"gvisor-{name}", taken["drupe"], f"runsc {verb}", taken["runsc"])
    if not wanted or "gvisor-memory" in wanted:
        for contender in (ours, peer):
            weigh_one(contender, plan.peer_pods[:2], report, name="gvisor-memory")


def race_appkernel(field: Field, plan: Plan, only: list[str], directory: Path, stack: ExitStack) -> None:
    """The rows of the application kernel, those of `only` if it names any."""
    wanted = [name for name in only if name.startswith("appkernel")]
    if only and not wanted:
        return
    report = Report(directory, "appkernel")
    if shutil.which("runsc") is None or "crun" not in field.peers:
        report.skip("appkernel-start", "runsc run", "runsc or crun is not installed")
        return
    from appkernel_pods import Races

    work = stack.enter_context(tempfile.TemporaryDirectory(prefix="drupe-bench-", dir="/var/tmp"))
    kernels = Races(field.ours, field.peers["crun"], Path(work), report, wanted)
    stack.callback(kernels.drop)
    kernels.run(plan.slow, pods=plan.peer_pods[:2], bursts=plan.kernel_bursts)


def race_vm(field: Field, plan: Plan, only: list[str], directory: Path, stack: ExitStack) -> None:
    """The vm kind's own rows, on the accelerator that is here: from a template beside a cold boot, and memory."""
    wanted = [name for name in only if name.startswith("vm")]
    if only and not wanted:
        return
    report = Report(directory, "vm")
    if lacking := [program for program in ("qemu-system-x86_64", "mkfs.erofs") if shutil.which(program) is None]:
        report.skip("vm-template", "a cold boot", f"{', '.join(lacking)} is not installed")
        return
    from vm import Races

    machines = Races(field.ours, report, wanted)
    stack.callback(machines.drop)
    machines.run(plan.slow, rounds=plan.machine_rounds, pods=plan.peer_pods[:2])


def race_containerd(field: Field, plan: Plan, only: list[str], directory: Path, stack: ExitStack) -> None:
    """containerd 2.1 with drupe beside its own runc shim: rows whose names begin with `cri`, `ctr` or `client`."""
    wanted = [name for name in only if name.startswith(("cri", "ctr", "client"))]
    if only and not wanted:
        return
    report = Report(directory, KIND)
    if reason := "grpcio is not installed" if importlib.util.find_spec("grpc") is None else "":
        report.skip("cri-ready", "runc's shim", reason)
        return
    import containerd

    if reason := containerd.missing():
        report.skip("cri-ready", "runc's shim", reason)
        return
    work = stack.enter_context(tempfile.TemporaryDirectory(prefix="drupe-bench-", dir="/var/tmp"))
    host = stack.enter_context(containerd.open_host(Path(work), field.ours.images))
    containerd.Races(host, report, wanted).run(plan.others, plan.cri_burst, plan.peer_pods, plan.cycles)


def wasm_races(ours: WasmDrupe, plan: Plan) -> list[Race]:
    """The Wasm kind beside the native twin of its module in bare crun."""
    count = plan.wasm_burst
    return [
        Race("wasm-start", "run", ("crun",), plan.n, ours.start, lambda peer: peer.start()),
        Race("wasm-call", "exec", ("crun",), plan.n, ours.call, lambda peer: peer.exec()),
        Race(f"wasm-parallel-{count}", "run", ("crun",), 2, partial(ours.burst, count), partial(burst, count)),
    ]


def race_wasm(field: Field, plan: Plan, only: list[str], directory: Path) -> None:
    """The rows of the Wasm kind, those of `only` if it names any; a line that says so where its engine is missing."""
    wanted = [name for name in only if name.startswith("wasm")] if only else ["wasm"]
    if not wanted:
        return
    report = Report(directory, "wasm")
    if importlib.util.find_spec("wasmtime") is None:
        report.skip("wasm-start", "crun run", "wasmtime is not installed")
        return
    from wasm import WasmDrupe

    ours = WasmDrupe(field.ours)
    for race in wasm_races(ours, plan):
        if any(race.name.startswith(name) for name in wanted):
            hold(race, field, report)
    if "wasm" in wanted or "wasm-memory" in wanted:
        weigh_one(ours, plan.pods, report, name="wasm-memory")
    ours.drop()


def burst(count: int, peer: Contender) -> float:
    """`peer.burst(count)`, in the order that partial wants."""
    return peer.burst(count)


def hold(race: Race, field: Field, report: Report) -> None:
    """n interleaved samples of drupe and each peer, then one line for each peer."""
    here = [name for name in race.peers if name in field.peers]
    samplers = {"drupe": race.ours} | {name: partial(race.theirs, field.peers[name]) for name in here}
    taken = interleave(samplers, race.n, warm_up=1 if race.name.startswith("parallel") else 2)
    for name in here:
        report.compare(race.name, taken["drupe"], f"{name} {race.verb}", taken[name])
    for name in race.peers:
        if name in field.missing:
            report.skip(race.name, f"{name} {race.verb}", field.missing[name])


def weigh(field: Field, plan: Plan, report: Report) -> None:
    """Memory and helper processes as pods are added, of drupe and of the peers that keep something per container."""
    weigh_one(field.ours, plan.pods, report)
    for name in ("ctr", "podman"):
        if name in field.peers:
            weigh_one(field.peers[name], plan.peer_pods, report)
        else:
            report.skip("memory", name, field.missing[name])


@contextmanager
def line_up(work: Path, log: Path, stack: ExitStack) -> Iterator[Field]:
    """Start drupe's daemon and every peer that is installed, on one image."""
    ours = Drupe(work=work, log=log)
    stack.callback(ours.close)
    archive = ours.export(work / "busybox.tar")
    makers: dict[str, Callable[[], Contender]] = {
        "crun": partial(BareRuntime, "crun", work=work, lower=ours.layers(), config=ours.oci_config()),
        "runc": partial(BareRuntime, "runc", work=work, lower=ours.layers(), config=ours.oci_config()),
        "ctr": partial(Containerd, work=work, archive=archive),
        "podman": partial(Podman, work=work, archive=archive),
    }
    path = str(Path(sys.executable).with_name("drupe-oci"))
    oci = BareRuntime("drupe-oci", work=work, lower=ours.layers(), config=ours.oci_config(), path=path)
    stack.callback(oci.close)
    field = Field(ours, DrupeCommand(), oci, {}, {})
    for name, make in makers.items():
        needed = ("ctr", "containerd") if name == "ctr" else (name,)
        if lacking := [program for program in needed if shutil.which(program) is None]:
            field.missing[name] = f"{', '.join(lacking)} is not installed"
            continue
        field.peers[name] = make()
        stack.callback(field.peers[name].close)
    yield field


def remove_cgroups() -> None:
    """The parents that the peers leave behind: ours by name, and containerd's and Podman's when empty."""
    for hierarchy in Path("/sys/fs/cgroup").iterdir():
        for name in (f"drupe-bench-{os.getpid()}", "default", "libpod_parent"):
            top = hierarchy / name
            below = sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True)
            for path in (*below, top):
                with suppress(OSError):
                    path.rmdir()


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a minute or two: fewer pods, the same races")
    parser.add_argument("--samples", type=int, metavar="N", help="samples of each race (50; quick: 30, then 5)")
    parser.add_argument("--keep", type=Path, help="where samples.jsonl and lines.jsonl go")
    parser.add_argument("--only", nargs="+", default=[], metavar="RACE", help="start, exec, memory, … only")
    return parser.parse_args()


def main() -> int:
    """Run the races; the exit code."""
    options = parse()
    if os.geteuid() != 0:
        print("benchmarks need root: namespaces and cgroups", file=sys.stderr)
        return 1
    isolate()
    now = datetime.datetime.now(tz=datetime.UTC)
    report = Report(options.keep or HERE / f"results/{now:%Y-%m-%d}/{now:%H%M%S}", KIND)
    plan = QUICK if options.quick else FULL
    plan = replace(
        plan, n=options.samples or plan.n, others=options.samples or plan.others, slow=options.samples or plan.slow
    )
    with (
        tempfile.TemporaryDirectory(prefix="drupe-bench-", dir="/var/tmp", ignore_cleanup_errors=True) as work,
        ExitStack() as stack,
    ):
        try:
            with line_up(Path(work), report.directory / "daemon.log", stack) as field:
                for race in races(field, plan):
                    if not options.only or race.name in options.only:
                        hold(race, field, report)
                if not options.only or "memory" in options.only:
                    weigh(field, plan, report)
                race_gvisor(field, plan, options.only, report.directory, stack)
                race_wasm(field, plan, options.only, report.directory)
                race_appkernel(field, plan, options.only, report.directory, stack)
                race_vm(field, plan, options.only, report.directory, stack)
                race_containerd(field, plan, options.only, report.directory, stack)
        except (BenchError, DrupeError) as error:
            print(f"benchmark failed: {error}", file=sys.stderr)
            return 1
        finally:
            try:
                stack.close()
            finally:
                remove_cgroups()
    return 0


if __name__ == "__main__":
    sys.exit(main())
