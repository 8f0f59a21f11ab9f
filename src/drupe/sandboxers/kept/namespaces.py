"""The namespaces of a pod: made by the keeper, pinned as files, so that no process has to keep them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drupe.errors import InvalidArgument, NotFound
from drupe.keeper.client import Keeper
from drupe.linux.namespaces import id_maps, is_network_namespace, owning_user_namespace
from drupe.sandboxers.contract import SandboxConfig, SandboxInfo
from drupe.spec.pod import IdMap, PodSpec

_NETNS_MODES = ("none", "bridge", "cni", "cnm")
_OCI_NAME = {"net": "network", "ipc": "ipc", "uts": "uts", "user": "user"}


async def make_namespaces(keeper: Keeper, config: SandboxConfig, types: list[str]) -> SandboxInfo:
    """Make them in ``config.dir/ns``; a network namespace that the pod joins is among them, if it has a name among the
    files: its mount need not be seen by the keeper. Where the pod is to be held, a process lives in them: the first of
    a PID namespace that nothing else is in. Undone by `drop_namespaces`."""
    directory = config.dir / "ns"
    joined = config.spec.network.netns_path if config.spec.network.mode == "path" else ""
    if joined:
        _check_network(joined)
    named = bool(joined) and (config.held or not joined.startswith("/proc/"))
    pid = None
    if types or config.held or named:
        with _users(config, joined) as users:
            pid = await keeper.create_namespaces(
                directory,
                [kind for kind in (*types, *config.held * ["pid"]) if kind != "user" or users.get("userns") is None],
                netns=_as_seen_here(joined) if named else None,
                hostname=config.hostname if "uts" in types else None,
                sysctls=dict(config.spec.sysctls) or None,
                **users,
            )
            if pid and users.get("userns"):
                await _check_maps(keeper, config, pid)
    paths = {_OCI_NAME[kind]: str(directory / kind) for kind in types}
    if joined:
        paths["network"] = str(directory / "net") if named else joined
    return SandboxInfo(netns=paths.get("network", ""), namespaces=paths, pid=pid or 0)


@contextlib.contextmanager
def _users(config: SandboxConfig, joined: str) -> Iterator[dict[str, Any]]:
    """What the keeper is told of the pod's user namespace: that which owns the network that it joins (its root could
    not mount that network's sysfs else), or a new one. One that is to be joined is open here meanwhile."""
    user = config.spec.namespaces.user
    owner = _owner_of(joined) if user and joined and config.held else None
    if owner is None:
        yield {"uid_map": _plain_map(user.uids), "gid_map": _plain_map(user.gids)} if user else {}
        return
    try:
        yield {"userns": f"/proc/{os.getpid()}/fd/{owner}"}
    finally:
        os.close(owner)


def _check_network(path: str) -> None:
    """Whoever opens a FIFO waits for its writer, and the keeper would."""
    try:
        found = is_network_namespace(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in it
        kind = NotFound if isinstance(error, FileNotFoundError) else InvalidArgument
        cause = getattr(error, "strerror", "") or str(error)
        raise kind(f"network namespace {path!r} cannot be joined", cause=cause) from None
    if not found:
        raise InvalidArgument(f"{path} is no network namespace")


def _owner_of(netns: str) -> int | None:
    try:
        return owning_user_namespace(netns)
    except OSError as error:
        raise InvalidArgument(f"network namespace {netns} cannot be joined", cause=error.strerror or "") from None


async def _check_maps(keeper: Keeper, config: SandboxConfig, pid: int) -> None:
    """The ids of a user namespace that was joined are those that were asked for, or there is nothing left of it."""
    user = config.spec.namespaces.user
    wanted = (_plain_map(user.uids), _plain_map(user.gids)) if user else ([], [])
    if id_maps(pid) == wanted:
        return
    await drop_namespaces(keeper, config)
    raise InvalidArgument(
        "the pod's network belongs to a user namespace with other ids than the pod is to have",
        hint="make the network in a user namespace with the same maps",
    )


def _as_seen_here(path: str) -> str:
    """A path that means to the keeper what it means to us: what others mount may not get into its mount namespace. A
    link that begins with "/" would lead out again, so none is left in it."""
    return f"/proc/{os.getpid()}/root{Path(path).resolve()}"


async def drop_namespaces(keeper: Keeper, config: SandboxConfig) -> None:
    """Unpin them; they end with their last process. Idempotent."""
    await keeper.release(config.dir / "ns")


def network_types(spec: PodSpec) -> list[str]:
    """Whether the pod owns a network namespace, as the list of types that `make_namespaces` takes."""
    return ["net"] if spec.network.mode in _NETNS_MODES else []


def namespace_types(spec: PodSpec) -> list[str]:
    """All namespaces the pod owns, named as in /proc/PID/ns. A container's own mount and PID ones are its runtime's."""
    types = ["user"] if spec.namespaces.user is not None else []
    types += network_types(spec)
    if spec.namespaces.ipc == "pod":
        types.append("ipc")
    if spec.namespaces.uts == "pod":
        types.append("uts")
    return types


def _plain_map(maps: tuple[IdMap, ...]) -> list[tuple[int, int, int]]:
    return [(m.inside, m.outside, m.count) for m in maps]
