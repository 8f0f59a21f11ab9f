"""Where the proofs of features run: one kind of sandbox behind a real daemon, and the words that proofs are made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from drupe.sandboxers.kinds import KINDS
from drupe.spec import ContainerSpec, NetworkSpec, PodSpec, PodStatus
from drupe.spec.control import PodRun, Wait
from framework.daemon import CALL_TIMEOUT_S, Daemon


class Stage:
    """One kind on one daemon. tmp: a directory of the host for the test at hand."""

    def __init__(self, daemon: Daemon, kind: str, tmp: Path) -> None:
        self.daemon = daemon
        self.kind = kind
        self.tmp = tmp
        self.able = KINDS[kind].able()

    def sh(self, script: str, *flags: str, code: int = 0, network: str = "none") -> str:
        """The output of a shell script run to its end in a pod of its own, errors included."""
        net = () if network == "" else ("--network", network)
        argv = ("run", "--rm", "--sandbox", self.kind, *net, *flags, "busybox", "sh", "-c", f"exec 2>&1\n{script}")
        done = self.daemon.command(*argv)
        assert done.returncode == code, f"{script}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def background(self, name: str, script: str, *flags: str, network: str = "none") -> None:
        """A container that goes on."""
        net = () if network == "" else ("--network", network)
        argv = ("run", "-d", "--name", name, "--sandbox", self.kind, *net, *flags, "busybox", "sh", "-c", script)
        self.daemon.command(*argv, check=True)

    def command(self, *argv: str) -> str:
        """The output of a `drupe` command that must succeed."""
        return self.daemon.command(*argv, check=True).stdout.strip()

    def pod(self, *containers: ContainerSpec, **fields: Any) -> PodStatus:
        """A pod by its spec, started."""
        spec = PodSpec(
            **{"sandbox": self.kind, "network": NetworkSpec(mode="none"), "containers": containers, **fields}
        )
        with self.daemon.client() as client:
            made: PodStatus = client.call("pod.run", PodRun(spec=spec), timeout_s=CALL_TIMEOUT_S)
        return made

    def script(self, script: str, **fields: Any) -> ContainerSpec:
        """A container that runs a shell script."""
        return ContainerSpec(**{"image": "busybox", "argv": ("sh", "-c", f"exec 2>&1\n{script}"), **fields})

    def output(self, pod: PodStatus, number: int = 0) -> str:
        """What a container of a pod printed, once it has ended."""
        container = pod.containers[number]
        with self.daemon.client() as client:
            client.call("container.wait", Wait(ref=container.id, timeout_s=20), timeout_s=CALL_TIMEOUT_S)
        return self.command("logs", container.id)

    def inspect(self, ref: str) -> dict[str, Any]:
        """All that is known of a container."""
        found: dict[str, Any] = json.loads(self.command("inspect", ref))[0]
        return found
