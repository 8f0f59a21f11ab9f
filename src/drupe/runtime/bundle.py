"""What the runtime decides for a container's OCI config: which host paths, namespaces, devices and limits it gets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from drupe.errors import Unsupported
from drupe.images.config import ImageConfig
from drupe.oci.build import BuildInputs, build_container, image_volumes
from drupe.oci.users import ResolvedUser
from drupe.runtime.binds import binds_of, places
from drupe.runtime.hostfiles import FILES
from drupe.sandboxers.runc.infra import find_init
from drupe.spec.container import IDLE, VFIO, ContainerSpec, Mount
from drupe.spec.pod import PodSpec

if TYPE_CHECKING:
    from drupe.runtime.container import Container
    from drupe.runtime.storage import Storage


def build(storage: Storage, container: Container, image: ImageConfig, user: ResolvedUser) -> dict[str, Any]:
    """config.json of one container; what the host could only meet in part is noted on the node."""
    spec = container.spec
    if spec.annotations.get(IDLE) == "true":
        spec = _idle(spec)
    inputs = _inputs(storage, container, spec, image)
    built = build_container(pod=container.pod.spec, container=spec, image=image, user=user, inputs=inputs)
    for note in built.notes:
        container.node.note(f"{container.what}: {note}")
    container.spec = with_defaults(container, image)
    return built.config


def volume_mounts(spec: ContainerSpec, image: ImageConfig) -> list[Mount]:
    """Volumes asked for, and those that the image declares and nothing covers."""
    asked = [mount for mount in spec.mounts if mount.type == "volume"]
    return asked + [Mount(type="volume", target=target) for target in image_volumes(spec, image)]


def _inputs(storage: Storage, container: Container, spec: ContainerSpec, image: ImageConfig) -> BuildInputs:
    pod = container.pod
    limits = container.node.cgroups.resources_to_oci(spec.resources)
    devices, rules = _devices(spec)
    user = pod.spec.namespaces.user
    return BuildInputs(
        container_id=container.id,
        rootfs=str(storage.rootfs(container)),
        hostname=pod.hostname,
        cgroups_path=container.cgroup,
        namespaces=_namespaces(pod.info.namespaces),
        mounts=tuple(_own_mounts(storage, container, image)),
        sources=sources(storage, container),
        devices=devices,
        device_rules=rules,
        resources=limits,
        hooks=pod.spec.hooks,
        init=find_init() if spec.init and spec.annotations.get(IDLE) != "true" else "",
        uid_maps=user.uids if user else (),
        gid_maps=user.gids if user else (),
        sysctls_applied=bool(pod.info.namespaces),
    )


def _namespaces(paths: dict[str, str]) -> dict[str, str | None]:
    return dict(paths)


def _own_mounts(storage: Storage, container: Container, image: ImageConfig) -> list[dict[str, Any]]:
    pod = container.pod
    mounts = name_mounts(storage, container)
    if pod.spec.namespaces.ipc == "pod":
        mounts.append(shm_mount(storage, container))
    mounts += secret_and_volume_mounts(storage, container, image)
    if container.spec.annotations.get(IDLE) == "true":
        mounts.append(_bind(Path(find_init()), "/.drupe-idle", "ro"))
    return mounts


def name_mounts(storage: Storage, container: Container) -> list[dict[str, Any]]:
    """The files that say what names mean."""
    directory = storage.paths.pod(container.pod.id)
    return [_bind(directory / name, target) for name, target in FILES.items()]


def shm_mount(storage: Storage, container: Container) -> dict[str, Any]:
    """The pod's shared memory."""
    return _bind(storage.paths.pod(container.pod.id) / "shm", "/dev/shm")  # noqa: S108 the container's, not ours


def secret_and_volume_mounts(storage: Storage, container: Container, image: ImageConfig) -> list[dict[str, Any]]:
    """Secrets, and the volumes that the image asks for."""
    mounts = []
    for secret in container.spec.secrets:
        target = secret.target or f"/run/secrets/{secret.name}"
        mounts.append(_bind(container.bundle / "secrets" / secret.name, target, "ro"))
    for mount in volume_mounts(container.spec, image):
        if mount not in container.spec.mounts:
            mounts.append(_bind(Path(storage.volume_path(container, mount)), mount.target))
    return mounts


def _bind(source: Path, target: str, *options: str) -> dict[str, Any]:
    return {"destination": target, "type": "bind", "source": str(source), "options": ["rbind", "rprivate", *options]}


def sources(storage: Storage, container: Container) -> dict[str, str]:
    """Mount target to host path, for the container's own mounts."""
    found = {}
    images = 0
    for mount, place in zip(binds_of(container.spec), places(container.bundle, container.spec), strict=True):
        found[mount.target] = str(place)
    for mount in container.spec.mounts:
        if mount.type == "volume":
            found[mount.target] = storage.volume_path(container, mount)
        elif mount.type == "image":
            found[mount.target] = str(container.bundle / f"image-{images}")
            images += 1
    return found


def _devices(spec: ContainerSpec) -> tuple[tuple[dict[str, Any], ...], tuple[dict[str, Any], ...]]:
    from drupe.resources.devices import host_devices, resolve_devices

    if spec.security.privileged:
        return host_devices(), ()
    nodes = [device for device in spec.devices if not device.path.startswith(VFIO)]
    return resolve_devices(nodes) if nodes else ((), ())


def _idle(spec: ContainerSpec) -> ContainerSpec:
    """Nothing runs but a reaper."""
    return msgspec.structs.replace(spec, entrypoint=(), argv=("/.drupe-idle", "-P"), init=False, user="0")


def with_defaults(container: Container, image: ImageConfig) -> ContainerSpec:
    """The spec with what the image says of the time after the start: kept in the journal, as the image may be gone."""
    from drupe.oci.signals import parse_signal

    spec = container.spec
    parse_signal(image.stop_signal or "TERM")
    checked = container.pod.sandboxer.capabilities().get("exec") == "yes" and spec.annotations.get(IDLE) != "true"
    return msgspec.structs.replace(
        spec,
        stop_signal=spec.stop_signal or image.stop_signal or None,
        health=spec.health or (image.healthcheck if checked else None),
    )


def refuse_unsupported(spec: PodSpec) -> None:
    """What this kind of host cannot do at all, before anything is made."""
    if spec.namespaces.user is not None and any(c.security.privileged for c in spec.containers):
        raise Unsupported("a privileged container cannot run in a user namespace", kind="runc", feature="privileged")
