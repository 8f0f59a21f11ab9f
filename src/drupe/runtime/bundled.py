"""Containers that somebody else describes by an OCI bundle: their root's mounts, and their config.json as a sandboxer
of this pod is to see it.

What the bundle names on the host is taken over as descriptors, for the keeper's mount namespace need not have it.
"""

from __future__ import annotations

import errno
import json
import os
import posixpath
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from drupe.errors import InvalidArgument, NotFound, Unsupported
from drupe.keeper.client import Keeper
from drupe.keeper.records import Mount as KeeperMount
from drupe.linux.open_tree import open_tree
from drupe.oci.build import DEFAULT_RULES
from drupe.oci.host import host_limits
from drupe.oci.process import oci_oom_score_adj, oci_rlimits
from drupe.runtime import bundle as own_bundle
from drupe.runtime.binds import map_ids, places
from drupe.spec.container import IDLE, Bundle, Mount, Rlimit, RootMount

if TYPE_CHECKING:
    from drupe.runtime.container import Container

_MAX_CONFIG_BYTES = 4 << 20
_PAGE_BYTES = 4096 - 256  # mount(2) copies one page of options
_VERSION = "1.0.2"  # which every program takes; what is newer in a config was checked by name
_FLAGS = frozenset(
    ("ro", "nosuid", "nodev", "noexec", "sync", "dirsync", "noatime", "nodiratime", "relatime", "strictatime")
)
ROOT_TREE = "tree-root"  # how a given root is called among the trees; binds are called by their places
_LAYERS = ("lowerdir", "upperdir", "workdir")
_MAPS = ("uidmap=", "gidmap=")
_MAPPED = {"idmap": "mapped", "ridmap": "mapped-all"}  # options of a mount, and what they are called in a spec


def read_config(bundle: Path | str) -> bytes:
    """config.json of a bundle. Raises NotFound, InvalidArgument (it cannot be a configuration)."""
    path = Path(bundle) / "config.json"
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            data = file.read(_MAX_CONFIG_BYTES + 1)
    except FileNotFoundError:
        raise NotFound(f"bundle {bundle} has no config.json") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InvalidArgument(f"{str(path)!r} cannot be read", cause=getattr(error, "strerror", str(error))) from None
    if len(data) > _MAX_CONFIG_BYTES:
        raise InvalidArgument(f"{path} is longer than 4 MiB")
    return data


def _without_waiting(path: str, flags: int) -> int:
    """Nobody may write to a FIFO, and everybody would wait for it here."""
    fd = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no file")
    return fd


# -- the root ---------------------------------------------------------------------------------------------------------


async def mount_root(keeper: Keeper, container: Container, *, users: str) -> None:
    """Mount what the root is made of at `rootfs` of the container's own directory. users: path of the pod's user
    namespace."""
    bundle, target = container.spec.bundle, container.bundle / "rootfs"
    assert bundle is not None  # noqa: S101 - the caller has looked
    target.mkdir(exist_ok=True)
    if bundle.given:
        await keeper.mount(
            [KeeperMount(target=str(target), tree=ROOT_TREE)], fds={ROOT_TREE: container.trees[ROOT_TREE]}
        )
        return
    mounts = bundle.root or (RootMount(type="bind", source=_given_root(bundle), options=("rbind",)),)
    for number, mount in enumerate(mounts):
        mapped = _mapped(mount, container)
        at = target / mount.target.lstrip("/")
        if mapped and mount.type == "overlay":
            await _mount_mapped(keeper, mapped, at, container.bundle / f"lower-{number}", users)
        else:
            await _mount(keeper, mapped or mount, at, f"root-{number}", users if mapped else "")


def _given_root(bundle: Bundle) -> str:
    """The directory that config.json names (runtime-spec, config.md, Root)."""
    path = json.loads(read_config(bundle.path)).get("root", {}).get("path", "")
    return posixpath.join(bundle.path, path)


def _mapped(mount: RootMount, container: Container) -> RootMount | None:
    """The mount without the options by which containerd has its files shown with the ids of the pod's user namespace,
    where it has those: "uidmap=INSIDE:OUTSIDE:COUNT,…". Raises Unsupported for other ids."""
    asked = [option for option in mount.options if option.startswith(_MAPS)]
    if not asked:
        return None
    user = container.pod.spec.namespaces.user
    maps = zip(_MAPS, (user.uids, user.gids) if user else ((), ()), strict=True)
    own = {name + ",".join(f"{m.inside}:{m.outside}:{m.count}" for m in map_) for name, map_ in maps}
    if {*asked} != own:
        raise Unsupported("a root is not shown with other ids than those of its pod", feature="uidmap")
    return msgspec.structs.replace(mount, options=tuple(option for option in mount.options if option not in own))


