"""A host whose containerd serves the Container Runtime Interface: images, a network for pods, and a client."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest

from drupe.images.build import image_from_tree
from drupe.images.progress import silent
from drupe.images.store import ImageStore
from drupe.rpc.client import Client
from drupe.spec import PodStatus
from drupe.spec.control import ImageExport, ListFilter
from framework import guests
from framework.bundles import COMMAND
from framework.containerds import IMAGE, NEWER_RUNC, SOCKET, VERSIONS, Containerd, Version, needs_containerd
from framework.cri import Cri, container_config, pod_config
from framework.cri_streams import Channels
from framework.leaks import CGROUP_PARENT, wait_until
from framework.probes import needs_program

PAUSE = "localhost/pause:latest"
MODULES = "localhost/modules:latest"
CGROUP = f"/{CGROUP_PARENT}-cri"
DRUPE_CONFIG = "[containerd]\nsandboxer = true\n"
REGISTRY = "127.0.0.1:5000"
_CLONE_NEWNET = 0x40000000
_NETWORK = {
    "cniVersion": "0.4.0",
    "name": "pods",
    "plugins": [
        {
            "type": "bridge", "bridge": "cri0", "isGateway": True, "ipMasq": False,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]},
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}  # fmt: skip


_SANDBOXER = """
[proxy_plugins.drupe]
  type = "sandbox"
  address = "/run/drupe/sandboxer.sock"
"""
_HANDLER_V3 = """
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.{name}]
  runtime_type = "io.containerd.drupe.v2"
  sandboxer = "drupe"
"""
_MORE_HANDLERS_V3 = """
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.streaming-drupe]
  runtime_type = "io.containerd.drupe-runc.v2"
  sandboxer = "drupe"
  io_type = "streaming"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.drupe-by-shim]
  runtime_type = "io.containerd.drupe-runc.v2"
  sandboxer = "shim"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.drupe-runc]
  runtime_type = "io.containerd.runc.v2"
  sandboxer = "drupe"
  options = {{ BinaryName = "{command}" }}
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.drupe-by-oci]
  runtime_type = "io.containerd.runc.v2"
  options = {{ BinaryName = "{command}" }}
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.newer-runc]
  runtime_type = "io.containerd.runc.v2"
  options = {{ BinaryName = "{newer_runc}" }}
"""
# 1.6 and 1.7 have our shim make their own sandboxes' first container
_HANDLER_V2 = """
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{name}]
  runtime_type = "io.containerd.{name}.v2"
