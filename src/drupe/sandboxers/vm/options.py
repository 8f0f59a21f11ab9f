"""Settings of the vm kind: `[kinds.vm]` in the node's configuration, and what a pod's annotations say."""

from __future__ import annotations

from typing import Literal, get_args

from drupe.errors import InvalidArgument
from drupe.spec.base import Spec
from drupe.spec.pod import PodSpec

RootfsForm = Literal["virtiofs", "block", "hostfs"]
ROOTFS = "drupe.vm.rootfs"


class VmOptions(Spec):
    """hypervisor: the program that runs machines: "qemu"; "uml" runs a kernel as a process of the host, whose boundary is
    ptrace(2) and no machine's. machine_type: one of its own, "" for its first. program: its path.
    guest: the guest image, by name or digest. rootfs: how a container's root gets into the machine. memory_bytes: of a
    machine whose pod has no limit. overhead_bytes: what guest kernel and agent need beside the pod's limit.
    vmm_bytes: what the machine costs the host beside its memory. template: start from a booted machine that was saved.
    agent_timeout_s: how long a guest may take to boot. append: further words for the guest kernel's command line."""

    hypervisor: str = "qemu"
    machine_type: str = ""
    program: str = ""
    guest: str = "default"
    rootfs: RootfsForm = "virtiofs"
    memory_bytes: int = 256 << 20
    overhead_bytes: int = 96 << 20
    vmm_bytes: int = 192 << 20
    memory_max_bytes: int = 0
    processors_max: int = 0
    template: bool = True
    agent_timeout_s: float = 60.0
    append: tuple[str, ...] = ()


def rootfs_for(options: VmOptions, spec: PodSpec) -> RootfsForm:
    """The pod's wish or the node's. InvalidArgument for an unknown one, or one that the hypervisor has not."""
    wished = spec.annotations.get(ROOTFS, options.rootfs)
    if options.hypervisor == "uml":
        wished = "hostfs" if ROOTFS not in spec.annotations else wished
    if (options.hypervisor == "uml") != (wished == "hostfs"):
        raise InvalidArgument(f"{options.hypervisor} has no roots of the form {wished!r}", hint=f"annotation {ROOTFS}")
    for form in get_args(RootfsForm):
        if form == wished:
            found: RootfsForm = form
            return found
    hint = f"one of: {', '.join(get_args(RootfsForm))}"
    raise InvalidArgument(f"unknown form {wished!r} of a root in annotation {ROOTFS}", hint=hint)
