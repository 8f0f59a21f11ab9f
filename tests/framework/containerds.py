"""containerd of each generation in a place of its own: Debian 12's, and those that scripts/setup.sh has unpacked."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from framework.bundles import COMMAND
from framework.images import copy_store
from framework.leaks import CGROUP_PARENT, wait_until
from framework.private_host import TIMEOUT_S, PrivateHost
from framework.probes import needs_program, needs_root

PEERS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drupe/peers"
NEWER_RUNC = PEERS / "sid/usr/sbin/runc"  # scripts/setup.sh gives it the libraries of its own suite
IMAGE = "docker.io/library/busybox:latest"
NAMESPACE = CGROUP_PARENT  # containers' cgroups are below a directory of this name, so the leak checker knows them
SOCKET = "/run/containerd/containerd.sock"
OURS = "io.containerd.drupe.v2"

_SERVERS = """
root = "{directory}/containerd"
state = "/run/containerd-state"
[grpc]
  address = "/run/containerd/containerd.sock"
[ttrpc]
  address = "/run/containerd/containerd.sock.ttrpc"
"""
# Its pause image is ours, and it must not ask for more than root may do here.
_CRI_V2 = """
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:latest"
  disable_apparmor = true
  restrict_oom_score_adj = true
  stream_server_port = "0"
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "{directory}/cni"
"""
_CRI_V3 = """
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "localhost/pause:latest"
[plugins.'io.containerd.cri.v1.runtime']
  disable_apparmor = true
  restrict_oom_score_adj = true
  cni = {{ bin_dirs = ["/usr/lib/cni"], conf_dir = "{directory}/cni" }}
"""


@dataclass(frozen=True)
class Version:
    """A generation of containerd. suite: of Debian, whose packages are unpacked; "" is what is installed. config: the
    version of its configuration file."""

    name: str
    suite: str
    config: int

    @property
    def directory(self) -> Path | None:
        """Where its programs are; None: on PATH."""
        return PEERS / self.suite / "usr/bin" if self.suite else None

    @property
    def cri_plugins(self) -> tuple[str, ...]:
        """What serves the CRI."""
        if self.config == 2:
            return ("io.containerd.grpc.v1.cri",)
        return ("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime")


VERSIONS = {v.name: v for v in (Version("1.6", "", 2), Version("1.7", "trixie", 2), Version("2.1", "sid", 3))}
FULL = bool(os.environ.get("DRUPE_TEST_INTEROP"))
TRIED = [name for name in VERSIONS if FULL or name != "1.7"]  # the one between does what both others do


def needs_containerd(version: Version) -> None:
    """Skip unless it is there."""
    needs_root()
    needs_program("crun", "runc", "unshare", "nsenter")
    if version.directory is None:
        needs_program("containerd", "ctr", "containerd-shim-runc-v2")
    elif not (version.directory / "containerd").exists():
        pytest.skip(f"containerd {version.name} is not there (scripts/setup.sh --tests fetches it)")


class Containerd(PrivateHost):
    """A host with our daemon, and containerd of one version. store: an image store of ours with busybox. cri: also its
    CRI plug-in, with what `extra` adds to the configuration. `stop`, `kill` and `start` again test recovery; `load`
    gives it the image. Make it before the leak checker looks: a fixture of a module, or of a session."""

    def __init__(
        self,
        directory: Path,
        version: Version,
        store: Path,
        *,
        cri: bool = False,
        extra: str = "",
        drupe_config: Path | None = None,
    ) -> None:
        self.version = version
        self.process: subprocess.Popen[bytes] | None = None
        copy_store(store, directory / "drupe")
        for parent in parents(NAMESPACE):  # runc makes them and leaves them
            parent.mkdir(exist_ok=True)
        super().__init__(directory, config=drupe_config)
        beside = [str(version.directory)] if version.directory else []
        self.env["PATH"] = ":".join([*beside, str(COMMAND.parent), os.environ["PATH"], "/usr/sbin", "/sbin"])
        (directory / "cni").mkdir(exist_ok=True)
        (directory / "config.toml").write_text(self._config(cri, extra))

    def _config(self, cri: bool, extra: str) -> str:
        disabled = ["io.containerd.tracing.processor.v1.otlp", "io.containerd.nri.v1.nri"]
        disabled += [] if cri else self.version.cri_plugins
        text = f"version = {self.version.config}\ndisabled_plugins = {disabled}\n" + _SERVERS
        if cri:
            text += _CRI_V2 if self.version.config == 2 else _CRI_V3
        return text.format(directory=self.directory) + extra

    def start(self) -> None:
        """Start it, and wait until it answers."""
        argv = ("containerd", "--config", str(self.directory / "config.toml"))
        self.process = self.serve(*argv, log="containerd.log")
        self._services.append(self.process)
        self.wait_for("/run/drupe/drupe.sock")
        answers = lambda: self.try_ctr("version").returncode == 0  # noqa: E731 - one that was killed has left its socket
        wait_until(answers, what="containerd answers", timeout_s=TIMEOUT_S)

    def stop(self) -> None:
        """End it as systemd does. Tasks go on."""
        assert self.process is not None
        self.process.terminate()
        self.process.wait(TIMEOUT_S)
        self._services.remove(self.process)

    def kill(self) -> None:
        """End it without a warning."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self._services.remove(self.process)

    def load(self, *, namespace: str = NAMESPACE) -> None:
        """Have `IMAGE`."""
        archive = str(self.directory / "busybox.tar")
        saved = self.drupe("image", "save", "--output", archive, "busybox")
        assert saved.returncode == 0, saved.stderr
        self.ctr("images", "import", archive, namespace=namespace)

    def ctr(self, *words: str, namespace: str = NAMESPACE, check: bool = True, **options: Any) -> str:
        """Its standard output."""
        return self.try_ctr(*words, namespace=namespace, check=check, **options).stdout

    def try_ctr(
        self, *words: str, namespace: str = NAMESPACE, check: bool = False, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run `ctr WORDS`, its output captured."""
        return self.inside("ctr", "--address", SOCKET, "--namespace", namespace, *words, check=check, **options)

    def begin_ctr(self, *words: str) -> subprocess.Popen[str]:
        """A `ctr WORDS` that goes on beside the test."""
        argv = [*self._nsenter(), "ctr", "--address", SOCKET, "--namespace", NAMESPACE, *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(argv, env=self.env, stdin=subprocess.DEVNULL, text=True, **pipes)  # type: ignore[call-overload]

    def close(self) -> None:
        super().close()
        for parent in parents(NAMESPACE):
            with contextlib.suppress(OSError):  # one that is in use is for the leak checker to tell
                parent.rmdir()


def serving(directory: Path, name: str, store: Path, *, drupe_config: Path | None = None) -> Iterator[Containerd]:
    """containerd of a version with the image, for as long as a fixture lives."""
    version = VERSIONS[name]
    needs_containerd(version)
    place = Containerd(directory, version, store, drupe_config=drupe_config)
    try:
        place.start()
        place.load()
        place.ctr("run", "--rm", "--runtime", OURS, IMAGE, "first", "true")  # starts the relay, which stays
        yield place
    finally:
        place.close()


def parents(name: str) -> list[Path]:
    """The cgroup above containers', in each hierarchy."""
    root = Path("/sys/fs/cgroup")
    trees = [root] if (root / "cgroup.procs").exists() else [d for d in root.iterdir() if not d.is_symlink()]
    return [tree / name for tree in trees]
