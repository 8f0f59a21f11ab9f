"""drupe under measurement: a daemon of its own, called in-process over its control socket, and as a command."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from common import (
    GREETING,
    STEP_TIMEOUT_S,
    STOPPABLE,
    TRAP_S,
    BenchError,
    first_byte,
    first_bytes,
    pss_bytes,
    run,
    since,
    wait_for_end,
    wait_until,
)

from drupe.errors import Unavailable
from drupe.images.store import ImageStore
from drupe.rpc.client import Client, Stream
from drupe.spec import Attachment, ContainerSpec, ExecSpec, NetworkSpec, PodSpec, PodStatus
from drupe.spec.control import Delete, Empty, ExecStart, ImageExport, PodRun, Stop, SystemInfo, Wait

IMAGE = "busybox"
MAKE_IMAGE = Path(__file__).parents[1] / "scripts/make-busybox-image.py"
RUN = Path("/run/bench-drupe")  # a tmpfs, as /run/drupe is, and as the peers have theirs
NETWORKS = {
    False: NetworkSpec(mode="none", attachments=()),
    True: NetworkSpec(mode="bridge", attachments=(Attachment(),)),
}


class Drupe:
    """The library call: `pod.run` of the control API with a pipe as standard output, against a warm daemon."""

    name = "drupe"

    def __init__(self, *, work: Path, log: Path) -> None:
        self._home = work / "drupe"
        self._log = log
        run(sys.executable, str(MAKE_IMAGE), "--root", f"{self._home}/root/images")
        os.environ.update(DRUPE_ROOT=f"{self._home}/root", DRUPE_RUN=str(RUN))
        self._daemon = self._serve()
        self.client = Client.connect(str(RUN / "drupe.sock"))
        self._kept: list[PodStatus] = []
        self._kind = ""
        self._before = frozenset(self._own_processes())

    def _serve(self) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "drupe", "serve"]
        with self._log.open("wb") as log:
            daemon = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(lambda: self._answers() or daemon.poll() is not None, "the daemon answers")
        if daemon.poll() is not None:
            self._end_keeper()
            raise BenchError(f"the daemon ended: {self._log.read_text()[-4000:]}")
        return daemon

    def _answers(self) -> bool:
        with suppress(Unavailable):  # the socket is there a moment before it listens
            Client.connect(str(RUN / "drupe.sock")).close()
            return True
        return False

    def of_kind(self, kind: str) -> Drupe:
        """The same daemon, with pods of another kind."""
        twin = copy.copy(self)
        twin._kind, twin._kept = kind, []
        return twin

    @property
    def images(self) -> Path:
        """The daemon's image store."""
        return self._home / "root/images"

    @property
    def run_dir(self) -> Path:
        """The daemon's runtime directory."""
        return RUN

    def start(self, *, bridge: bool = False) -> float:
        """A new pod with one container."""
        with ExitStack() as stack:
            began = time.perf_counter()
            call, output = self._run(stack, GREETING, bridge=bridge)
            seen = os.read(output, 1)
            took = since(began)
            self._finish(call, seen)
        return took

    def burst(self, count: int) -> float:
        """`count` pods at once, each over a connection of its own."""
        with ExitStack() as stack:
            began = time.perf_counter()
            calls = [self._run(stack, GREETING) for _ in range(count)]
            seen = first_bytes([output for _, output in calls])
            took = since(began)
            for (call, _), byte in zip(calls, seen, strict=True):
                self._finish(call, byte)
        return took

    def exec(self) -> float:
        """`exec.start` in one kept container."""
        if not self._kept:
            self.keep()
        params = ExecStart(ref=self._kept[0].containers[0].id, spec=ExecSpec(argv=GREETING))
        with ExitStack() as stack:
            output, theirs = pipe(stack)
            began = time.perf_counter()
            call = stack.enter_context(self.client.stream("exec.start", params, fds={"stdout": theirs}))
            os.close(theirs)
            seen = os.read(output, 1)
            took = since(began)
            if not seen or call.wait().code != 0:
                raise BenchError("exec wrote nothing")
        return took

    def stop(self) -> float:
        """`pod.stop`, `pod.delete`."""
        pod = self.idle()
        time.sleep(TRAP_S)
        began = time.perf_counter()
        self.client.call("pod.stop", Stop(ref=pod.id), timeout_s=STEP_TIMEOUT_S)
        self.client.call("pod.delete", Delete(ref=pod.id), timeout_s=STEP_TIMEOUT_S)
        return since(began)

    def keep(self) -> None:
        """One more pod that idles."""
        self._kept.append(self.idle())

    def pss_bytes(self) -> int:
        """Daemon and keeper, and whatever else they started that is no workload."""
        return pss_bytes(self._own_processes())

    def helpers(self) -> int:
        """Processes that were not there before the pods."""
        return len(self.extra_processes())

    def extra_processes(self) -> set[int]:
        """Those of this PID namespace that were not there before the pods."""
        return set(self._own_processes()) - self._before

    def drop(self) -> None:
        """Remove kept pods."""
        for pod in self._kept:
            self.client.call("pod.delete", Delete(ref=pod.id, force=True), timeout_s=STEP_TIMEOUT_S)
        self._kept.clear()

    def close(self) -> None:
        """Remove pods; end the daemon and its keeper."""
        try:
            self.drop()
        finally:
            self.client.close()
            self._daemon.terminate()
            self._daemon.wait(STEP_TIMEOUT_S)
            self._end_keeper()

    def _end_keeper(self) -> None:
        # it outlives the daemon by design, and ends at SIGTERM when it holds no task
        with suppress(OSError):
            pid = int((RUN / "keeper.pid").read_text())
            os.kill(pid, signal.SIGTERM)
            wait_for_end(pid)

    def oci_config(self) -> dict[str, Any]:
        """The config.json of a kept container, made fit for a bare runtime: namespaces of its own, no joined ones."""
        if not self._kept:
            self.keep()
        pod = self._kept[0]
        bundle = RUN / "pods" / pod.id / pod.containers[0].id
        config: dict[str, Any] = json.loads((bundle / "config.json").read_text())
        for namespace in config["linux"]["namespaces"]:
            namespace.pop("path", None)
        return config

    def layers(self) -> str:
        """The lower directories of a kept container's overlay, as the keeper mounted it."""
        if not self._kept:
            self.keep()
        pod = self._kept[0]
        table = Path(f"/proc/{self._info().keeper_pid}/mountinfo").read_text().splitlines()
        line = next(line for line in table if pod.containers[0].id in line and " - overlay " in line)
        options = line.rpartition(" ")[2].split(",")
        lower = next(option.partition("=")[2] for option in options if option.startswith("lowerdir="))
        store = self._home / "root/images"  # the keeper mounts with this as its working directory
        return ":".join(str((store / layer).resolve()) for layer in lower.split(":"))

    def export(self, archive: Path) -> Path:
        """The image as an OCI archive, for the peers."""
        with archive.open("wb") as file:
            ImageStore(self._home / "root/images").export(ImageExport(refs=(IMAGE,)), file)
        return archive

    def _spec(self, argv: Sequence[str], *, bridge: bool = False) -> PodSpec:
        container = ContainerSpec(image=IMAGE, argv=tuple(argv))
        return PodSpec(sandbox=self._kind, network=NETWORKS[bridge], containers=(container,))

    def _run(self, stack: ExitStack, argv: Sequence[str], *, bridge: bool = False) -> tuple[Stream, int]:
        output, theirs = pipe(stack)
        spec = PodSpec(
            sandbox=self._kind, network=NETWORKS[bridge], containers=(ContainerSpec(image=IMAGE, argv=tuple(argv)),)
        )
        call = stack.enter_context(self.client.stream("pod.run", PodRun(spec=spec), fds={"stdout": theirs}))
        os.close(theirs)
        return call, output

    def _finish(self, call: Stream, seen: bytes) -> None:
        pod: PodStatus = call.wait()
        if not seen:
            raise BenchError(f"pod {pod.id} wrote nothing")
        self.client.call("container.wait", Wait(ref=pod.containers[0].id), timeout_s=STEP_TIMEOUT_S)
        self.client.call("pod.delete", Delete(ref=pod.id, force=True), timeout_s=STEP_TIMEOUT_S)

    def idle(self) -> PodStatus:
        """A pod that idles until SIGTERM."""
        spec = PodSpec(
            sandbox=self._kind, network=NETWORKS[False], containers=(ContainerSpec(image=IMAGE, argv=STOPPABLE),)
        )
        pod: PodStatus = self.client.call("pod.run", PodRun(spec=spec), timeout_s=STEP_TIMEOUT_S)
        return pod

    def _info(self) -> SystemInfo:
        info: SystemInfo = self.client.call("system.info", Empty(), timeout_s=STEP_TIMEOUT_S)
        return info

    def roots(self) -> set[int]:
        """Daemon and keeper, from which all else descends."""
        return {self._daemon.pid, self._info().keeper_pid}

    def _own_processes(self) -> list[int]:
        """Daemon, keeper and their descendants in the host's PID namespace: workloads have one of their own."""
        here = Path("/proc/self/ns/pid").readlink()
        return [pid for pid in descendants(self.roots()) if namespace_of(pid) == here]


class DrupeCommand:
    """`drupe run --rm --network none`, as a shell would start it, against the daemon of `Drupe`."""

    def __init__(self) -> None:
        self._argv = [
            str(Path(sys.executable).with_name("drupe")),
            "run",
            "--rm",
            "--network",
            "none",
            IMAGE,
            *GREETING,
        ]

    def start(self) -> float:
        """One command in the foreground."""
        return first_byte(self._argv)


def pipe(stack: ExitStack) -> tuple[int, int]:
    """A pipe whose read end the stack closes; the write end is the caller's."""
    reader, writer = os.pipe()
    stack.callback(os.close, reader)
    return reader, writer


def descendants(roots: set[int]) -> list[int]:
    """The roots and every process below them."""
    found, queue = [], sorted(roots)
    while queue:
        pid = queue.pop()
        found.append(pid)
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            queue.extend(int(child) for child in task.read_text().split())
    return sorted(set(found))


def namespace_of(pid: int) -> Path | None:
    """The PID namespace of a process; None when it has just ended."""
    try:
        return Path(f"/proc/{pid}/ns/pid").readlink()
    except OSError:
        return None
