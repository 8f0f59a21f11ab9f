"""The namespaces of a pod: made by the keeper, pinned as files, so that no process has to keep them."""

from __future__ import annotations

from drupe.keeper.client import Keeper
from drupe.sandboxers.contract import SandboxConfig
from drupe.spec.pod import IdMap, PodSpec

_NETNS_MODES = ("none", "bridge", "cni", "cnm")
_OCI_NAME = {"net": "network", "ipc": "ipc", "uts": "uts", "user": "user"}


async def make_namespaces(keeper: Keeper, config: SandboxConfig, types: list[str]) -> dict[str, str]:
    """Make them in ``config.dir/ns``; returns OCI namespace type to path. A network namespace that the pod joins is
    among them. Undone by `drop_namespaces`."""
    directory = config.dir / "ns"
    user = config.spec.namespaces.user
    if types:
        await keeper.create_namespaces(
            directory,
            types,
            hostname=config.hostname if "uts" in types else None,
            sysctls=dict(config.spec.sysctls) or None,
            uid_map=_plain_map(user.uids) if user else None,
            gid_map=_plain_map(user.gids) if user else None,
        )
    paths = {_OCI_NAME[kind]: str(directory / kind) for kind in types}
    if config.spec.network.mode == "path":
        paths["network"] = config.spec.network.netns_path
    return paths


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
