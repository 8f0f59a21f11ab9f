"""Random kills of pods of every kind: kernels, sentries, monitors, virtiofsd, workloads, and what serves them all.

One pod of each kind stands; others are made, used, saved, forked and removed; and at random moments a process of any of
them, or the daemon, the keeper, a helper, a client is killed, or stopped first and then killed. `DRUPE_SOAK_S` is how
long, `DRUPE_SOAK_SEED` repeats a course of events as far as chance lets. What must hold: what was not harmed runs and
can be used, what was harmed says so, everything can be removed, and nothing is left.
"""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from drupe.sandboxers.kinds import KINDS
from drupe.services.doctor import why_not
from framework import guests, machines
from framework.daemon import Daemon
from framework.leaks import describe_process, wait_until
from framework.residue import residue
from framework.soak import SEED, Soak, children, seconds, victims

FULL = bool(os.environ.get("DRUPE_TEST_FULL"))
SECONDS = seconds("120" if FULL else "5")
pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(600 + 3 * SECONDS)]
WITHIN_S = 60.0  # a busy machine
TICKS = "echo begun; while :; do sleep 0.2; done"
ENDED = ("failed", "stopped")


@dataclass(frozen=True)
class Sort:
    """Pods of one sort: the flags and the image that make one, words that stay, words that print what follows when they
    join it (`exec`), and whether it can be saved."""

    flags: tuple[str, ...]
    image: str = "busybox"
    stays: tuple[str, ...] = ("sh", "-c", TICKS)
    echo: tuple[str, ...] = ("echo",)
    saved: bool = False


SORTS = {
    "runc": Sort(("--sandbox", "runc")),
    "appkernel": Sort(("--sandbox", "appkernel"), saved=True),
    "gvisor": Sort(("--sandbox", "gvisor"), saved=True),
    "wasm": Sort(("--sandbox", "wasm"), "suite", ("patient",), ("suite", "echo")),
    "vm": Sort(("--sandbox", "vm")),
    "vm-block": Sort(("--sandbox", "vm", "--annotation", "drupe.vm.rootfs=block"), saved=True),
}