"""
_HANDLERS_V2 = ("runc", "drupe", "drupe-runc", "drupe-gvisor", "drupe-appkernel", "drupe-wasm", "drupe-vm")
HANDLERS = ("drupe", "drupe-gvisor", "drupe-appkernel", "drupe-wasm", "drupe-vm")


class CriHost(Containerd):
    """containerd with its CRI, our handlers among its runtimes; see Containerd for the rest. Usable after `open`."""

    def __init__(self, directory: Path, version: Version, store: Path, *, extra: str = "") -> None:
        self._made: list[Path] = []
        for parent in _parents():  # runc makes them and leaves them; one that exists is another host's, still open
            if not parent.exists():  # one by one: a hierarchy may be mounted twice
                parent.mkdir()
                self._made.append(parent)
        config = directory / "drupe.toml"
        config.write_text(DRUPE_CONFIG)
        super().__init__(directory, version, store, cri=True, extra=_handlers(version) + extra, drupe_config=config)
        self.logs = directory / "pods"
        self.cri: Cri

    def open(self) -> None:
        """Start containerd, with images and a network."""
        (self.directory / "cni/10-pods.conflist").write_text(json.dumps(_NETWORK))
        self.inside("mkdir", "-p", "/run/cni", "/run/netns")
        self.start()
        self.load(namespace="k8s.io")
        self._load_pause()
        self.cri = Cri(self.path(SOCKET))
        wait_until(self.ready, what="the CRI is ready", timeout_s=30.0)

    def path(self, inside: str) -> str:
        """A path in there, for who is outside."""
        return f"/proc/{self._holder.pid}/root{inside}"

    def ready(self) -> bool:
        """Whether runtime and network are."""
        try:
            return all(condition.status for condition in self.cri.Status().status.conditions)
        except grpc.RpcError as error:  # 1.x answers before it has begun
            assert "not initialized" in str(error), error
            return False

    def _load_pause(self) -> None:
        """What containerd starts in a pod of its own runtimes. It has a name that says how it is started."""
        tree = self.directory / "pause"
        (tree / "bin").mkdir(parents=True)
        shutil.copy("/bin/busybox", tree / "bin/sleep")
        self.load_tree(tree, PAUSE, {"Entrypoint": ["/bin/sleep", "2147483647"], "Env": ["PATH=/bin"]})

    def load_tree(self, tree: Path, tag: str, config: dict[str, Any]) -> None:
        """Have an image of what is in a directory."""
        store, archive = ImageStore(self.directory / f"{tree.name}.images"), self.directory / f"{tree.name}.tar"
        image_from_tree(store, tree, tag=tag, config=config, created_s=0, progress=silent)
        with archive.open("wb") as file:
            store.export(ImageExport(refs=(tag,)), file)
        self.ctr("images", "import", str(archive), namespace="k8s.io")

    def load_modules(self) -> None:
        """Have an image, `MODULES`, whose programs are modules, and one a component."""
        tree = guests.make_rootfs(self.directory / "modules")
        guests.component(tree / "bin/suite.wasm", tree / "bin/component.wasm")
        self.load_tree(tree, MODULES, {"Entrypoint": ["/bin/echo"], "Cmd": ["the", "entry"], "Env": ["PATH=/bin"]})

    def serve_registry(self) -> str:
        """Start a registry in there, at a port of the loopback; "HOST:PORT" to `push` to."""
        directory = self.directory / "registry"
        directory.mkdir()
        config = {
            "version": "0.1", "log": {"level": "error"}, "http": {"addr": REGISTRY},
            "storage": {"filesystem": {"rootdirectory": str(directory / "data")}},
        }  # fmt: skip
        (directory / "registry.json").write_text(json.dumps(config))
        self.serve_too("docker-registry", "serve", str(directory / "registry.json"), log="registry.log")
        wait_until(self._registry_listens, what="the registry listens", timeout_s=60.0)
        return REGISTRY

    def _registry_listens(self) -> bool:
        host, _, port = REGISTRY.partition(":")
        try:
            self.connect(host, int(port)).close()
        except OSError:
            return False
        return True

    def push(self, name: str) -> None:
        """Send an image of our own store to the registry that its name begins with."""
        sent = self.drupe("image", "push", "--insecure", name)
        assert sent.returncode == 0, sent.stderr

    # -- pods ---------------------------------------------------------------------------------------------------

    def pod(self, name: str, handler: str, **fields: Any) -> tuple[str, Any]:
        """Run a pod; its id and its configuration."""
        shutil.rmtree(self.logs / name, ignore_errors=True)
        config = pod_config(name, self.logs / name, cgroup_parent=CGROUP, **fields)
        return self.cri.run_pod(config, handler), config

    def run(self, pod: tuple[str, Any], name: str, *command: str, **fields: Any) -> str:
        """Create and start a container; its id."""
        return self.cri.run(pod[0], container_config(name, *command, **{"image": IMAGE, **fields}), pod[1])

    def log(self, pod: str, name: str) -> list[str]:
        """The lines of a container's log, without time and stream."""
        lines = (self.logs / pod / f"{name}.log").read_text().splitlines()
        return [line.split(" ", 3)[3] for line in lines]

    def answers(self, pod: str) -> bool:
        """Whether containerd says how a pod is: it takes a moment after a restart of our daemon."""
        with contextlib.suppress(grpc.RpcError):
            return bool(self.cri.pod_state(pod))
        return False

    def wait_seen(self, container: str, *programs: str) -> str:
        """Until all of them run in its process table, as ps shows that; what is started executes a moment later."""
        shown = ""

        def seen() -> bool:
            nonlocal shown
            shown = self.cri.exec(container, "ps", "-o", "pid,args")
            return all(program in shown for program in programs)

        wait_until(seen, what=f"{programs} run")
        return shown

    def pods_of_drupe(self) -> list[PodStatus]:
        """All that our daemon has, whoever owns them."""
        with Client.connect(self.path("/run/drupe/drupe.sock")) as client:
            return list(client.call("pod.list", ListFilter(all_owners=True), timeout_s=30).pods)

    def stream(self, url: str) -> Channels:
        """The streams behind a URL that the CRI answered."""
        address = urlsplit(url)
        assert address.hostname and address.port
        return Channels(url, self.connect(address.hostname, address.port))

    def connect(self, host: str, port: int) -> socket.socket:
        """A TCP connection of a process in there. Raises OSError."""
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(self._connect, host, port).result()

    def _connect(self, host: str, port: int) -> socket.socket:
        libc = ctypes.CDLL(None, use_errno=True)
        with Path(f"/proc/{self._holder.pid}/ns/net").open() as namespace:
            assert libc.setns(namespace.fileno(), _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        return socket.create_connection((host, port), timeout=30)

    def close(self) -> None:
        try:
            with contextlib.suppress(AttributeError):
                self.cri.remove_all()
                self.cri.close()
        finally:
            super().close()
        for parent in self._made:
            with contextlib.suppress(OSError):  # one that is in use is for the leak checker to tell
                parent.rmdir()


def opened(
    directory: Path, generation: str, store: Path, *, before: Callable[[CriHost], object] = lambda _: None
) -> Iterator[CriHost]:
    """A host for as long as a fixture lives. before: what is done before it opens. Skips where there is no containerd
    of that version."""
    needs_containerd(VERSIONS[generation])
    place = CriHost(directory, VERSIONS[generation], store)
    try:
        before(place)
        place.open()
        yield place
    finally:
        place.close()


def needs_handler(name: str) -> str:
    """The name of a handler; skips where its kind cannot be."""
    if name.endswith("gvisor"):
        needs_program("runsc")
    if name.endswith("wasm"):
        pytest.importorskip("wasmtime")
    if name == "newer-runc" and not NEWER_RUNC.exists():
        pytest.skip("runc 1.3 is not there (scripts/setup.sh --tests fetches it)")
    return name


def _handlers(version: Version) -> str:
    if version.config == 2:
        return "".join(_HANDLER_V2.format(name=name) for name in _HANDLERS_V2)
    more = _MORE_HANDLERS_V3.format(command=COMMAND, newer_runc=NEWER_RUNC)
    return _SANDBOXER + "".join(_HANDLER_V3.format(name=name) for name in HANDLERS) + more


def _parents() -> list[Path]:
    """The pods' parent cgroup, in each hierarchy."""
    return [each.parent / CGROUP[1:] for each in Path("/sys/fs/cgroup").glob("*/cgroup.procs")]
