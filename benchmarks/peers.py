"""The runtimes that drupe is measured against, each with state of its own below one directory: bare crun and runc,
Podman, and containerd driven by ctr. All run in the benchmark's private mount and network namespaces."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import (
    GREETING,
    STOPPABLE,
    TRAP_S,
    burst_of_commands,
    first_byte,
    processes,
    pss_bytes,
    run,
    since,
    wait_for_end,
    wait_until,
    with_own_sources,
)

IMAGE = "localhost/busybox:latest"


class BareRuntime:
    """`crun run` or `runc run` on a prepared bundle: the same config.json as drupe's, the same layers under an overlay.

    Bundles are made and removed outside the measured time; drupe's own time includes both.
    """

    def __init__(self, program: str, *, work: Path, lower: str, config: dict[str, Any], path: str = "") -> None:
        self.name = program
        self._path = path or program
        self._work = work / program
        self._lower = lower
        self._config = with_own_sources(config, work / f"{program}-sources")
        self._numbers = itertools.count()
        self._kept: list[str] = []
        self._work.mkdir(parents=True)

    def start(self, *, bridge: bool = False) -> float:
        """A new container, `run` in the foreground."""
        assert not bridge, "a bare runtime makes no network"
        task = self._bundle(GREETING)
        try:
            return first_byte(self._run(task))
        finally:
            self._remove_bundle(task)

    def burst(self, count: int) -> float:
        """`count` commands at once."""
        tasks = [self._bundle(GREETING) for _ in range(count)]
        try:
            return burst_of_commands([self._run(task) for task in tasks])
        finally:
            for task in tasks:
                self._remove_bundle(task)

    def exec(self) -> float:
        """`exec` in one kept container."""
        if not self._kept:
            self.keep()
        return first_byte([*self._command("exec"), self._kept[0], *GREETING])

    def stop(self) -> float:
        """`kill TERM`, the end of the process, `delete`."""
        task = self._detached(STOPPABLE)
        pid = int(json.loads(run(*self._command("state"), task))["pid"])
        time.sleep(TRAP_S)
        began = time.perf_counter()
        run(*self._command("kill"), task, "TERM")
        wait_for_end(pid)
        run(*self._command("delete"), task)
        took = since(began)
        self._remove_bundle(task)
        return took

    def keep(self) -> None:
        """One more container in the background."""
        self._kept.append(self._detached(STOPPABLE))

    def pss_bytes(self) -> int:
        """Nothing stays beside the workload."""
        return 0

    def helpers(self) -> int:
        """Nothing stays beside the workload."""
        return 0

    def drop(self) -> None:
        """Remove kept containers."""
        for task in self._kept:
            run(*self._command("delete"), "--force", task)
            self._remove_bundle(task)
        self._kept.clear()

    close = drop

    def _command(self, verb: str) -> list[str]:
        return [self._path, "--root", f"/run/bench-{self.name}", verb]

    def _run(self, task: str) -> list[str]:
        return [*self._command("run"), "--bundle", str(self._work / task), task]

    def _detached(self, argv: Sequence[str]) -> str:
        task = self._bundle(argv)
        start = [*self._command("run"), "--detach", "--bundle", str(self._work / task), task]
        subprocess.run(start, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
        return task

    def _bundle(self, argv: Sequence[str]) -> str:
        task = f"bench-{os.getpid()}-{self.name}-{next(self._numbers)}"
        home = self._work / task
        for part in ("rootfs", "upper", "work"):
            (home / part).mkdir(parents=True)
        run(
            "mount", "-t", "overlay", "overlay", str(home / "rootfs"),
            "-o", f"lowerdir={self._lower},upperdir={home}/upper,workdir={home}/work",
        )  # fmt: skip
        config = json.loads(json.dumps(self._config))
        config["process"]["args"] = list(argv)
        config["root"]["path"] = str(home / "rootfs")
        config["linux"]["cgroupsPath"] = f"/drupe-bench-{os.getpid()}/{task}"
        (home / "config.json").write_text(json.dumps(config))
        return task

    def _remove_bundle(self, task: str) -> None:
        run("umount", str(self._work / task / "rootfs"))
        shutil.rmtree(self._work / task)


class Podman:
    """`podman run`, with its default monitor (conmon), runtime (crun) and log driver."""

    name = "podman"
    # CAP_SYS_RESOURCE may be missing: then Podman's default limits cannot be raised
    _limits = ("--ulimit", "nofile=20000:20000", "--ulimit", "nproc=20000:20000")

    def __init__(self, *, work: Path, archive: Path) -> None:
        self._root = str(work / "podman")
        self._base = [
            "podman", "--root", self._root, "--runroot", "/run/bench-podman", "--cgroup-manager", "cgroupfs",
            "--events-backend", "none", "--runtime", "crun",
        ]  # fmt: skip
        self._kept: list[str] = []
        loaded = run(*self._base, "load", "--quiet", "--input", str(archive)).split()[-1]
        run(*self._base, "tag", loaded, IMAGE)

    def start(self, *, bridge: bool = False) -> float:
        """`podman run --rm` in the foreground."""
        took = first_byte(self._run(*GREETING, bridge=bridge))
        self._settle()
        return took

    def burst(self, count: int) -> float:
        """`count` commands at once."""
        took = burst_of_commands([self._run(*GREETING)] * count)
        self._settle()
        return took

    def exec(self) -> float:
        """`podman exec` in one kept container."""
        if not self._kept:
            self.keep()
        took = first_byte([*self._base, "exec", self._kept[0], *GREETING])
        self._settle()
        return took

    def stop(self) -> float:
        """`podman rm --force`: SIGTERM, then removal."""
        container = self._detached()
        time.sleep(TRAP_S)
        began = time.perf_counter()
        run(*self._base, "rm", "--force", "--time", "10", container)
        took = since(began)
        self._settle()
        return took

    def keep(self) -> None:
        """One more container in the background."""
        self._kept.append(self._detached())

    def pss_bytes(self) -> int:
        """Its monitors."""
        return pss_bytes(self._monitors())

    def helpers(self) -> int:
        """Its monitors."""
        return len(self._monitors())

    def drop(self) -> None:
        """Remove kept containers."""
        if self._kept:
            run(*self._base, "rm", "--force", "--time", "0", *self._kept)
        self._kept.clear()
        self._settle()

    def close(self) -> None:
        """Remove containers and storage."""
        run(*self._base, "rm", "--force", "--all", "--time", "0")
        self._settle()

    def _run(self, *argv: str, bridge: bool = False) -> list[str]:
        network = ["--network", "bridge" if bridge else "none"]
        return [*self._base, "run", "--rm", *network, *self._limits, IMAGE, *argv]

    def _detached(self) -> str:
        argv = [*self._base, "run", "--detach", "--network", "none", *self._limits, IMAGE, *STOPPABLE]
        container = run(*argv).strip()
        self._settle()
        return container

    def _monitors(self) -> list[int]:
        return processes("conmon", self._root)

    def _settle(self) -> None:
        # conmon runs `podman container cleanup` behind our back: it must not disturb the next contender
        wait_until(lambda: not processes("podman", self._root), "podman's clean-up ends")


class Containerd:
    """`ctr run` against a containerd of our own: overlayfs snapshots, shim v2, runc."""

    name = "ctr"
    _plugins = ("io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
                "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper")  # fmt: skip

    def __init__(self, *, work: Path, archive: Path) -> None:
        self._socket = "/run/bench-containerd/containerd.sock"
        self._base = ["ctr", "--address", self._socket]
        self._numbers = itertools.count()
        self._kept: list[str] = []
        config = work / "containerd.toml"
        config.write_text(self._config(work))
        with (work / "containerd.log").open("wb") as log:
            self._daemon = subprocess.Popen(["containerd", "--config", config], stdout=log, stderr=log)
        wait_until(lambda: Path(self._socket).exists(), "containerd answers")
        run(*self._base, "image", "import", "--base-name", IMAGE.partition(":")[0], str(archive))
        self._image = run(*self._base, "image", "ls", "--quiet").split()[0]

    def _config(self, work: Path) -> str:
        return (
            f'version = 2\nroot = "{work}/containerd"\nstate = "/run/bench-containerd/state"\n'
            f"disabled_plugins = {json.dumps(self._plugins)}\n"
            f'[grpc]\naddress = "{self._socket}"\n[ttrpc]\naddress = "{self._socket}.ttrpc"\n'
        )

    def start(self, *, bridge: bool = False) -> float:
        """`ctr run --rm` in the foreground."""
        assert not bridge, "ctr makes no network"
        took = first_byte(self._run())
        self._settle()
        return took

    def burst(self, count: int) -> float:
        """`count` commands at once."""
        took = burst_of_commands([self._run() for _ in range(count)])
        self._settle()
        return took

    def exec(self) -> float:
        """`ctr task exec` in one kept container."""
        if not self._kept:
            self.keep()
        argv = [*self._base, "task", "exec", "--exec-id", f"e{next(self._numbers)}", self._kept[0], *GREETING]
        return first_byte(argv)

    def stop(self) -> float:
        """`task kill`, the end of the process, `task delete`, `container delete`."""
        task = self._detached()
        pid = self._pid(task)
        time.sleep(TRAP_S)
        began = time.perf_counter()
        run(*self._base, "task", "kill", "--signal", "SIGTERM", task)
        wait_for_end(pid)
        run(*self._base, "task", "delete", task)
        run(*self._base, "container", "delete", task)
        return since(began)

    def keep(self) -> None:
        """One more container in the background."""
        self._kept.append(self._detached())

    def pss_bytes(self) -> int:
        """containerd and its shims."""
        return pss_bytes([self._daemon.pid, *self._shims()])

    def helpers(self) -> int:
        """Its shims."""
        return len(self._shims())

    def drop(self) -> None:
        """Remove kept containers."""
        for task in self._kept:
            pid = self._pid(task)
            run(*self._base, "task", "kill", "--signal", "SIGKILL", task)
            wait_for_end(pid)
            subprocess.run([*self._base, "task", "delete", task], capture_output=True, check=False)
            run(*self._base, "container", "delete", task)
        self._kept.clear()
        self._settle()

    def close(self) -> None:
        """Remove containers and end the daemon."""
        self.drop()
        self._daemon.terminate()
        self._daemon.wait(30)

    def _run(self) -> list[str]:
        return [*self._base, "run", "--rm", self._image, self._new(), *GREETING]

    def _detached(self) -> str:
        task = self._new()
        run(*self._base, "run", "--detach", self._image, task, *STOPPABLE)
        return task

    def _new(self) -> str:
        return f"bench-{os.getpid()}-{next(self._numbers)}"

    def _pid(self, task: str) -> int:
        rows = (line.split() for line in run(*self._base, "task", "ls").splitlines())
        return next(int(row[1]) for row in rows if row[0] == task)

    def _shims(self) -> list[int]:
        return processes("containerd-shim", self._socket)

    def _settle(self) -> None:
        wait_until(lambda: len(self._shims()) <= len(self._kept), "the shim ends")
