"""A pod as the CRI describes it (PodSandboxConfig of runtime/v1/api.proto) as a pod of ours: honoured, or refused by
name."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from drupe.errors import InvalidArgument, Unsupported
from drupe.oci.carried import WIDENING
from drupe.rpc.cri import api_pb2 as cri
from drupe.runtime.core import Core
from drupe.services.oci.pods import slice_path
from drupe.spec.network import DnsSpec, NetworkSpec
from drupe.spec.pod import IdMap, Namespaces, PodSpec, UserNamespace
from drupe.spec.resources import Resources

_SELINUX = Path("/sys/fs/selinux/enforce")
_PERIOD_US = 100_000


def pod_spec(id_: str, config: cri.PodSandboxConfig, *, owner: str, namespace: str, netns: str, kind: str) -> PodSpec:
    """The pod that a configuration asks for. netns: the network that containerd made for it. Raises InvalidArgument;
    Unsupported for what no sandbox of ours can give.

    What belongs to a container that only keeps the pod's namespaces (its user, seccomp filter, read-only root) has no
    object here: there is none. Ports are containerd's, whose network plug-ins publish them.
    """
    security = config.linux.security_context
    _refuse(config)
    return PodSpec(
        id=id_,
        name=id_,
        owner=owner,
        namespace=namespace,
        sandbox=kind,
        hostname=config.hostname or None,
        labels=dict(config.labels),
        annotations=dict(config.annotations),
        network=_network(security.namespace_options.network, netns),
        dns=DnsSpec(
            servers=tuple(config.dns_config.servers),
            searches=tuple(config.dns_config.searches),
            options=tuple(config.dns_config.options),
        ),
        sysctls=dict(config.linux.sysctls),
        namespaces=_namespaces(security.namespace_options),
        cgroup_parent=cgroup_path(config.linux.cgroup_parent) or None,
        resources=Resources() if config.linux.cgroup_parent else limits(config.linux),
    )


async def fitted(core: Core, spec: PodSpec) -> PodSpec:
    """A pod that some kind can have, or what `Core.choose` raises."""
    try:
        await core.choose(spec)
    except Unsupported as error:
        other = _nearest(spec, error.details.get("feature", ""))
        if other is None:
            raise
        return await fitted(core, other)
    return spec


def _nearest(spec: PodSpec, lacking: str) -> PodSpec | None:
    """What nobody misses where a kind lacks a feature. On the node's network a pod has the node's host name, too: a
    kernel of its own is given a copy of it. What engines set for everybody, to allow more, is left out."""
    if lacking == "host-uts" and spec.network.mode == "host":
        own = msgspec.structs.replace(spec.namespaces, uts="pod")
        return msgspec.structs.replace(spec, namespaces=own, hostname=os.uname().nodename)
    if lacking == "sysctls" and not set(spec.sysctls) - {*WIDENING}:
        return msgspec.structs.replace(spec, sysctls={})
    return None


def _refuse(config: cri.PodSandboxConfig) -> None:
    if config.HasField("windows"):
        raise Unsupported("pods of Windows are not run here", feature="windows")
    selinux = config.linux.security_context.selinux_options
    if selinux.ByteSize() and _SELINUX.exists():
        raise Unsupported("SELinux labels of a pod are not carried out", feature="selinux_options")
    profile = config.linux.security_context.apparmor
    if profile.profile_type == cri.SecurityProfile.Localhost:
        raise Unsupported("an AppArmor profile of a pod is not carried out", feature="apparmor")


def _users(options: cri.NamespaceOption) -> UserNamespace | None:
    """Its own, where it has maps: POD is also what an empty message says."""
    asked = options.userns_options
    if asked.mode not in (cri.POD, cri.NODE):
        mode = cri.NamespaceMode.Name(asked.mode)
        raise InvalidArgument(f"a pod's user namespace cannot be of mode {mode}", hint="POD, or NODE for the node's")
    if asked.mode != cri.POD or not (asked.uids or asked.gids):
        return None
    if not (asked.uids and asked.gids):
        raise InvalidArgument("a pod's user namespace needs maps of both uids and gids")
    return UserNamespace(uids=_ids(asked.uids), gids=_ids(asked.gids))


def _ids(maps: Iterable[cri.IDMapping]) -> tuple[IdMap, ...]:
    return tuple(IdMap(inside=one.container_id, outside=one.host_id, count=one.length) for one in maps)


def _network(mode: int, netns: str) -> NetworkSpec:
    if mode == cri.NODE:
        return NetworkSpec(mode="host")
    return NetworkSpec(mode="path", netns_path=netns) if netns else NetworkSpec(mode="none")


def _namespaces(options: cri.NamespaceOption) -> Namespaces:
    pids: dict[int, Literal["pod", "container", "host"]] = {
        cri.POD: "pod",
        cri.CONTAINER: "container",
        cri.NODE: "host",
    }
    if options.pid not in pids:
        raise InvalidArgument("a pod cannot join the process table of a container", hint="TARGET is for containers")
    return Namespaces(
        pid=pids[options.pid],
        ipc="host" if options.ipc == cri.NODE else "pod",
        uts="host" if options.network == cri.NODE else "pod",
        user=_users(options),
    )


def cgroup_path(parent: str) -> str:
    """The path of a cgroup parent; a slice of systemd's ("a-b.slice") lies within those that its name begins with.
    Raises InvalidArgument."""
    return slice_path(parent.rpartition("/")[2]) if parent.endswith(".slice") else parent


def limits(linux: cri.LinuxPodSandboxConfig) -> Resources:
    """What the containers of a pod may use together, and what the sandbox itself may add to that. With a cgroup parent
    they are the kubelet's own sums, which it sets on that: then nobody calls this."""
    asked, more = linux.resources, linux.overhead
    quota = asked.cpu_quota + more.cpu_quota if asked.cpu_quota > 0 else 0
    memory = asked.memory_limit_in_bytes + more.memory_limit_in_bytes if asked.memory_limit_in_bytes > 0 else 0
    return Resources(
        cpu_quota_us=quota or None,
        cpu_period_us=(asked.cpu_period or _PERIOD_US) if quota else None,
        cpu_shares=asked.cpu_shares + more.cpu_shares or None,
        cpuset_cpus=asked.cpuset_cpus or None,
        cpuset_mems=asked.cpuset_mems or None,
        memory_bytes=memory or None,
        memory_swap_bytes=asked.memory_swap_limit_in_bytes or None,
        hugepages={each.page_size: each.limit for each in asked.hugepage_limits if each.limit},
        unified=dict(asked.unified),
    )
