"""Podman with drupe-oci as its runtime."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Any

from framework.bundles import COMMAND, make_rootfs
from framework.leaks import CGROUP_PARENT
from framework.private_host import PrivateHost

IMAGE = "busybox:test"
# Podman raises limits, which this may not be allowed to
ULIMITS = ("--ulimit", "nofile=20000:20000", "--ulimit", "nproc=20000:20000")


class Podman(PrivateHost):
    """A place of Podman's own. runtime: what it runs containers by."""

    runtime = COMMAND

    def load(self) -> None:
        """Have an image, of what is in our directory's rootfs, or of busybox."""
        self.wait_for("/run/drupe/drupe.sock")
        if not (self.directory / "rootfs").exists():
            make_rootfs(self.directory / "rootfs")
        archive = str(self.directory / "rootfs.tar")
        self.inside("tar", "-C", str(self.directory / "rootfs"), "-cf", archive, ".")
        self("import", archive, IMAGE)

    def __call__(self, *words: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `podman WORDS`, its output captured."""
        own = ["--root", self.directory / "root", "--runroot", "/run/podman", "--tmpdir", "/run/podman.tmp"]
        # vfs: it asks nothing of the file system that the test is on
        ways = [
            "--storage-driver",
            "vfs",
            "--cgroup-manager",
            "cgroupfs",
            "--events-backend",
            "file",
            "--runtime",
            self.runtime,
            "--network-config-dir",
            self.directory / "networks",
        ]
        return self.inside("podman", *map(str, [*own, *ways]), *words, check=check, **options)

    def run(self, *words: str, check: bool = True, flags: Sequence[str] = (), **options: Any) -> Any:
        """`podman run`, without a network unless the flags say otherwise."""
        own = () if "-d" in flags else ("--rm",)
        own += () if "--network" in flags else ("--network", "none")
        parent = (*own, "--cgroup-parent", f"/{CGROUP_PARENT}-podman")
        return self("run", *parent, *ULIMITS, *flags, IMAGE, *words, check=check, **options)

    def close(self) -> None:
        """Remove the containers first."""
        self("rm", "--all", "--force", "--time", "0", check=False)
        super().close()
