"""Containers that are WebAssembly modules: what of an image they need, and their OCI config.

An image that holds nothing but its module needs no root: the module is read where it lies in the store, and the guest
gets no files but those that are mounted.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drupe.images.config import ImageConfig
from drupe.images.store import ImageStore
from drupe.oci import process
from drupe.oci.host import host_limits
from drupe.oci.mounts import user_mounts
from drupe.oci.users import ResolvedUser
from drupe.runtime import bundle
from drupe.sandboxers.wasm import settings
from drupe.spec.container import IDLE, ContainerSpec
from drupe.spec.control import ImageInfo

if TYPE_CHECKING:
    from drupe.runtime.container import Container
    from drupe.runtime.storage import Storage

_FEW = 16  # entries that an image may have and still be looked through


class OwnModules:
    """The modules of images that are nothing else, by image; found once each."""

    def __init__(self, images: ImageStore) -> None:
        self._images = images
        self._known: dict[str, Path | None] = {}

    def of(self, spec: ContainerSpec) -> Path | None:
        """The module's file in the store; None when the container has a root."""
        if not spec.image:
            return None
        info = self._images.resolve(spec.image)
        if info.digest not in self._known:
            self._known[info.digest] = self._find(info)
        return self._known[info.digest]

    def _find(self, info: ImageInfo) -> Path | None:
        if info.module:
            return self._images.module_path(info)
        files = [path for lower in self._images.lower_dirs(info) for path in _regular_files(lower)]
        entrypoint = self._images.config(info).entrypoint
        alone = len(files) == 1 and entrypoint and files[0].name == os.path.basename(entrypoint[0])  # noqa: PTH119
        return files[0] if alone else None


def _regular_files(directory: Path) -> list[Path]:
    """All that is not a directory below it; two or more stand for any number."""
    found: list[Path] = []
    for seen, path in enumerate(directory.rglob("*")):
        mode = path.lstat().st_mode
        if not stat.S_ISDIR(mode):
            found.append(path)
        if seen > _FEW or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            found += [directory, directory]
        if len(found) > 1:
            return found[:2]
    return found


def build(storage: Storage, container: Container, image: ImageConfig, user: ResolvedUser) -> dict[str, Any]:
    """The config of one container, in the OCI's form, with what concerns modules and nothing else."""
    spec, pod = container.spec, container.pod
    annotations = {**pod.spec.annotations, **spec.annotations}
    settings.check(annotations)
    own = storage.own_module(container)
    if own is not None:
        annotations[settings.MODULE] = str(own)
    if settings.MEMORY not in annotations and spec.resources.memory_bytes is not None:
        annotations[settings.MEMORY] = str(max(0, spec.resources.memory_bytes - settings.OVERHEAD_BYTES))
    container.spec = bundle.with_defaults(container, image)
    return {
        "process": _process(container, image, user),
        "root": {"path": "" if own is not None else str(storage.rootfs(container)), "readonly": spec.read_only},
        "mounts": _mounts(storage, container, image),
        "annotations": annotations,
        "linux": {
            "namespaces": [{"type": kind, "path": path} for kind, path in pod.info.namespaces.items()],
            "cgroupsPath": container.cgroup,
        },
    }


def _process(container: Container, image: ImageConfig, user: ResolvedUser) -> dict[str, Any]:
    spec = container.spec
    rlimits, notes = process.oci_rlimits(spec.rlimits, host_limits())
    oom, more = process.oci_oom_score_adj(spec.oom_score_adj, host_limits())
    for note in (*notes, *more):
        container.node.note(f"{container.what}: {note}")
    cwd = process.container_cwd(spec, image)
    env = process.container_env(spec, image, hostname=container.pod.hostname, user=user)
    made: dict[str, Any] = {
        "terminal": spec.tty,
        "user": process.oci_user(user),
        "args": ["idle"] if spec.annotations.get(IDLE) == "true" and not _argv(spec, image) else _argv(spec, image),
        "env": env if cwd == "/" else [*env, f"PWD={cwd}"],
        "cwd": cwd,
    }
    if rlimits:
        made["rlimits"] = rlimits
    return made if oom is None else made | {"oomScoreAdj": oom}


def _argv(spec: ContainerSpec, image: ImageConfig) -> list[str]:
    if spec.annotations.get(IDLE) == "true":
        return list(image.entrypoint)  # nothing of it runs; its name is what an exec may call the module by
    return process.container_argv(spec, image)


def _mounts(storage: Storage, container: Container, image: ImageConfig) -> list[dict[str, Any]]:
    own = bundle.secret_and_volume_mounts(storage, container, image)
    if container.pod.spec.network.mode != "none":
        own += bundle.name_mounts(storage, container)
    mounts = {mount["destination"]: mount for mount in own}
    for mount in user_mounts(container.spec.mounts, bundle.sources(storage, container)):
        mounts[mount["destination"]] = mount
    return sorted(mounts.values(), key=lambda mount: str(mount["destination"]).count("/"))
