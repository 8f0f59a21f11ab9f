"""Which program runs a pod's machine: the node's, or another that the node lets pods ask for."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection

from drupe.errors import InvalidArgument, NotFound, PermissionDenied
from drupe.hypervisors.contract import Hypervisor
from drupe.spec.pod import PodSpec

HYPERVISOR = "drupe.vm.hypervisor"
_UML = "it is a process of the host with the rights that it has, and no machine"


def _qemu(program: str) -> Hypervisor:
    from drupe.hypervisors.qemu.driver import Qemu, find_qemu

    find_qemu(program)
    return Qemu(program)


def _cloud_hypervisor(program: str) -> Hypervisor:
    from drupe.hypervisors.cloud_hypervisor import CloudHypervisor

    return CloudHypervisor(_found(program or "cloud-hypervisor"))


def _firecracker(program: str) -> Hypervisor:
    from drupe.hypervisors.firecracker import Firecracker

    return Firecracker(_found(program or "firecracker"))


def _stratovirt(program: str) -> Hypervisor:
    from drupe.hypervisors.stratovirt import StratoVirt

    return StratoVirt(_found(program or "stratovirt"))


OFFERED: dict[str, Callable[[str], Hypervisor]] = {
    "qemu": _qemu, "cloud-hypervisor": _cloud_hypervisor, "firecracker": _firecracker, "stratovirt": _stratovirt,
}  # fmt: skip


def _found(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        hint = "Debian has no package of it: install it from its project, or name its path as kinds.vm.program"
        raise NotFound(f"{program} is not installed", hint=hint)
    return path


def open_hypervisor(name: str, program: str = "") -> Hypervisor:
    """The driver of a program that is installed. NotFound when it is not, InvalidArgument for a name that the kind does
    not offer: User-mode Linux is no machine, which is what the kind's level promises."""
    if name not in OFFERED:
        raise InvalidArgument(
            f"the vm kind does not offer {name!r}" + (f": {_UML}" if name == "uml" else ""),
            hint=f"kinds.vm.hypervisor: {', '.join(OFFERED)}",
        )
    return OFFERED[name](program)


class Hypervisors:
    """first: the node's. allowed: others that a pod's annotation may name."""

    def __init__(self, first: Hypervisor, allowed: Collection[str] = ()) -> None:
        self.first = first
        self._allowed = allowed
        self._known = {first.name: first}

    def of(self, name: str) -> Hypervisor:
        """By the name that a record has; "" is the node's."""
        if name and name not in self._known:
            self._known[name] = open_hypervisor(name)
        return self._known[name] if name else self.first

    def wished(self, spec: PodSpec) -> Hypervisor:
        """That of a pod's annotation, or the node's. PermissionDenied for one that pods may not choose."""
        name = spec.annotations.get(HYPERVISOR, "")
        if name and name not in OFFERED:
            open_hypervisor(name)  # says why
        if name not in ("", self.first.name, *self._allowed):
            raise PermissionDenied(
                f"pods of this node may not choose {name!r} (annotation {HYPERVISOR})",
                hint=f'the node\'s configuration allows it: [kinds.vm] hypervisors = ["{name}"]',
            )
        return self.of(name)


def confinement(hypervisor: Hypervisor) -> str:
    """What is to be said of a program that does not give up its rights as QEMU does; "" for QEMU."""
    if hypervisor.name in ("qemu", "uml"):
        return ""
    return (
        f"{hypervisor.name} runs as root without capabilities, behind its own filter; it keeps the host's files in view"
    )
