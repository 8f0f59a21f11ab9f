"""Where a runtime keeps its things: `root` survives a reboot, `run` does not need to."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

DEFAULT_ROOT = Path("/var/lib/drupe")
DEFAULT_RUN = Path("/run/drupe")


@dataclass(frozen=True)
class Paths:
    """root: journal, images, volumes, writable layers, logs. run: sockets, pinned namespaces, bundles, mounts."""

    root: Path
    run: Path

    @property
    def journal(self) -> Path:
        return self.root / "journal.db"

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def volumes(self) -> Path:
        return self.root / "volumes"

    @property
    def socket(self) -> Path:
        return self.run / "drupe.sock"

    @cached_property
    def pods(self) -> Path:
        return self.run / "pods"

    def pod(self, pod_id: str) -> Path:
        return self.pods / pod_id

    def bundle(self, pod_id: str, container_id: str) -> Path:
        return self.pods / pod_id / container_id

    def layer(self, container_id: str) -> Path:
        """The container's writable layer and log."""
        return self._containers / container_id

    @cached_property
    def _containers(self) -> Path:
        return self.root / "containers"

    @cached_property
    def cgroup(self) -> str:
        """The parent of all pods' cgroups; one per runtime, so that two on a host never take each other for orphans,
        also where each has a mount namespace of its own, and so the same run directory."""
        if (self.root, self.run) == (DEFAULT_ROOT, DEFAULT_RUN):
            return "/drupe"
        return "/drupe-" + hashlib.sha256(f"{self.root}\0{self.run}".encode()).hexdigest()[:8]

    def make(self) -> None:
        """Create the directories. Others may pass through those on the way to what a pod of another user id owns,
        and list none. PermissionError and OSError pass through."""
        for directory in (self.root, self.run, self.pods, self.volumes):
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(0o711)
        for directory in (self.images, self._containers):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