async def _mount_mapped(keeper: Keeper, mount: RootMount, target: Path, lower: Path, users: str) -> None:
    """An overlay whose lower layers are shown with the ids of the pod: the kernel maps whole mounts, so that these are
    mounted, at `lower`, while the overlay takes its own copies. The upper directory has those ids on disk."""
    named = dict(option.partition("=")[::2] for option in mount.options)
    layers = named.pop("lowerdir", "").split(":")
    common = posixpath.commonpath(layers)
    lower.mkdir(exist_ok=True)
    tree = open_tree(common)
    try:
        map_ids(tree, users, common, recursive=False)
        await keeper.mount([KeeperMount(target=str(lower), tree=lower.name)], fds={lower.name: tree})
    finally:
        os.close(tree)
    named["lowerdir"] = ":".join(str(lower / posixpath.relpath(layer, common)) for layer in layers)
    options = tuple(f"{name}={value}" if value else name for name, value in named.items())
    try:
        await _mount(keeper, msgspec.structs.replace(mount, options=options), target, "", "")
    finally:
        await keeper.umount([lower], lazy=True)


async def _mount(keeper: Keeper, mount: RootMount, target: Path, name: str, users: str) -> None:
    """users: of the user namespace with whose ids a bind mount is shown; "": as it is."""
    if mount.type == "bind" or {"bind", "rbind"} & {*mount.options}:
        await _bind(keeper, mount, target, name, users)
        return
    flags = tuple(option for option in mount.options if option in _FLAGS)
    data = [option for option in mount.options if option not in _FLAGS and option not in ("rw", "defaults")]
    cwd = None
    if sum(len(option) + 1 for option in data) > _PAGE_BYTES:
        cwd, data = _shortened(data)
    await keeper.mount(
        [
            KeeperMount(
                source=mount.source, target=str(target), fstype=mount.type, flags=flags, data=",".join(data), cwd=cwd
            )
        ]
    )


async def _bind(keeper: Keeper, mount: RootMount, target: Path, name: str, users: str) -> None:
    try:
        tree = open_tree(mount.source)
    except OSError as error:
        raise InvalidArgument(f"root {mount.source!r} cannot be mounted", cause=error.strerror or "") from None
    try:
        if users:
            map_ids(tree, users, mount.source, recursive=False)
        await keeper.mount([KeeperMount(target=str(target), tree=name)], fds={name: tree})
    finally:
        os.close(tree)
    if "ro" in mount.options:
        await keeper.mount([KeeperMount(target=str(target), flags=("remount", "bind", "ro"))])


def _shortened(options: list[str]) -> tuple[str, list[str]]:
    """An overlay of many layers: their paths relative to the directory that all of them share."""
    named = dict(option.partition("=")[::2] for option in options)
    paths = [path for name in _LAYERS for path in named.get(name, "").split(":") if path]
    common = posixpath.commonpath(paths) if paths else "/"
    for name in _LAYERS:
        if name in named:
            named[name] = ":".join(posixpath.relpath(path, common) for path in named[name].split(":"))
    return common, [f"{name}={value}" if value else name for name, value in named.items()]


# -- config.json ------------------------------------------------------------------------------------------------------


def binds_of_config(mounts: list[dict[str, Any]] | None) -> tuple[Mount, ...]:
    """The bind mounts of a config as a spec has them: their sources are taken over before a container is made."""
    return tuple(
        Mount(
            target=mount["destination"],
            source=str(mount.get("source", "")),
            propagation=_propagation(mount.get("options") or ()),
            read_only="ro" in (mount.get("options") or ()),
            ids=_ids(mount),
        )
        for mount in mounts or ()
        if is_bind(mount)
    )


def is_bind(mount: dict[str, Any]) -> bool:
    """Whether a mount of a config shows something of the host."""
    return mount.get("type") == "bind" or bool({"bind", "rbind"} & {*(mount.get("options") or ())})


