"""The writable layer of a container: what it has changed of its image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drupe.errors import InvalidState, Unsupported
from drupe.images.changes import Change, changes

if TYPE_CHECKING:
    from drupe.runtime.container import Container

_FIELDS = {"entrypoint": "Entrypoint", "argv": "Cmd", "cwd": "WorkingDir", "user": "User", "stop_signal": "StopSignal"}


@dataclass(frozen=True, slots=True)
class Layer:
    """upper: the layer itself. merged: the container's whole root, as this process reaches it."""

    upper: Path
    merged: Path


def layer_of(container: Container) -> Layer:
    """Raises Unsupported for a container without one of its own on the host, InvalidState when it is not mounted."""
    storage = container.node.storage
    if not container.spec.image or storage.own_module(container) is not None:
        raise _without(container, "it has no files of an image")
    if container.pod.spec.namespaces.user is not None:
        raise _without(container, "its files belong to the ids of its user namespace")
    layer = Layer(container.node.paths.layer(container.id) / "upper", storage.view(storage.rootfs(container)))
    if not layer.upper.is_dir():
        raise _without(container, "its root is not on the host")
    return layer


def _without(container: Container, why: str) -> Unsupported:
    hint = "drupe export writes its files as a tar"
    return Unsupported(f"{container.what} has no layer of changes", feature="commit", cause=why, hint=hint)


def changes_of(container: Container) -> list[Change]:
    """What it has added, changed and deleted; what is mounted in it aside."""
    layer, storage = layer_of(container), container.node.storage
    lowers = storage.images.lower_dirs(storage.images.resolve(container.status.image_digest))
    try:
        return changes(layer.upper, lowers, mounted=_mounted(container))
    except OSError as error:
        raise InvalidState(f"the layer of {container.what} cannot be read", cause=error.strerror or "") from None


def _mounted(container: Container) -> list[str]:
    """Runtimes make a place for each mount, and some that they fill with what is usual there."""
    usual = ["/dev", "/proc", "/sys", "/dev/pts", "/dev/shm", "/dev/console"]  # noqa: S108 in the container
    return [*usual, *(mount["destination"] for mount in container.oci.get("mounts") or ())]


def section_of(container: Container, changed: dict[str, Any]) -> dict[str, Any]:
    """Of an image's configuration what the container was made with, and then what was asked for."""
    spec = container.spec
    section: dict[str, Any] = {}
    for name, key in _FIELDS.items():
        value = getattr(spec, name)
        if value not in (None, ()) or (name == "entrypoint" and value == ()):
            section[key] = list(value) if isinstance(value, tuple) else value
    if spec.entrypoint is not None and not spec.argv:
        section["Cmd"] = []  # a new entrypoint forgets the image's
    env = {word.partition("=")[0]: word for word in container.node.storage.image_config(spec).env}
    env |= {word.partition("=")[0]: word for word in (*spec.env, *changed.get("Env", ())) if "=" in word}
    section["Env"] = list(env.values())
    labels = container.node.storage.image_config(spec).labels | spec.labels
    return section | ({"Labels": labels} if labels else {}) | {k: v for k, v in changed.items() if k != "Env"}
