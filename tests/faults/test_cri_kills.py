"""Random kills under containerd: pods of several kinds are made, used and removed by the CRI of containerd 2.1, while
one of all that serves them is killed at random moments: daemon, relay, keeper, shim, containerd, a pod's kernel, a
workload.

`DRUPE_SOAK_S` is how long, `DRUPE_SOAK_SEED` repeats a course of events as far as chance lets. What must hold after
each: the API answers in bounded time, what was not killed itself runs (but for the relay's death, which is to
containerd the death of its shim), and at the end nothing is left.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest

from drupe.errors import DrupeError
from framework import machines
from framework.cri_host import IMAGE, MODULES, CriHost, opened
from framework.daemon import Daemon
from framework.leaks import wait_until
from framework.probes import only_full
from framework.residue import residue

SECONDS = float(os.environ.get("DRUPE_SOAK_S", "120"))
SEED = int(os.environ.get("DRUPE_SOAK_SEED", "0")) or random.randrange(1, 1 << 30)
pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(600 + 3 * SECONDS),
    only_full("kills for minutes"),
]

STANDING = ("drupe-runc", "drupe-runc", "drupe-appkernel", "drupe-appkernel", "drupe-wasm", "drupe-vm")
PASSING = ("drupe-runc", "drupe-appkernel", "drupe-wasm", "drupe-by-shim", "drupe-by-shim", "drupe-vm")
VICTIMS = ("daemon", "daemon", "keeper", "containerd", "shim", "shim", "workload", "workload", "relay")
WITHIN_S = 60.0  # a busy machine
_NUMBERS = re.compile(r"[0-9a-f]{8,}|\d+")
FOREVER = {MODULES: ("patient",), IMAGE: ("sh", "-c", "while :; do sleep 1; done")}


def image_of(handler: str) -> str:
    return MODULES if handler == "drupe-wasm" else IMAGE


@pytest.fixture
def host(tmp_path_factory: pytest.TempPathFactory, busybox: Path) -> Iterator[CriHost]:
    pytest.importorskip("wasmtime")
    machines.needs_machines()
    guest = lambda place: machines.make_root(place.directory / "drupe")  # noqa: E731
    for place in opened(tmp_path_factory.mktemp("k"), "2.1", busybox, before=guest):
        place.load_modules()
        yield place


class Kills:
    """The pods that stand, those that pass, and the killer. `wrong` collects what must not happen."""

    def __init__(self, host: CriHost) -> None:
        self.host = host
        self.rng = random.Random(SEED)
        self.ends_at = time.monotonic() + SECONDS
        self.wrong: list[str] = []
        self.counts: dict[str, int] = {}
        self.standing: dict[str, tuple[str, str]] = {}  # by container: its pod, its handler
        self.made = 0
        self.last = ""  # whom the killer has met
        self.causes: dict[str, int] = {}

    def over(self) -> bool:
        return time.monotonic() > self.ends_at or bool(self.wrong)

    # -- pods ---------------------------------------------------------------------------------------------------

    def stand(self, handler: str) -> None:
        """One more pod that is to go on."""
        self.made += 1
        pod = self.host.pod(f"stands-{self.made}", handler)
        image = image_of(handler)
        container = self.host.run(pod, "main", *FOREVER[image], image=image)
        self.standing[container] = (pod[0], handler)

    def pass_by(self) -> None:
        """Pods come and go, whoever is killed meanwhile: a call may fail, and none may hang."""
        rng = random.Random(SEED + 1)
        number = 0
        while not self.over():
            number += 1
            handler = rng.choice(PASSING)
            try:
                self._pass(f"passes-{number}", handler)
                self._count("passed")
            except (grpc.RpcError, AssertionError) as error:
                self._count("failed")
                self._note(handler, error)
                time.sleep(1)  # as a kubelet does: what is away is not asked again at once
                if isinstance(error, grpc.RpcError) and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    self.wrong.append(f"{handler}: {error}")

    def _pass(self, name: str, handler: str) -> None:
        image = image_of(handler)
        pod = self.host.pod(name, handler)
        try:
            container = self.host.run(pod, "main", *FOREVER[image], image=image)
            self.host.cri.ExecSync(container_id=container, cmd=["echo", name], timeout=20)
        finally:
            self.host.cri.remove_pod(pod[0])

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def _note(self, handler: str, error: Exception) -> None:
        """Why a pod that passes failed; ids and numbers left out."""
        code = error.code().name if isinstance(error, grpc.RpcError) else ""
        text = str(error.details() if isinstance(error, grpc.RpcError) else error)
        key = f"{handler}, {self.last}: {code} {_NUMBERS.sub('…', text)[:200]}"
        self.causes[key] = self.causes.get(key, 0) + 1

    # -- kills --------------------------------------------------------------------------------------------------

    def kill_one(self) -> None:
        victim = self.rng.choice(VICTIMS)
        self._count(victim)
        self.last = victim
        print(f"{time.strftime('%H:%M:%S')} {victim}", flush=True)
        began = time.monotonic()
        lost = getattr(self, f"_kill_{victim}")()
        self._look(victim, lost)
        print(f"  {time.monotonic() - began:.1f} s, {len(self.standing)} stand", flush=True)

    def _kill_daemon(self) -> None:
        """Whoever has started it: a shim may be quicker than who looks after it."""
        for pid in self._daemons():
            self._end(pid)
        self.host.start_daemon()

    def _daemons(self) -> list[int]:
        found = []
        for pid in self._named("python"):
            with suppress(OSError):
                found += [pid] * (b"\0serve" in Path(f"/proc/{pid}/cmdline").read_bytes())
        return found

    def _kill_containerd(self) -> None:
        self.host.kill()
        time.sleep(self.rng.uniform(0, 1))
        self.host.start()

    def _kill_keeper(self) -> None:
        self._end(self._keeper())

    def _keeper(self) -> int:
        return int(Path(self.host.path("/run/drupe/keeper.pid")).read_text())

    def _kill_shim(self) -> None:
        """One at work on a pod that passes, if there is any just now."""
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            for pid in self._named("containerd-shim"):
                self._end(pid)
                self._count("shims killed")
                return
            time.sleep(0.0005)

    def _kill_relay(self) -> set[str]:
        for pid in self._named("drupe-relay"):
            self._end(pid)
        return set(self.standing)

    def _kill_workload(self) -> set[str]:
        """A container's process, or the kernel of its pod."""
        container = self.rng.choice(list(self.standing))
        status = self.host.cri.ContainerStatus(container_id=container, verbose=True)
        self._end(int(json.loads(status.info["info"])["pid"]))
        wait_until(lambda: self.host.cri.state(container) == "EXITED", what="its end is seen", timeout_s=WITHIN_S)
        return {container}

    def _end(self, pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def _named(self, name: str) -> list[int]:
        """Processes of our host whose program is called so."""
        here = Path(f"/proc/{self.host._holder.pid}/ns/mnt").readlink()
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and (entry / "comm").read_text().startswith(name[:15]):
                    found += [int(entry.name)] * ((entry / "ns/mnt").readlink() == here)
        return found

    # -- what must hold -----------------------------------------------------------------------------------------

    def _look(self, victim: str, lost: set[str] | None) -> None:
        """All that was not killed runs and can be used; what is lost is replaced."""
        wait_until(self._answers, what=f"the API answers after the death of {victim}", timeout_s=WITHIN_S)
        for container, (pod, handler) in list(self.standing.items()):
            try:
                wait_until(lambda c=container: self._is_well(c), what=handler, timeout_s=WITHIN_S)  # type: ignore[misc]
            except AssertionError:
                state = self.host.cri.state(container)
                if container not in (lost or ()) or state == "RUNNING":
                    self.wrong.append(f"after {victim}: {handler} {container[:12]} in {pod[:12]} is {state}")
                del self.standing[container]
                self._again(f"{handler} {pod[:12]} cannot be removed", lambda p=pod: self.host.cri.remove_pod(p))  # type: ignore[misc]
                self._again(f"no pod of {handler} can be made", lambda h=handler: self.stand(h))  # type: ignore[misc]

    def _again(self, what: str, call: Callable[[], object]) -> None:
        """Until it succeeds: containerd answers UNAVAILABLE for some seconds after our daemon was away."""
        deadline = time.monotonic() + WITHIN_S
        while True:
            try:
                call()
                return
            except grpc.RpcError as error:
                if time.monotonic() > deadline:
                    self.wrong.append(f"{what}: {error}")
                    return
                time.sleep(0.5)

    def _answers(self) -> bool:
        with suppress(grpc.RpcError, DrupeError):
            self.host.cri.ListContainers(timeout_s=10)
            self.host.pods_of_drupe()
            return self.host.ready()
        return False

    def _is_well(self, container: str) -> bool:
        """RUNNING, and what runs in it can be joined. One that has ended is not waited for."""
        try:
            state = self.host.cri.state(container)
        except grpc.RpcError:
            return False
        assert state != "EXITED", state
        try:
            done = self.host.cri.ExecSync(container_id=container, cmd=["echo", "well"], timeout=20)
        except grpc.RpcError as error:
            print(f"    {container[:12]}: {error.details()}", flush=True)
            return False
        return done.stdout == b"well\n"

    def remove_all(self) -> bool:
        with suppress(grpc.RpcError):
            self.host.cri.remove_all()
        return not self.host.cri.ListPodSandbox().items


def left(host: CriHost) -> dict[str, list[str]]:
    """What is there though no pod is."""
    keeper = int(Path(host.path("/run/drupe/keeper.pid")).read_text())
    run = Path(host.path("/run/drupe"))
    seen = SimpleNamespace(
        keeper_pid=keeper, run=run, root=host.directory / "drupe", cgroup="/drupe-of-nobody", on_host=host.inside
    )
    found = residue(cast(Daemon, cast(Any, seen)))
    netns = sorted(p.name for p in Path(host.path("/run/netns")).iterdir())
    return found | ({"netns of CNI": netns} if netns else {})


def test_nothing_is_lost_and_nothing_left(host: CriHost) -> None:
    kills = Kills(host)
    print(f"seed {SEED}")
    for handler in STANDING:
        kills.stand(handler)
    passing = threading.Thread(target=kills.pass_by)
    passing.start()
    try:
        while not kills.over():
            time.sleep(kills.rng.uniform(0.1, 3))
            kills.kill_one()
    finally:
        kills.ends_at = 0
        passing.join()
    print(kills.counts, *sorted(f"{count} {cause}" for cause, count in kills.causes.items()), sep="\n")
    assert not kills.wrong, "\n".join(kills.wrong)
    wait_until(kills.remove_all, what="all pods can be removed", timeout_s=WITHIN_S)
    assert not host.pods_of_drupe()
    wait_until(lambda: not left(host), what="nothing is left", timeout_s=WITHIN_S)
    host.drupe("system", "shutdown")  # whoever has started it