def _ids(mount: dict[str, Any]) -> Any:
    """With mappings and without an option it is the mount alone (runtime-spec, config.md, "idmap")."""
    asked = [_MAPPED[option] for option in mount.get("options") or () if option in _MAPPED]
    return asked[-1] if asked else "mapped" if mount.get("uidMappings") or mount.get("gidMappings") else "host"


def _propagation(options: Any) -> Any:
    found = [option for option in options if option in ("shared", "rshared", "slave", "rslave", "private", "rprivate")]
    return found[-1] if found else "rprivate"


def build(container: Container) -> dict[str, Any]:
    """The config that a sandboxer gets: in the pod's namespaces and the container's cgroup, on its mounted root."""
    bundle = container.spec.bundle
    assert bundle is not None  # noqa: S101 - the caller has looked
    config: dict[str, Any] = json.loads(read_config(bundle.path))
    linux = config["linux"] = dict(config.get("linux") or {})
    linux["namespaces"] = _namespaces(linux.get("namespaces") or (), container.pod.info.namespaces)
    linux["cgroupsPath"] = container.cgroup
    if (rules := (linux.get("resources") or {}).get("devices")) is not None:
        # what every container may use is left to the runtime, and comes after what others say (runc's specconv)
        linux["resources"] = {**linux["resources"], "devices": [*rules, *DEFAULT_RULES[1:]]}
    config["root"] = {**config["root"], "path": str(container.bundle / "rootfs")}
    config["mounts"] = _mounts(config.get("mounts") or (), container)
    if container.pod.held:
        config["mounts"] = _with_names(config["mounts"], container, read_only=bool(config["root"].get("readonly")))
    if container.spec.annotations.get(IDLE) == "true":
        config["annotations"] = {**(config.get("annotations") or {}), IDLE: "true"}
    config["ociVersion"] = _VERSION
    _clamp(config["process"], container)
    return config


def _namespaces(asked: Any, of_pod: dict[str, str]) -> list[dict[str, str]]:
    """The pod's own where it has one; what joins elsewhere does so by the path that was given."""
    spaces = []
    for space in asked:
        path = of_pod.get(space["type"]) or space.get("path")
        spaces.append({"type": space["type"], "path": path} if path else {"type": space["type"]})
    return spaces


def _mounts(asked: Any, container: Container) -> list[dict[str, Any]]:
    taken = iter(places(container.bundle, container.spec))
    return [_taken(mount, next(taken)) if is_bind(mount) else mount for mount in asked]


def _taken(mount: dict[str, Any], place: Path) -> dict[str, Any]:
    """A bind mount of what is mounted at `place`, which shows the ids that were asked for."""
    rest = {name: value for name, value in mount.items() if name not in ("uidMappings", "gidMappings")}
    options = [option for option in mount.get("options") or () if option not in _MAPPED]
    return {**rest, "source": str(place), "options": options}


def _with_names(mounts: list[dict[str, Any]], container: Container, *, read_only: bool) -> list[dict[str, Any]]:
    """Whoever has us make a pod leaves its files to us: hosts, host name, name servers and shared memory are the pod's,
    unless the container is given others."""
    storage = container.node.storage
    own = own_bundle.name_mounts(storage, container)
    for mount in own if read_only else ():
        mount["options"].append("ro")
    if container.pod.spec.namespaces.ipc != "host" and not container.runs_modules:
        own.append(own_bundle.shm_mount(storage, container))
    given = {mount["destination"] for mount in mounts if is_bind(mount)}
    added = {mount["destination"]: mount for mount in own if mount["destination"] not in given}
    return [*(mount for mount in mounts if mount["destination"] not in added), *added.values()]


def _limit(value: int) -> int:
    return -1 if value == 2**64 - 1 else value  # RLIM_INFINITY


def _clamp(process: dict[str, Any], container: Container) -> None:
    """What this host may not grant, as far as it may; said on the node."""
    rlimits = tuple(
        Rlimit(name=one["type"], soft=_limit(one["soft"]), hard=_limit(one["hard"]))
        for one in process.get("rlimits") or ()
    )
    granted, notes = oci_rlimits(rlimits, host_limits())
    if process.get("rlimits"):
        process["rlimits"] = granted
    score, more = oci_oom_score_adj(process.get("oomScoreAdj"), host_limits())
    if score is not None:
        process["oomScoreAdj"] = score
    for note in (*notes, *more):
        container.node.note(f"{container.what}: {note}")
