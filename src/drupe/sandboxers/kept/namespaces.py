"""The namespaces of a pod: made by the keeper, pinned as files, so that no process has to keep them."""

from __future__ import annotations

import os
from pathlib import Path

from drupe.keeper.client import Keeper
from drupe.sandboxers.contract import SandboxConfig, SandboxInfo
from drupe.spec.pod import IdMap, PodSpec

_NETNS_MODES = ("none", "bridge", "cni", "cnm")
_OCI_NAME = {"net": "network", "ipc": "ipc", "uts": "uts", "user": "user"}


async def make_namespaces(keeper: Keeper, config: SandboxConfig, types: list[str]) -> SandboxInfo:
    """Make them in ``config.dir/ns``; a network namespace that the pod joins is among them, if it has a name among the
    files: its mount need not be seen by the keeper. Where the pod is to be held, a process lives in them: the first of
    a PID namespace that nothing else is in. Undone by `drop_namespaces`."""
    directory = config.dir / "ns"
    user = config.spec.namespaces.user
    joined = config.spec.network.netns_path if config.spec.network.mode == "path" else ""
    named = bool(joined) and (config.held or not joined.startswith("/proc/"))
    pid = None
    if types or config.held or named:
        pid = await keeper.create_namespaces(
            directory,
            [*types, "pid"] if config.held else types,
            netns=_as_seen_here(joined) if named else None,
            hostname=config.hostname if "uts" in types else None,
            sysctls=dict(config.spec.sysctls) or None,
            uid_map=_plain_map(user.uids) if user else None,
            gid_map=_plain_map(user.gids) if user else None,
        )
    paths = {_OCI_NAME[kind]: str(directory / kind) for kind in types}
    if joined:
        paths["network"] = str(directory / "net") if named else joined
    return SandboxInfo(netns=paths.get("network", ""), namespaces=paths, pid=pid or 0)


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
