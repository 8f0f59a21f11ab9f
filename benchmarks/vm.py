"""The vm kind: pods from a template beside cold boots, of the same image under the same accelerator. A machine boots
cold when no template has its size, so the cold pods ask for some memory more."""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from common import GREETING, STEP_TIMEOUT_S, STOPPABLE, BenchError, pss_bytes, run, since
from ours import IMAGE, NETWORKS, Drupe, pipe

from drupe.rpc.client import Client
from drupe.spec import ContainerSpec, PodSpec, PodStatus, Resources
from drupe.spec.control import Delete, PodRun, Wait
from drupe.spec.template import TemplateCreate

BOOT_TIMEOUT_S = 120.0
WARM_BYTES, COLD_BYTES = 128 << 20, 144 << 20


class VmDrupe:
    """Pods of one size and one form of root, over the daemon of `Drupe`; from a template when `cold` is not set."""

    def __init__(self, ours: Drupe, *, cold: bool, rootfs: str = "virtiofs") -> None:
        self.name = f"drupe vm, {rootfs}, {'cold boots' if cold else 'from a template'}"
        self._ours = ours.of_kind("vm")
        self._memory_bytes = COLD_BYTES if cold else WARM_BYTES
        self._rootfs = rootfs
        self._kept: list[PodStatus] = []
        self._before = ours.extra_processes()

    def start(self) -> float:
        """A new pod with one container, to its first byte."""
        client, params = self._ours.client, PodRun(spec=self._spec(GREETING))
        with ExitStack() as stack:
            output, theirs = pipe(stack)
            began = time.perf_counter()
            call = stack.enter_context(client.stream("pod.run", params, fds={"stdout": theirs}))
            os.close(theirs)
            seen = os.read(output, 1)
            took = since(began)
            pod: PodStatus = call.wait()
            if not seen:
                raise BenchError(f"pod {pod.id} wrote nothing")
            client.call("container.wait", Wait(ref=pod.containers[0].id), timeout_s=STEP_TIMEOUT_S)
            client.call("pod.delete", Delete(ref=pod.id, force=True), timeout_s=STEP_TIMEOUT_S)
        return took

    def keep(self) -> None:
        """One more pod that idles."""
        params = PodRun(spec=self._spec(STOPPABLE))
        self._kept.append(self._ours.client.call("pod.run", params, timeout_s=BOOT_TIMEOUT_S))

    def pss_bytes(self) -> int:
        """Monitors, the guests' memory in them, and virtiofsd."""
        return pss_bytes([pid for pid in self._mine() if Path(f"/proc/{pid}/smaps_rollup").exists()])

    def helpers(self) -> int:
        """Processes on the host."""
        return len(self._mine())

    def drop(self) -> None:
        """Remove kept pods."""
        for pod in self._kept:
            self._ours.client.call("pod.delete", Delete(ref=pod.id, force=True), timeout_s=STEP_TIMEOUT_S)
        self._kept.clear()

    def _mine(self) -> set[int]:
        return self._ours.extra_processes() - self._before

    def _spec(self, argv: tuple[str, ...]) -> PodSpec:
        return PodSpec(
            sandbox="vm",
            network=NETWORKS[False],
            annotations={"drupe.vm.rootfs": self._rootfs},
            resources=Resources(memory_bytes=self._memory_bytes),
            containers=(ContainerSpec(image=IMAGE, argv=argv),),
        )


def prepare(client: Client) -> None:
    """The guest image, and a template of the size that is not booted cold."""
    run(sys.executable, "-m", "drupe", "guest", "build", "--quiet")
    client.call("template.create", TemplateCreate(memory_bytes=WARM_BYTES), timeout_s=BOOT_TIMEOUT_S)
