"""Podman with drupe-oci as its runtime, in mount, network and run directories of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from framework.bundles import COMMAND, make_rootfs
from framework.leaks import CGROUP_PARENT, wait_until

TIMEOUT_S = 60.0
IMAGE = "busybox:test"
# Podman raises limits, which this may not be allowed to
ULIMITS = ("--ulimit", "nofile=20000:20000", "--ulimit", "nproc=20000:20000")


class Podman:
    """A place of Podman's own. All of it ends with `close`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.env = {
            **os.environ, "DRUPE_ROOT": str(directory / "drupe"), "DRUPE_RUN": "/run/drupe", "HOME": str(directory),
        }  # fmt: skip
        script = "mount --make-rprivate / && mount -t tmpfs tmpfs /run && ip link set lo up && echo ready && read end"
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--net", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None and self._holder.stdout.readline() == b"ready\n"
        # conmon waits for every child that it gets, and gives its runtime no environment: the daemon is there before
        where = ["--root", str(directory / "drupe"), "--run", "/run/drupe"]
        argv = [*self._nsenter(), sys.executable, "-m", "drupe", *where, "serve"]
        with (directory / "daemon.log").open("wb") as log:
            self._daemon = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _nsenter(self) -> list[str]:
        return ["nsenter", "--target", str(self._holder.pid), "--mount", "--net"]

    def load(self) -> None:
        """Have an image."""
        directory = self.directory
        there = ("test", "-S", "/run/drupe/drupe.sock")
        wait_until(lambda: self._inside(*there, check=False).returncode == 0, what="the daemon", timeout_s=TIMEOUT_S)
        make_rootfs(directory / "rootfs")
        self._inside("tar", "-C", str(directory / "rootfs"), "-cf", str(directory / "rootfs.tar"), ".")
        self("import", str(directory / "rootfs.tar"), IMAGE)

    def _inside(self, *argv: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        given: dict[str, Any] = {} if "input" in options else {"stdin": subprocess.DEVNULL}
        done = subprocess.run(
            [*self._nsenter(), *argv], env=self.env, check=False,
            capture_output=True, text=True, timeout=TIMEOUT_S, **given, **options,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def __call__(self, *words: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `podman WORDS`, its output captured."""
        place = self.directory
        own = ["--root", place / "root", "--runroot", "/run/podman", "--tmpdir", "/run/podman.tmp"]
        ways = ["--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime", COMMAND]
        return self._inside("podman", *map(str, [*own, *ways]), *words, check=check, **options)

    def run(self, *words: str, check: bool = True, flags: Sequence[str] = (), **options: Any) -> Any:
        """`podman run` without a network."""
        own = () if "-d" in flags else ("--rm",)
        parent = (*own, "--network", "none", "--cgroup-parent", f"/{CGROUP_PARENT}-podman")
        return self("run", *parent, *ULIMITS, *flags, IMAGE, *words, check=check, **options)

    def drupe(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Our own command line, in there."""
        return self._inside(str(COMMAND.with_name("drupe")), *words, check=False)

    def close(self) -> None:
        """Remove the containers, end the daemon, let go of the namespaces."""
        self("rm", "--all", "--force", "--time", "0", check=False)
        self._daemon.terminate()
        self._daemon.wait(TIMEOUT_S)
        self._holder.communicate(b"end\n", timeout=TIMEOUT_S)