class Kinds:
    """The pods that stand, and whoever is to be killed."""

    def __init__(self, soak: Soak, sorts: list[str]) -> None:
        self.soak = soak
        self.sorts = sorts
        self.rng = random.Random(SEED)
        self.standing: dict[str, str] = {}
        self.made = 0

    def stand(self, sort: str) -> None:
        """One more pod that is to go on."""
        self.made += 1
        name = f"stands-{self.made}-{sort}"
        wait_until(lambda: self._made(name, sort), what=f"a pod of {sort}", timeout_s=WITHIN_S)
        self.standing[name] = sort

    def _made(self, name: str, sort: str) -> bool:
        one = SORTS[sort]
        made = self.soak.drupe("run", "-d", "--name", name, *one.flags, "--network", "none", one.image, *one.stays)
        if made.returncode:
            print(made.stderr, end="", flush=True)
            self.soak.drupe("rm", "-f", name)
        return not made.returncode

    # -- kills --------------------------------------------------------------------------------------------------

    def kill_one(self) -> None:
        what = self.rng.choice(["part"] * 4 + ["daemon", "daemon", "keeper", "helper", "warm", "client", "ahead"])
        self.look(self._kill_part() if what == "part" else self._kill_server(what))

    def _kill_part(self) -> str:
        """A process of a pod: of one that stands, mostly."""
        name = self.rng.choice([*self.standing, ""])
        processes = processes_of(self.soak.daemon, self.pod_of(name).get("id", "*") if name else "*")
        if not processes:
            return ""
        pid = self.rng.choice(processes)
        for one in self.standing:  # `*` may have met one
            if not name and pid in processes_of(self.soak.daemon, self.pod_of(one).get("id", "none")):
                name = one
        self._end(f"part of {name or 'one that passes'}", pid)
        return name

    def _kill_server(self, what: str) -> str:
        found = victims(self.soak) | {"ahead": ahead(self.soak.daemon)}
        for pid in filter(None, found[what][:1]):
            self._end(what, pid)
        if what in ("daemon", "keeper"):
            self.soak.wait_well()
        return ""

    def _end(self, what: str, pid: int) -> None:
        """At once, or after it has stood still for a moment."""
        with suppress(ProcessLookupError):
            self.soak.killed.append(f"{time.strftime('%X')} {what}: {describe_process(pid)[:120]}")
            print(self.soak.killed[-1], flush=True)
            if stopped_s := self.rng.choice([0, 0, self.rng.uniform(0, 2)]):
                os.kill(pid, signal.SIGSTOP)
                time.sleep(stopped_s)
            os.kill(pid, signal.SIGKILL)

    # -- what must hold -----------------------------------------------------------------------------------------

    def look(self, harmed: str, *, at_all: bool = False) -> None:
        """What was not harmed runs and can be used; what was says what happened to it, or goes on, too. at_all: else
        at what was harmed and one other."""
        wait_until(self._answers, what="lists are answered", timeout_s=WITHIN_S)
        some = {harmed, self.rng.choice(list(self.standing))}
        for name, sort in [one for one in self.standing.items() if at_all or one[0] in some]:
            try:
                wait_until(functools.partial(self.is_well, name), what=f"{name} is well", timeout_s=WITHIN_S)
            except AssertionError as error:
                self._lost(name, sort, harmed, str(error))

    def _answers(self) -> bool:
        return all(self.soak.drupe(*words).returncode == 0 for words in (("ps", "-a"), ("pod", "ls")))

    def is_well(self, name: str) -> bool:
        """It runs, and what runs in it can be joined. One that has ended is not waited for."""
        state = self.pod_of(name).get("state")
        assert state not in ENDED, state
        done = self.soak.drupe("exec", name, *SORTS[self.standing[name]].echo, "well")
        return (done.returncode, done.stdout) == (0, "well\n")

    def _lost(self, name: str, sort: str, harmed: str, why: str) -> None:
        pod, container = self.pod_of(name), self.container_of(name)
        end = container.get("exit") or {}
        cause = pod.get("cause") or end.get("message") or end.get("reason")
        if name != harmed or pod.get("state") not in ENDED or not cause:
            last = self.soak.killed[-1:]
            self.soak.wrong.append(f"{name} after {last}: {why}: {json.dumps(pod)} {json.dumps(container)}")
        print(f"  {name}: {pod.get('state')}: {cause} {end.get('code')}", flush=True)
        del self.standing[name]
        removed = self.soak.drupe("rm", "-f", name)
        if removed.returncode:
            self.soak.wrong.append(f"{name} cannot be removed: {removed.stderr}")
        self.stand(sort)

    def pod_of(self, name: str) -> dict[str, Any]:
        return self._inspected("--type", "pod", name)

    def container_of(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self._inspected(name).get("status", {})
        return found

    def _inspected(self, *words: str) -> dict[str, Any]:
        told = self.soak.drupe("inspect", *words)
        found: dict[str, Any] = json.loads(told.stdout)[0] if told.returncode == 0 else {}
        return found


def processes_of(daemon: Daemon, pod: str) -> list[int]:
    """Those of a pod, or of all (`*`): what is in its cgroups."""
    found: set[int] = set()
    for file in Path("/sys/fs/cgroup").glob(f"*{daemon.cgroup}/{pod}/**/cgroup.procs"):
        with suppress(OSError):
            found |= {int(pid) for pid in file.read_text().split()}
    return sorted(found)


def ahead(daemon: Daemon) -> list[int]:
    """Zygotes of modules and kernels that wait for a pod."""
    names = ("drupe-zygote", "drupe-spare")
    pids = children(daemon.keeper_pid)
    return [pid for pid in pids if describe_comm(pid) in names]


def describe_comm(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


# -- what clients do ------------------------------------------------------------------------------------------------


def passes(kinds: Kinds) -> None:
    """Pods come and go, whoever is killed meanwhile: a command may fail, saying so, and none may hang."""
    rng = random.Random(SEED + 1)
    number = 0
    while not kinds.soak.over():
        number += 1
        sort = rng.choice(kinds.sorts)
        rng.choice([short_run, life])(kinds.soak, f"passes-{number}-{sort}", SORTS[sort], rng)


def short_run(soak: Soak, name: str, sort: Sort, rng: random.Random) -> None:
    flags = ("--name", name, *sort.flags, "--network", rng.choice(["none", "bridge"]))
    soak.expect(0, f"{name}\n", "run", "--rm", *flags, sort.image, "echo", name)


def life(soak: Soak, name: str, sort: Sort, rng: random.Random) -> None:
    verbs = [("exec", name, *sort.echo, "x"), ("cp", f"{name}:/bin", "-"), ("stats", "--no-stream", name),
             ("top", name), ("pause", name), ("resume", name), ("logs", name), ("stop", "-t", "1", name),
             ("start", name), ("kill", name), ("restart", "-t", "0", name)]  # fmt: skip
    network = rng.choice(["none", "bridge"])
    soak.drupe("run", "-d", "--name", name, *sort.flags, "--network", network, sort.image, *sort.stays)
    follower = threading.Thread(target=soak.drupe, args=("logs", "-f", name))
    follower.start()
    if sort.saved:
        verbs += [("fork", "--name", f"{name}-twin", name), ("snapshot", "create", name, f"{name}-saved"),
                  ("snapshot", "restore", "--name", f"{name}-back", f"{name}-saved")]  # fmt: skip
    for verb in rng.sample(verbs, 4):
        soak.drupe(*verb)
    soak.drupe("snapshot", "rm", f"{name}-saved")
    removed = soak.drupe("rm", "-f", name, f"{name}-twin", f"{name}-back")
    follower.join()
    assert removed.returncode in (0, 1, 125, -signal.SIGKILL), removed


# -- the test -------------------------------------------------------------------------------------------------------


def sorts_here(daemon: Daemon, directory: Path) -> list[str]:
    """Sorts of pods that can be here; machines only in a full run, as they take a minute of it."""
    found = []
    for name, sort in SORTS.items():
        kind = sort.flags[1]
        if why := why_not(KINDS[kind], cache=directory / "doctor.json", named=True):
            print(f"without {name}: {why}")
        elif kind != "vm" or FULL:
            found.append(name)
    if "vm" in found:
        machines.prepared(daemon)
    if "wasm" in found:
        shutil.copyfile(guests.suite(), directory / "suite.wasm")
        daemon.command("image", "import", "--tag", "suite", str(directory / "suite.wasm"), check=True)
    return found


def files_of(daemon: Daemon) -> set[str]:
    """What is in directories of state and of run, but for what is cached for images and machines."""
    kept = ("images", "guests", "templates", "wasm", "appkernel")
    tops = [path for top in (daemon.root, daemon.run) for path in top.glob("*/") if path.name not in kept]
    return {str(one) for top in tops for one in top.glob("*")}


def test_what_is_not_harmed_goes_on_and_nothing_is_left(fresh_daemon: Daemon, tmp_path: Path) -> None:
    soak = Soak(fresh_daemon, SECONDS)
    kinds = Kinds(soak, sorts_here(fresh_daemon, tmp_path))
    print(f"seed {SEED}", flush=True)
    for sort in kinds.sorts:
        kinds.stand(sort)
    before = files_of(fresh_daemon)
    soak.ends_at = time.monotonic() + SECONDS
    passing = threading.Thread(target=passes, args=(kinds,))
    passing.start()
    try:
        while not soak.over():
            time.sleep(kinds.rng.uniform(0.05, 1))
            kinds.kill_one()
        kinds.look("", at_all=True)
    finally:
        soak.ends_at = 0
        passing.join()
        print(soak.done)
    try:
        assert not soak.wrong, "\n".join(soak.wrong)
    finally:
        kinds.soak.wait_well()
        removed = soak.drupe("rm", "-f", "--all")
        for snapshot in soak.drupe("snapshot", "ls", "--quiet").stdout.split():  # who was to remove it was killed
            soak.drupe("snapshot", "rm", snapshot)
        left = residue(fresh_daemon)
        new = sorted(files_of(fresh_daemon) - before)
        soak.drupe("system", "shutdown")
    assert not removed.stderr and not left and not new, (removed.stderr, left, new)
