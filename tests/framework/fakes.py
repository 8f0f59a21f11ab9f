"""The means of a node in memory: cgroups, files, network. Each keeps what it made, so that a test sees what is left.

They pass through one `Faults`, under "storage.…", "network.…" and "cgroups.…", and raise what a test asked for.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drupe.errors import NotFound, Unsupported
from drupe.images.config import ImageConfig
from drupe.resources.cgroups.contract import Watcher
from drupe.runtime.choosing import WISH, ImageWish
from drupe.runtime.container import Container
from drupe.runtime.paths import Paths
from drupe.runtime.pod import Pod
from drupe.sandboxers.fake import Faults
from drupe.spec import ContainerSpec, Endpoint, ExecSpec, PodSpec, PublishedPort, Resources, Stats
from drupe.spec.control import ImageInfo


class MemoryCgroups:
    """resources.cgroups.Cgroups over a dict."""

    version = 2
    controllers = frozenset({"cpu", "memory", "pids"})

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.limits: dict[str, Resources] = {}

    def check(self, resources: Resources) -> None:
        if resources.hugepages:
            raise Unsupported("no hugetlb controller here", feature="hugepages")

    def resources_to_oci(self, resources: Resources) -> dict[str, Any]:
        return {"memory": {"limit": resources.memory_bytes}} if resources.memory_bytes else {}

    def create(self, path: str, resources: Resources) -> None:
        self.faults.alive()
        self.limits[path] = resources

    def apply(self, path: str, resources: Resources) -> None:
        self._require(path)
        self.limits[path] = resources

    def verify(self, path: str, resources: Resources) -> list[str]:
        return [] if self.limits.get(path) == resources else [f"{path} is not as asked"]

    def exists(self, path: str) -> bool:
        return path in self.limits

    def children(self, path: str) -> list[str]:
        return sorted({p.removeprefix(path + "/").partition("/")[0] for p in self.limits if p.startswith(path + "/")})

    def attach(self, path: str, pid: int) -> None:
        self._require(path)

    def stats(self, path: str) -> Stats:
        self._require(path)
        return Stats(at=time.time())

    def pids(self, path: str) -> list[int]:
        return []

    def oom_kills(self, path: str) -> int:
        return 0

    def kill_all(self, path: str, signum: int = 9, *, timeout_s: float = 5.0) -> int:
        return 0

    def freeze(self, path: str, *, timeout_s: float = 5.0) -> None:
        self._require(path)

    def thaw(self, path: str, *, timeout_s: float = 5.0) -> None:
        self._require(path)

    def is_frozen(self, path: str) -> bool:
        self._require(path)
        return False

    def delete(self, path: str, *, timeout_s: float = 2.0) -> None:
        self.faults.alive()
        for known in [p for p in self.limits if p == path or p.startswith(path + "/")]:
            del self.limits[known]

    def watch(self, path: str, *, pressure: Mapping[str, float] | None = None) -> Watcher:
        raise Unsupported("nothing to watch in memory", feature="watch")

    def _require(self, path: str) -> None:
        if path not in self.limits:
            raise NotFound(f"cgroup {path} is not here")


class MemoryImages:
    """Knows the names of images, and nothing of what is in them."""

    def __init__(self, *names: str) -> None:
        self.names = set(names)

    def resolve(self, name: str) -> ImageInfo:
        if name not in self.names:
            raise NotFound(f"no image {name!r}", hint=f"drupe image pull {name}")
        return ImageInfo(id="sha256:0", digest=f"sha256:{name}", names=[name])


class MemoryStorage:
    """runtime.storage.Storage without mounts: `mounted` and `shm` hold ids of what is mounted now."""

    def __init__(self, paths: Paths, faults: Faults, images: Iterable[str] = ("busybox",)) -> None:
        self.paths = paths
        self.faults = faults
        self.images = MemoryImages(*images)
        self.mounted: set[str] = set()
        self.volumes: set[str] = set()
        self.shm: set[str] = set()

    def plan(self, spec: PodSpec) -> PodSpec:
        self.check_images(spec.containers)
        return spec

    def made_of(self, container: Container) -> dict[str, Any]:
        return {}

    def check_images(self, containers: Iterable[ContainerSpec]) -> None:
        for container in containers:
            if container.image:
                self.images.resolve(container.image)

    def image_wishes(self, containers: Iterable[ContainerSpec]) -> tuple[ImageWish, ...]:
        infos = [self.images.resolve(container.image) for container in containers if container.image]
        return tuple(ImageWish(info.names[0], info.os, info.labels.get(WISH, "")) for info in infos)

    def image_config(self, spec: ContainerSpec) -> ImageConfig:
        return ImageConfig()

    def know(self, container: Container) -> None:
        pass

    def holds_namespaces(self, pod: Pod) -> bool:
        return True

    async def mount_rootfs(self, container: Container) -> None:
        await self.faults.passing("storage.mount_rootfs")
        self.mounted.add(container.id)

    async def umount_rootfs(self, container: Container) -> None:
        await self.faults.passing("storage.umount_rootfs")
        self.mounted.discard(container.id)

    async def attach_volumes(self, container: Container) -> None:
        await self.faults.passing("storage.attach_volumes")
        self.volumes.add(container.id)

    async def release_binds(self, container: Container) -> None:
        pass

    async def detach_volumes(self, container: Container) -> None:
        await self.faults.passing("storage.detach_volumes")
        if not container.keep_volumes:
            self.volumes.discard(container.id)

    async def bundle_config(self, container: Container) -> dict[str, Any]:
        await self.faults.passing("storage.bundle_config")
        spec = container.spec
        env = ["PATH=/bin", *spec.env]
        return {"process": {"args": [*(spec.entrypoint or ()), *spec.argv], "env": env, "cwd": spec.cwd or "/"}}

    async def exec_process(self, container: Container, spec: ExecSpec) -> dict[str, Any]:
        base = container.oci["process"]
        return {"args": list(spec.argv), "env": [*base["env"], *spec.env], "cwd": spec.cwd or base["cwd"]}

    async def mount_shm(self, pod: Pod) -> None:
        await self.faults.passing("storage.mount_shm")
        self.shm.add(pod.id)

    async def umount_shm(self, pod: Pod) -> None:
        await self.faults.passing("storage.umount_shm")
        self.shm.discard(pod.id)

    async def remove_tree(self, path: Path) -> None:
        await self.faults.passing("storage.remove_tree")
        shutil.rmtree(path, ignore_errors=True)

    async def remove_pod_directory(self, path: Path) -> None:
        await self.remove_tree(path)
        self.shm.discard(path.name)

    async def recover(self, known: set[str]) -> None:
        self.mounted &= known
        self.volumes &= known

    def forget_pod(self, pod_id: str) -> None:
        pass


@dataclass
class MemoryAttached:
    """What a pod was given: resources.network.PodNetwork."""

    endpoints: list[Endpoint] = field(default_factory=list)
    ports: list[PublishedPort] = field(default_factory=list)
    dns_servers: list[str] = field(default_factory=list)
    dns_searches: list[str] = field(default_factory=list)


class MemoryNetwork:
    """resources.network.manager.NetworkManager that numbers its pods."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.attached: dict[str, MemoryAttached] = {}

    async def attach(self, pod_id: str, name: str, spec: PodSpec, netns: str) -> MemoryAttached:
        await self.faults.passing("network.attach")
        used = {pod.endpoints[0].ipv4 for pod in self.attached.values()}
        address = next(a for n in range(2, 250) if (a := f"10.0.0.{n}/24") not in used)
        ports = [
            PublishedPort(host_ip=p.host_ip, host_port=p.host_port or 49152, container_port=p.container_port,
                          protocol=p.protocol)
            for p in spec.ports
        ]  # fmt: skip
        self.attached[pod_id] = MemoryAttached([Endpoint(network="default", ipv4=address)], ports, ["10.0.0.1"])
        return self.attached[pod_id]

    async def detach(self, pod_id: str) -> None:
        await self.faults.passing("network.detach")
        self.attached.pop(pod_id, None)

    async def stats(self, pod_id: str) -> None:
        await asyncio.sleep(0)

    async def recover(self, known: set[str]) -> None:
        for pod_id in set(self.attached) - known:
            await self.detach(pod_id)

    async def close(self) -> None:
        pass
