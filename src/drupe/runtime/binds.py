"""Bind mounts of host paths, taken where the daemon sees them: the keeper's own mount namespace may lack what the host
mounted later, and is no peer of the host's (mount_namespaces(7))."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from drupe.errors import InvalidArgument
from drupe.keeper.client import Keeper
from drupe.keeper.records import Mount as KeeperMount
from drupe.linux.mounts import map_tree_ids
from drupe.linux.open_tree import open_tree
from drupe.spec.container import ContainerSpec, Mount

AT_ONCE = 16  # descriptors in one message
_MAPPABLE = "its file system must know idmapped mounts (mount_setattr(2)), and not be mapped already"


def binds_of(spec: ContainerSpec) -> list[Mount]:
    return [mount for mount in spec.mounts if mount.type == "bind"]


def places(bundle: Path, spec: ContainerSpec) -> list[Path]:
    """Where each bind's source is mounted while its container is made."""
    return [bundle / f"bind-{number}" for number, _ in enumerate(binds_of(spec))]


async def attach(
    keeper: Keeper, bundle: Path, spec: ContainerSpec, given: Mapping[str, int] | None = None, *, users: str = ""
) -> None:
    """Mount copies of the sources at their places; missing ones are made, where that was asked for. given: copies that
    are there already, by the names of their places. users: path of the pod's user namespace.

    Raises InvalidArgument for a propagation that the source's own mount does not have, and for ids of the pod's that
    its file system cannot show.
    """
    pairs = list(zip(places(bundle, spec), binds_of(spec), strict=True))
    await release(keeper, bundle, spec)
    for start in range(0, len(pairs), AT_ONCE):
        with contextlib.ExitStack() as opened:
            trees: dict[str, int] = {}
            for place, mount in pairs[start : start + AT_ONCE]:
                trees[place.name] = _take_given(place, given[place.name]) if given else _take(place, mount)
                opened.callback(os.close, trees[place.name])
                if mount.ids != "host":
                    map_ids(trees[place.name], users, mount.source, recursive=mount.ids == "mapped-all")
            mounts = [KeeperMount(target=str(bundle / name), tree=name) for name in trees]
            await keeper.mount(mounts, fds=trees)


def map_ids(tree: int, users: str, source: str, *, recursive: bool) -> None:
    """Show what is in a tree with the ids of a pod's user namespace. Raises InvalidArgument."""
    if not users:
        raise InvalidArgument(f"{source} cannot be shown with the ids of the pod: it has no user namespace")
    try:
        with Path(users).open("rb") as namespace:
            map_tree_ids(tree, namespace.fileno(), recursive=recursive)
    except OSError as error:
        what = f"{source} cannot be shown with the ids of the pod's user namespace"
        raise InvalidArgument(what, cause=error.strerror or "", hint=_MAPPABLE) from None


async def release(keeper: Keeper, bundle: Path, spec: ContainerSpec) -> None:
    """The container has its own copies now."""
    mounted = [place for place in places(bundle, spec) if place.exists()]
    if mounted:
        await keeper.umount(mounted, lazy=True)


def _take_given(place: Path, tree: int) -> int:
    _make(place, is_directory=stat.S_ISDIR(os.fstat(tree).st_mode))
    return os.dup(tree)


def _make(place: Path, *, is_directory: bool) -> None:
    if is_directory:
        place.mkdir(exist_ok=True)
    else:
        place.touch()


def _take(place: Path, mount: Mount) -> int:
    source = Path(mount.source)
    if mount.create and not source.exists():
        source.mkdir(parents=True, exist_ok=True)
    if mount.propagation not in ("private", "rprivate"):
        _check_travels(source, mount.propagation)
    _make(place, is_directory=source.is_dir())
    try:
        return open_tree(mount.source)
    except OSError as error:
        raise InvalidArgument(f"{mount.source} cannot be bind-mounted", cause=error.strerror or "") from None


def _check_travels(source: Path, propagation: str) -> None:
    """Else it would look as if it worked."""
    point, fields = _mount_of(source.resolve())
    shared = any(field.startswith("shared:") for field in fields)
    if shared or (propagation.endswith("slave") and any(field.startswith("master:") for field in fields)):
        return
    raise InvalidArgument(
        f"{source} cannot be mounted {propagation}: it lies on {point}, which is not a shared mount",
        hint=f"mount --make-shared {point}",
    )


def _mount_of(path: Path) -> tuple[str, list[str]]:
    """The mount point that holds `path`, and its optional fields (proc_pid_mountinfo(5))."""
    found: tuple[str, list[str]] = ("/", [])
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left = line.partition(" - ")[0].split()
        point = left[4].encode().decode("unicode_escape")
        if path.is_relative_to(point) and len(point) >= len(found[0]):
            found = (point, left[6:])
    return found
