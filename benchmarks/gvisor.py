"""The gVisor kind beside bare `runsc` on the same config.json, layers and flags. The peer has no network at all, ours a
namespace of the pod's; the peer makes its bundle and overlay before the clock starts."""

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
    STEP_TIMEOUT_S,
    STOPPABLE,
    burst_of_commands,
    first_byte,
    pss_bytes,
    run,
    since,
    with_own_sources,
)
from ours import Drupe, descendants

from drupe.spec.control import Delete

TMP = "/tmp"  # drupe binds it, so that files there are in the container's layer
FLAGS = ("--network=none", "--ignore-cgroups", "--overlay2=none", "--file-access=shared")


class GvisorDrupe:
    """drupe's pods of the kind gvisor, over the daemon of `Drupe`."""

    name = "drupe"

    def __init__(self, ours: Drupe) -> None:
        self._ours = ours.of_kind("gvisor")
        self.start = self._ours.start
        self.exec = self._ours.exec
        self.keep = self._ours.keep
        self.drop = self._ours.drop
        self.config = self._ours.oci_config

    def delete(self) -> float:
        """`pod.delete` of one that runs, by force."""
        pod = self._ours.idle()
        began = time.perf_counter()
        self._ours.client.call("pod.delete", Delete(ref=pod.id, force=True), timeout_s=STEP_TIMEOUT_S)
        return since(began)

    def pss_bytes(self) -> int:
        """All that stands for the pods: sentries, gofers, and the processes that lend the guests an address space."""
        return pss_bytes(sandboxes(self._ours.run_dir))

    def helpers(self) -> int:
        """Processes beside sentry and gofer."""
        return len(self._ours.extra_processes() - set(sandboxes(self._ours.run_dir)))


class BareRunsc:
    """`runsc run` on a prepared bundle."""

    name = "runsc"

    def __init__(self, *, work: Path, lower: str, config: dict[str, Any]) -> None:
        self._work = work / "runsc"
        self._lower = lower
        self._config = with_own_sources(config, work / "sources", besides=TMP)
        self._numbers = itertools.count()
        self._kept: list[str] = []
        self._work.mkdir(parents=True)

    def start(self) -> float:
        """`run` in the foreground."""
        task = self._bundle(GREETING)
        try:
            return first_byte([*self._command("run"), "--bundle", str(self._work / task), task])
        finally:
            self._remove_bundle(task)

    def burst(self, count: int) -> float:
        """`count` commands at once."""
        tasks = [self._bundle(GREETING) for _ in range(count)]
        try:
            return burst_of_commands([[*self._command("run"), "--bundle", str(self._work / t), t] for t in tasks])
        finally:
            for task in tasks:
                self._remove_bundle(task)

    def exec(self) -> float:
        """`exec` in one kept container."""
        if not self._kept:
            self.keep()
        return first_byte([*self._command("exec"), self._kept[0], *GREETING])

    def delete(self) -> float:
        """`delete --force` of one that runs."""
        task = self._detached(STOPPABLE)
        began = time.perf_counter()
        run(*self._command("delete"), "--force", task)
        took = since(began)
        self._remove_bundle(task)
        return took

    def keep(self) -> None:
        """One more container in the background."""
        self._kept.append(self._detached(STOPPABLE))

    def pss_bytes(self) -> int:
        """As of ours."""
        return pss_bytes(sandboxes(self._work))

    def helpers(self) -> int:
        """Nothing else stays."""
        return 0

    def drop(self) -> None:
        """Remove kept containers."""
        for task in self._kept:
            run(*self._command("delete"), "--force", task)
            self._remove_bundle(task)
        self._kept.clear()

    close = drop

    def _command(self, verb: str) -> list[str]:
        return ["runsc", "--root", "/run/bench-runsc", *FLAGS, verb]

    def _detached(self, argv: Sequence[str]) -> str:
        task = self._bundle(argv)
        start = [*self._command("run"), "--detach", "--bundle", str(self._work / task), task]
        subprocess.run(start, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
        return task

    def _bundle(self, argv: Sequence[str]) -> str:
        task = f"bench-{os.getpid()}-{next(self._numbers)}"
        home = self._work / task
        for part in ("rootfs", "upper", "work"):
            (home / part).mkdir(parents=True)
        options = f"lowerdir={self._lower},upperdir={home}/upper,workdir={home}/work"
        run("mount", "-t", "overlay", "overlay", str(home / "rootfs"), "-o", options)
        config = json.loads(json.dumps(self._config))
        config["process"]["args"] = list(argv)
        config["root"]["path"] = str(home / "rootfs")
        for mount in config["mounts"]:
            if mount["destination"] == TMP:
                mount["source"] = f"{home}/rootfs{TMP}"
        (home / "config.json").write_text(json.dumps(config))
        return task

    def _remove_bundle(self, task: str) -> None:
        run("umount", str(self._work / task / "rootfs"))
        shutil.rmtree(self._work / task)


def sandboxes(directory: Path) -> list[int]:
    """Sentries and gofers with state below a directory, and all that they started."""
    roots = {int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if _is_sandbox(path, directory)}
    return [pid for pid in descendants(roots) if Path(f"/proc/{pid}/smaps_rollup").exists()]


def _is_sandbox(path: Path, directory: Path) -> bool:
    try:
        words = path.read_bytes()
    except OSError:
        return False
    return words.startswith((b"runsc-sandbox", b"runsc-gofer")) and str(directory).encode() in words
