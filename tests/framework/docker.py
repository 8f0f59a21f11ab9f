"""Docker of two generations, on a containerd of its own, with our runtimes beside runc."""

from __future__ import annotations

import contextlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from drupe.services.setup.docker import runtimes
from framework.bundles import COMMAND, make_rootfs
from framework.containerds import PEERS, SOCKET, VERSIONS, Containerd, needs_containerd, parents
from framework.leaks import CGROUP_PARENT, wait_until
from framework.private_host import TIMEOUT_S

IMAGE = "busybox:test"
PARENT = f"/{CGROUP_PARENT}-docker"
_SOCKET = "/run/docker.sock"


@dataclass(frozen=True)
class Generation:
    """A version of Docker, of a Debian suite, with the containerd that it goes with. shims: whether its runtimes may be
    shims of containerd's."""

    name: str
    suite: str
    containerd: str
    shims: bool

    @property
    def directory(self) -> Path:
        return PEERS / self.suite / "usr"


GENERATIONS = {
    one.name: one for one in (Generation("28", "sid", "2.1", True), Generation("20.10", "bookworm", "1.6", False))
}


def needs_docker(generation: Generation) -> None:
    """Skip unless it is there."""
    needs_containerd(VERSIONS[generation.containerd])
    if not (generation.directory / "sbin/dockerd").exists():
        pytest.skip(f"Docker {generation.name} is not there (scripts/setup.sh --tests fetches it)")


class Docker(Containerd):
    """A host with our daemon, containerd and dockerd. `docker(...)` runs its command line."""

    def __init__(self, directory: Path, generation: Generation, store: Path) -> None:
        self.generation = generation
        for parent in parents(PARENT[1:]):
            parent.mkdir(exist_ok=True)
        super().__init__(directory, VERSIONS[generation.containerd], store)
        own = f"{generation.directory}/bin:{generation.directory}/sbin"
        self.env.update(PATH=f"{own}:{self.env['PATH']}", DOCKER_HOST=f"unix://{_SOCKET}")
        self.env["DOCKER_CONFIG"] = str(directory / "docker-client")

    def open(self) -> None:
        """Start containerd and dockerd, and have an image."""
        self.start()
        settings = self.directory / "daemon.json"
        settings.write_text(json.dumps(self._settings()))
        names = ["--containerd-namespace", "docker-test", "--containerd-plugins-namespace", "docker-test-plugins"]
        files = ["--config-file", str(settings), "--pidfile", "/run/docker.pid"]
        self._services.append(self.serve("dockerd", *files, *names, log="dockerd.log"))
        answers = lambda: self("version", check=False).returncode == 0  # noqa: E731
        wait_until(answers, what="dockerd answers", timeout_s=TIMEOUT_S)
        self._load()

    def _settings(self) -> dict[str, Any]:
        ours = {
            name: {**it, **({"path": str(COMMAND.with_name(Path(it["path"]).name))} if "path" in it else {})}
            for name, it in self._runtimes().items()
        }
        return {
            "hosts": [f"unix://{_SOCKET}"],
            "containerd": SOCKET,
            "data-root": str(self.directory / "docker"),
            "exec-root": "/run/docker",
            "cgroup-parent": PARENT,
            "storage-driver": "vfs",  # it asks nothing of the file system that the test is on
            "userland-proxy": False,
            "runtimes": ours,
        }

    def _runtimes(self) -> dict[str, dict[str, Any]]:
        """drupe's, as `drupe setup docker` writes them; and by OCI also where shims are possible."""
        found = runtimes(by_shim=self.generation.shims)
        return {**found, "drupe-by-oci": {"path": str(COMMAND)}}

    def _load(self) -> None:
        make_rootfs(self.directory / "rootfs")
        archive = str(self.directory / "rootfs.tar")
        self.inside("tar", "-C", str(self.directory / "rootfs"), "-cf", archive, ".")
        self("import", "--change", "ENV PATH=/bin", archive, IMAGE)
        if self.generation.shims:
            self("run", "--rm", "--runtime", "drupe", IMAGE, "true")  # starts the relay, which stays

    def __call__(self, *words: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `docker WORDS`, its output captured."""
        return self.inside("docker", *words, check=check, **options)

    def client(self, *words: str) -> subprocess.Popen[bytes]:
        """Start `docker WORDS`, its streams being pipes."""
        return subprocess.Popen(
            [*self._nsenter(), "docker", *words], env=self.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def close(self) -> None:
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            if found := self("ps", "--all", "--quiet", check=False).stdout.split():
                self("rm", "--force", *found, check=False)
        super().close()
        for parent in parents(PARENT[1:]):
            with contextlib.suppress(OSError):  # one that is in use is for the leak checker to tell
                parent.rmdir()
