"""The files of pods and containers: root file systems, /dev/shm, volumes, secrets. Mounts are made by the keeper, in
its
own mount namespace; this process sees them below /proc/<keeper>/root (`view`)."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drupe.errors import DrupeError, InvalidArgument, InvalidState, NotFound
from drupe.images.config import ImageConfig
from drupe.images.erofs import erofs_of
from drupe.images.files import remove_tree, tree_bytes
from drupe.images.rootfs import EMPTY_LAYER, RootfsPlan, plan_rootfs
from drupe.images.store import ImageStore
from drupe.keeper.client import Keeper
from drupe.keeper.records import Mount as KeeperMount
from drupe.oci.programs import check_process, check_program
from drupe.oci.users import ResolvedUser, resolve_user
from drupe.resources.volumes import Volumes
from drupe.runtime import binds, bundle, bundled, modules
from drupe.runtime.choosing import WISH, ImageWish
from drupe.runtime.idmap import check_reachable, shift_ids
from drupe.runtime.modules import OwnModules
from drupe.runtime.paths import Paths
from drupe.spec.container import ContainerSpec, ExecSpec, Mount
from drupe.spec.pod import IdMap, PodSpec, UserNamespace, root_ids
from drupe.state.machine import State

if TYPE_CHECKING:
    from drupe.runtime.container import Container
    from drupe.runtime.pod import Pod

USER_RANGE = 65536
COPY_TIMEOUT_S = 600.0
FIRST_USER = 1_000_000  # host ids below are left to people and services


class Storage:
    """One per node."""

    def __init__(self, *, paths: Paths, keeper: Keeper, images: ImageStore, volumes: Volumes) -> None:
        self.paths = paths
        self.images = images
        self.volumes = volumes
        self._keeper = keeper
        self._user_ranges: dict[str, int] = {}
        self._modules = OwnModules(images)

    @property
    def keeper(self) -> Keeper:
        return self._keeper

    @property
    def keeper_pid(self) -> int:
        return self._keeper.pid

    # -- planning -----------------------------------------------------------------------------------------------

    def plan(self, spec: PodSpec) -> PodSpec:
        """Check images and choose the user namespace's ids. NotFound for a missing image."""
        import msgspec

        self.check_images(spec.containers)
        user = spec.namespaces.user
        if user is None:
            return spec
        check_reachable(self.paths.run)
        check_reachable(self.paths.root)
        if user.uids:
            return spec
        base = self._free_user_range()
        ids = (IdMap(inside=0, outside=base, count=USER_RANGE),)
        spaces = msgspec.structs.replace(spec.namespaces, user=UserNamespace(uids=ids, gids=ids))
        self._user_ranges[str(spec.id)] = base
        return msgspec.structs.replace(spec, namespaces=spaces)

    def check_images(self, containers: Iterable[ContainerSpec]) -> None:
        for container in containers:
            if container.image:
                self.images.resolve(container.image)
            for mount in container.mounts:
                if mount.type == "image":
                    self.images.resolve(mount.source)

    def image_wishes(self, containers: Iterable[ContainerSpec]) -> tuple[ImageWish, ...]:
        """What the containers' images say of the kind they are made for. NotFound for a missing image."""
        named = [container.image for container in containers if container.image]
        infos = [self.images.resolve(ref) for ref in named]
        return tuple(ImageWish(ref, info.os, info.labels.get(WISH, "")) for ref, info in zip(named, infos, strict=True))

    def image_config(self, spec: ContainerSpec) -> ImageConfig:
        if not spec.image:
            return ImageConfig()
        return self.images.config(self.images.resolve(spec.image))

    def know(self, container: Container) -> None:
        """Remember what a container from the journal uses."""
        user = container.pod.spec.namespaces.user
        if user is not None and user.uids:
            self._user_ranges[container.pod.id] = user.uids[0].outside

    # -- root file systems --------------------------------------------------------------------------------------

    def view(self, path: Path) -> Path:
        """A path of the keeper's mount namespace as this process can open it."""
        return Path(f"/proc/{self._keeper.pid}/root{path}")

    def users_of(self, pod: Pod) -> str:
        """The path of its user namespace, as this process can open it; "": it has none."""
        pinned = pod.info.namespaces.get("user", "")
        return str(self.view(Path(pinned))) if pinned else ""

    def holds_namespaces(self, pod: Pod) -> bool:
        """Whether the pod's namespaces are still pinned where they were: they end with the keeper's mounts."""
        directory = self.paths.pod(pod.id)
        pins = [Path(path) for path in pod.info.namespaces.values() if Path(path).is_relative_to(directory)]
        return all(self._is_mounted(pin) for pin in pins)

    def _is_mounted(self, target: Path) -> bool:
        """Whether a file system of its own is at `target`, as the keeper sees it."""
        try:
            return self.view(target).stat().st_dev != self.view(target.parent).stat().st_dev
        except OSError:
            return False

    def own_module(self, container: Container) -> Path | None:
        """The module of a container that has no root, because its image is that and nothing else."""
        return self._modules.of(container.spec) if container.runs_modules else None

    def rootfs(self, container: Container) -> Path:
        """Where its root is, or will be."""
        return Path(container.spec.rootfs) if container.spec.rootfs else container.bundle / "rootfs"

    async def mount_rootfs(self, container: Container) -> None:
        """Overlay of the image's layers and the container's own; and the memory its secrets live in. What is mounted
        stays: a stopped container's mounts are missing only when their keeper ended."""
        mounts: list[KeeperMount] = []
        spec = container.spec
        if spec.bundle is not None:
            await bundled.mount_root(self._keeper, container, users=self.users_of(container.pod))
            return
        if spec.image and self.own_module(container) is not None:
            container.status.image_digest = self.images.resolve(spec.image).digest
        elif spec.image:
            mounts.append(self._overlay(container))
            await self._fill_from_origin(container)
        if spec.secrets:
            secrets = container.bundle / "secrets"
            secrets.mkdir(mode=0o700, exist_ok=True)
            mounts.append(KeeperMount(source="ramfs", target=str(secrets), fstype="ramfs", data="mode=0700"))
        for number, mount in enumerate(_image_mounts(spec)):
            mounts.append(self._image_mount(container, number, mount))
        missing = [mount for mount in mounts if not self._is_mounted(Path(mount.target))]
        if missing:
            await self._keeper.mount(missing)
        if missing and self._needs_filling(container):
            await asyncio.to_thread(self._fill, container)

    async def image_file(self, container: Container) -> Path | None:
        """Its image as one EROFS file, made when the image is first asked for; None for a container without one."""
        if not container.spec.image:
            return None
        info = self.images.resolve(container.spec.image)
        return await asyncio.to_thread(erofs_of, self.images, info)

    async def umount_rootfs(self, container: Container) -> None:
        targets = [container.bundle / "rootfs", container.bundle / "secrets"]
        targets += [container.bundle / f"image-{n}" for n, _ in enumerate(_image_mounts(container.spec))]
        targets += binds.places(container.bundle, container.spec)
        # lazy: a transfer that waits for its caller holds the root, and must not keep it from being deleted
        await self._keeper.umount([str(target) for target in targets], lazy=True)

    def _overlay(self, container: Container) -> KeeperMount:
        """volatile: what dies with its pod need not be synced when unmounted."""
        info = self.images.resolve(container.spec.image)
        container.status.image_digest = info.digest
        pod = container.pod.spec
        plan = plan_rootfs(
            self.images,
            info,
            self.paths.layer(container.id),
            target=container.bundle / "rootfs",
            volatile=pod.remove,
            metacopy=pod.namespaces.user is not None,
        )
        plan.prepare()
        return _keeper_mount(plan)

    async def _fill_from_origin(self, container: Container) -> None:
        """What a restored container had written, before anything looks at its root."""
        origin = container.pod.origin
        if origin is not None and container.state is State.CREATING:
            await self.copy(origin.layer(container.name), self.paths.layer(container.id) / "upper")

    async def copy(self, source: Path, target: Path) -> None:
        """A whole tree with owners, times, attributes and holes; in `target`, which may exist."""
        target.mkdir(parents=True, exist_ok=True)
        argv = ["cp", "-a", "--reflink=auto", "--sparse=always", f"{source}/.", str(target)]
        await self._keeper.run(argv, timeout_s=COPY_TIMEOUT_S, check=True)

    def made_of(self, container: Container) -> dict[str, Any]:
        """Image and upper directory of a container's root, for its `TaskConfig`; nothing where it is of anything
        else."""
        spec, user = container.spec, container.pod.spec.namespaces.user
        if not spec.image or spec.bundle is not None or user is not None:
            return {}
        return {"image_digest": container.status.image_digest, "upper": self.paths.layer(container.id) / "upper"}

    def _image_mount(self, container: Container, number: int, mount: Mount) -> KeeperMount:
        info = self.images.resolve(mount.source)
        target = container.bundle / f"image-{number}"
        plan = plan_rootfs(self.images, info, container.bundle, target=target, read_only=True)
        plan.prepare()
        return _keeper_mount(plan)

    def _needs_filling(self, container: Container) -> bool:
        return bool(container.spec.secrets) or container.pod.spec.namespaces.user is not None

    def _fill(self, container: Container) -> None:
        """Write secrets into their memory, and give the root to the user namespace's ids."""
        uid0, gid0 = root_ids(container.pod.spec)
        is_new = container.state is State.CREATING
        if not is_new and container.spec.secrets and not any(secret.value for secret in container.spec.secrets):
            raise InvalidState(
                f"{container.what} has lost its secrets: they live in memory only", hint="create it anew"
            )
        for secret in container.spec.secrets:
            path = self.view(container.bundle / "secrets" / secret.name)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, secret.mode)
            with os.fdopen(descriptor, "wb") as file:
                file.write(secret.value)
                os.fchown(file.fileno(), uid0 + secret.uid, gid0 + secret.gid)
        if is_new and container.pod.spec.namespaces.user is not None and container.spec.image:
            shift_ids(self.view(container.bundle / "rootfs"), uid0, gid0)

    # -- volumes ------------------------------------------------------------------------------------------------

    async def attach_volumes(self, container: Container) -> None:
        """Make what is missing; a new volume takes over what the image has at its target, as Docker does."""
        used: list[dict[str, Any]] = []
        for mount in bundle.volume_mounts(container.spec, self.image_config(container.spec)):
            name = mount.source or anonymous_name(container.id, mount.target)
            info, made = self.volumes.ensure(name, anonymous=not mount.source)
            used.append({"type": "volume", "name": name, "source": info.path, "target": mount.target})
            if (copy := self._origin_of(container, mount)) is not None:
                await self.copy(copy, Path(info.path))
            elif made or _is_untouched(info.path):
                await asyncio.to_thread(self._copy_up, container, mount.target, Path(info.path))
        used += [
            {"type": m.type, "source": m.source, "target": m.target, "read_only": m.read_only}
            for m in container.spec.mounts
            if m.type != "volume"
        ]
        container.status.mounts = used

    async def detach_volumes(self, container: Container) -> None:
        """Anonymous volumes end with their container."""
        for mount in bundle.volume_mounts(container.spec, self.image_config_or_none(container.spec)):
            if not mount.source and not container.keep_volumes:
                name = anonymous_name(container.id, mount.target)
                await asyncio.to_thread(self.volumes.delete, name, used_by=[], force=True)

    def _origin_of(self, container: Container, mount: Mount) -> Path | None:
        """What an anonymous volume of a restored container held."""
        origin = container.pod.origin
        return None if origin is None or mount.source else origin.volume(container.name, mount.target)

    def anonymous_targets(self, container: Container) -> list[str]:
        """Where a container's anonymous volumes are mounted."""
        mounts = bundle.volume_mounts(container.spec, self.image_config(container.spec))
        return [mount.target for mount in mounts if not mount.source]

    def anonymous_volumes(self, container: Container) -> list[Path]:
        """Their directories, in the same order."""
        targets = self.anonymous_targets(container)
        return [self.volumes.path(anonymous_name(container.id, target)) for target in targets]

    def volume_path(self, container: Container, mount: Mount) -> str:
        return str(self.volumes.path(mount.source or anonymous_name(container.id, mount.target)))

    def image_config_or_none(self, spec: ContainerSpec) -> ImageConfig:
        """For undoing: the image may be gone by now, and then it names no volumes."""
        try:
            return self.image_config(spec)
        except DrupeError:
            return ImageConfig()

    def _copy_up(self, container: Container, target: str, volume: Path) -> None:
        from drupe.resources.archives import copy_tree

        uid0, gid0 = root_ids(container.pod.spec)
        os.chown(volume, uid0, gid0)
        if self.own_module(container) is not None:
            return  # an image without files has none to bring
        with self.root_fd(container) as root:
            copy_tree(root, target, volume)

    async def release_binds(self, container: Container) -> None:
        """The task is made, or not: what it was to bind is no longer needed."""
        await binds.release(self._keeper, container.bundle, container.spec)

    # -- the container's configuration --------------------------------------------------------------------------

    async def bundle_config(self, container: Container) -> dict[str, Any]:
        """The OCI config.json of a container, complete."""
        if container.spec.bundle is not None:
            await binds.attach(
                self._keeper, container.bundle, container.spec, container.trees, users=self.users_of(container.pod)
            )
            return bundled.build(container)
        image = self.image_config(container.spec)
        await binds.attach(self._keeper, container.bundle, container.spec, users=self.users_of(container.pod))
        with self._names_fd(container) as root:
            user = resolve_user(root, container.spec.user or image.user or None, container.spec.groups)
            if container.runs_modules:
                return modules.build(self, container, image, user)
            config = bundle.build(self, container, image, user)
            if not container.spec.init:  # that is what starts, and it is mounted
                check_program(root, config["process"], covered=_destinations(config))
        return config

    async def exec_process(self, container: Container, spec: ExecSpec) -> dict[str, Any]:
        """The OCI process of an exec. NotFound, PermissionDenied when the container cannot run it."""
        from drupe.oci.exec import build_process

        base = container.oci["process"]
        with self._names_fd(container) as root:
            user = _own_user(base) if spec.user is None else resolve_user(root, spec.user)
            process = build_process(base, spec, user)
            if not container.runs_modules:  # a module is looked for by its sandboxer, and need not be executable
                check_process(root, process, covered=_mounts_unseen(container, root))
        return process

    @contextlib.contextmanager
    def _names_fd(self, container: Container) -> Iterator[int]:
        """The root in which users and groups have their names; an empty one where there is none."""
        if self.own_module(container) is None:
            with self.root_fd(container) as root:
                yield root
            return
        root = _open_directory(self.images.root / EMPTY_LAYER)
        try:
            yield root
        finally:
            os.close(root)

    @contextlib.contextmanager
    def root_fd(self, container: Container) -> Iterator[int]:
        """An O_PATH descriptor of the container's root: its live root while it runs (with all its mounts), else the
        mounted layers. InvalidState-like NotFound when there is none."""
        root = self._open_root(container)
        try:
            yield root
        finally:
            os.close(root)

    def _open_root(self, container: Container) -> int:
        if self.own_module(container) is not None:
            return self._open_mounts(container)
        path = self.rootfs(container)
        try:
            layers = _open_directory(path if container.spec.rootfs else self.view(path))
        except OSError as error:
            raise NotFound(f"{container.what} has no root file system now", cause=str(error)) from None
        try:
            live = _open_directory(Path(f"/proc/{container.status.pid if container.is_live else 0}/root"))
        except OSError:
            return layers
        # another one when the workload moved to another root, or has ended and its pid is another's
        same = os.path.samestat(os.fstat(live), os.fstat(layers))
        os.close(layers if same else live)
        return live if same else layers

    def _open_mounts(self, container: Container) -> int:
        """The root of a container that has nothing but mounts, while it runs."""
        if container.is_live and container.oci.get("mounts"):
            with contextlib.suppress(OSError):
                return _open_directory(Path(f"/proc/{container.status.pid}/root"))
        raise NotFound(
            f"{container.what} has no files: its image is a module and nothing else",
            hint="mount a volume or a directory, and have it running",
        )

    # -- pods ---------------------------------------------------------------------------------------------------

    async def mount_shm(self, pod: Pod) -> None:
        """One /dev/shm for the pod, as its containers share System V and POSIX IPC alike."""
        if pod.spec.namespaces.ipc == "host" or pod.sandboxer.runs_modules or (pod.spec.owner and not pod.held):
            return  # bundles bring their own
        target = self.paths.pod(pod.id) / "shm"
        target.mkdir(mode=0o755, exist_ok=True)
        if pod.sandboxer.own_shm or self._is_mounted(target):
            return
        size = max((c.shm_size_bytes for c in pod.spec.containers), default=64 * 1024 * 1024)
        uid0, gid0 = root_ids(pod.spec)
        data = f"mode=1777,size={size}" + (f",uid={uid0},gid={gid0}" if uid0 else "")
        flags = ("nosuid", "nodev", "noexec")
        await self._keeper.mount(
            [KeeperMount(source="shm", target=str(target), fstype="tmpfs", flags=flags, data=data)]
        )
        if pod.origin is not None:
            await self.copy(pod.origin.shm, target)

    async def umount_shm(self, pod: Pod) -> None:
        target = self.paths.pod(pod.id) / "shm"
        if not pod.sandboxer.own_shm or self._is_mounted(target):  # what an earlier version has mounted goes, too
            await self._keeper.umount([str(target)])

    async def remove_tree(self, path: Path) -> None:
        """Remove a directory of ours. Idempotent. In a thread: on a busy disk it can take many milliseconds."""
        if path.exists():
            await asyncio.to_thread(remove_tree, path)

    async def remove_pod_directory(self, path: Path) -> None:
        """An orphan: unmount all below it, unpin its namespaces, remove it."""
        await self._keeper.release((path / "ns").resolve())  # a link where they were made ahead
        mounts = [str(path / "shm")]
        for entry in path.iterdir():
            if entry.is_dir():
                mounts += [str(mount) for name in ("rootfs", "secrets", "image-*") for mount in entry.glob(name)]
        await self._keeper.umount(mounts)
        await self.remove_tree(path)

    async def recover(self, known: set[str]) -> None:
        """After a restart: anonymous volumes of containers that are gone go too."""
        for info in self.volumes.list():
            owner = info.name.partition("-")[0]
            if info.anonymous and owner not in known:
                await asyncio.to_thread(self.volumes.delete, info.name, used_by=[], force=True)

    def layer_bytes(self, container_id: str) -> int:
        """Disk space of a container's own layer and log."""
        return tree_bytes(self.paths.layer(container_id))

    def forget_pod(self, pod_id: str) -> None:
        self._user_ranges.pop(pod_id, None)

    def _free_user_range(self) -> int:
        used = set(self._user_ranges.values())
        base = FIRST_USER
        while base in used:
            base += USER_RANGE
        if base > 2**32 - USER_RANGE:
            raise InvalidArgument("no range of user ids is free")
        return base


