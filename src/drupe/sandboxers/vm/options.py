"""Settings of the vm kind: `[kinds.vm]` in the node's configuration, and what a pod's annotations say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from drupe.errors import InvalidArgument, Unsupported
from drupe.resources.network.endpoints.contract import Model
from drupe.spec.base import Spec
from drupe.spec.pod import PodSpec

RootfsForm = Literal["virtiofs", "block", "hostfs"]
ROOTFS = "drupe.vm.rootfs"
NETWORK = "drupe.vm.network"
QUEUES = "drupe.vm.queues"
HYPERVISOR = "drupe.vm.hypervisor"
_OURS = "drupe.vm."
_KNOWN = (HYPERVISOR, NETWORK, QUEUES, ROOTFS)
_FORMS = ("virtiofs", "block")  # that a pod may ask for: hostfs is of User-mode Linux, which no node has

_QUEUES = ("1", "2", "3", "4", "5", "6", "7", "8")  # as many as a machine has processors


class VmOptions(Spec):
    """hypervisor: the program that runs machines: "qemu", "cloud-hypervisor", "firecracker" or "stratovirt" ("uml", a
    kernel as a process of the host, is for tests). hypervisors: others of them that a pod's annotation may name.
    machine_type: one of its own, "" for its first. program: its path. virtiofsd: that one's, "" for where it is
    installed.
    guest: the guest image, by name or digest. rootfs: how a container's root gets into the machine. memory_bytes: of a
    machine whose pod has no limit. overhead_bytes: what guest kernel and agent need beside the pod's limit.
    vmm_bytes: what the machine costs the host beside its memory. template: start from a booted machine that was saved.
    network: how interfaces are joined to the machine (docs/hypervisors.md). queues: most pairs of queues of one.
    vhost_user: directory with the sockets of interfaces that processes of the host serve.
    agent_timeout_s: how long a guest may take to boot. append: further words for the guest kernel's command line."""

    hypervisor: str = "qemu"
    hypervisors: tuple[str, ...] = ()
    machine_type: str = ""
    program: str = ""
    virtiofsd: str = ""
    guest: str = "default"
    rootfs: RootfsForm = "virtiofs"
    memory_bytes: int = 256 << 20
    overhead_bytes: int = 96 << 20
    vmm_bytes: int = 192 << 20
    memory_max_bytes: int = 0
    processors_max: int = 0
    template: bool = True
    network: Model = "tc-filter"
    queues: int = 1
    vhost_user: str = ""
    agent_timeout_s: float = 60.0
    append: tuple[str, ...] = ()


def check_annotations(spec: PodSpec) -> None:
    """InvalidArgument for one of ours that nobody knows: a slip of the pen must not be a weaker machine."""
    for name in spec.annotations:
        if name.startswith(_OURS) and name not in _KNOWN:
            raise InvalidArgument(f"unknown annotation {name}", hint=f"those of machines: {', '.join(_KNOWN)}")


def network_for(options: VmOptions, spec: PodSpec) -> Model:
    """The pod's wish or the node's. InvalidArgument for an unknown one."""
    wished = spec.annotations.get(NETWORK, options.network)
    for model in get_args(Model):
        if model == wished:
            found: Model = model
            return found
    raise InvalidArgument(
        f"unknown model {wished!r} in annotation {NETWORK}", hint=f"one of: {', '.join(get_args(Model))}"
    )


def queues_for(options: VmOptions, spec: PodSpec, able: Mapping[str, str]) -> int:
    """How many pairs of queues an interface is to have at most: the pod's wish or the node's. InvalidArgument for what
    is no such number, Unsupported for several where the hypervisor has one."""
    wished = spec.annotations.get(QUEUES)
    if wished is not None and wished not in _QUEUES:
        raise InvalidArgument(f"annotation {QUEUES} is {wished!r}", hint=f"one of: {', '.join(_QUEUES)}")
    if not able["multiqueue"].startswith("no"):
        return int(wished or max(options.queues, 1))
    if wished not in (None, "1"):
        why = able["multiqueue"].partition(": ")[2]
        raise Unsupported("an interface of this machine has one queue", kind="vm", feature="multiqueue", cause=why)
    return 1


def rootfs_for(options: VmOptions, spec: PodSpec, able: Mapping[str, str]) -> RootfsForm:
    """The pod's wish or the node's; able: what the hypervisor can do. InvalidArgument for an unknown one, Unsupported
    for one that the hypervisor has not."""
    wished = spec.annotations.get(ROOTFS, options.rootfs)
    if able["virtiofs"].startswith("no") and options.hypervisor != "uml":
        wished = wished if ROOTFS in spec.annotations else "block"
        if wished == "virtiofs":
            raise Unsupported(
                "the machine of this pod shares no directories",
                kind="vm",
                feature="virtiofs",
                cause=able["virtiofs"].partition(": ")[2],
                hint=f"annotation {ROOTFS}=block",
            )
    if wished == "9p":
        raise Unsupported(
            "the guest's kernel has no 9p, and QEMU serves it with its own user's rights only",
            kind="vm",
            feature="9p",
            hint=f"annotation {ROOTFS}=virtiofs, or =block where there is no virtiofsd",
        )
    if options.hypervisor == "uml":
        wished = "hostfs" if ROOTFS not in spec.annotations else wished
    if (options.hypervisor == "uml") != (wished == "hostfs"):
        raise InvalidArgument(f"{options.hypervisor} has no roots of the form {wished!r}", hint=f"annotation {ROOTFS}")
    for form in get_args(RootfsForm):
        if form == wished:
            found: RootfsForm = form
            return found
    hint = f"one of: {', '.join(_FORMS)}"
    raise InvalidArgument(f"unknown form {wished!r} of a root in annotation {ROOTFS}", hint=hint)