def anonymous_name(container_id: str, target: str) -> str:
    """Of a volume that nobody named; starts with its container's id."""
    import hashlib

    return f"{container_id}-{hashlib.sha256(target.encode()).hexdigest()[:12]}"


def _open_directory(path: Path) -> int:
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _keeper_mount(plan: RootfsPlan) -> KeeperMount:
    mount = plan.mount()
    return KeeperMount(**{**mount, "flags": tuple(mount["flags"])})


def _image_mounts(spec: ContainerSpec) -> list[Mount]:
    return [mount for mount in spec.mounts if mount.type == "image"]


def _mounts_unseen(container: Container, root: int) -> list[str]:
    """Where mounts lie that this root does not show: it is not that of a process of the host's."""
    with contextlib.suppress(OSError):
        if os.path.samestat(Path(f"/proc/{container.status.pid}/root").stat(), os.fstat(root)):
            return []
    return _destinations(container.oci)


def _destinations(oci: dict[str, Any]) -> list[str]:
    return [str(mount["destination"]) for mount in oci.get("mounts", ()) if mount["destination"] != "/"]


def _own_user(process: dict[str, Any]) -> ResolvedUser:
    own = process["user"]
    home = next((word[5:] for word in process.get("env", ()) if word.startswith("HOME=")), "/")
    return ResolvedUser(uid=own["uid"], gid=own["gid"], groups=tuple(own.get("additionalGids", ())), home=home, name="")


def _is_untouched(volume: str) -> bool:
    """Whether nobody has used a volume yet: it is empty, and root's as it was made."""
    path = Path(volume)
    found = path.stat()
    return (found.st_uid, found.st_gid) == (0, 0) and not any(path.iterdir())
