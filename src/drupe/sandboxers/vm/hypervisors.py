"""Which program runs a pod's machine: the node's, or another that the node lets pods ask for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from drupe.errors import InvalidArgument, NotFound, PermissionDenied
from drupe.hypervisors.contract import Hypervisor
from drupe.sandboxers.vm.options import HYPERVISOR
from drupe.spec.pod import PodSpec

_UML = "it is a process of the host with the rights that it has, and no machine"


def _qemu(program: str, _root: Path | None) -> Hypervisor:
    from drupe.hypervisors.qemu.driver import Qemu, find_qemu

    find_qemu(program)
    return Qemu(program)


def _cloud_hypervisor(program: str, root: Path | None) -> Hypervisor:
    """In a root of its own; not so a script that starts it, which needs more than that."""
    from drupe.hypervisors.cloud_hypervisor import CloudHypervisor
    from drupe.hypervisors.jails import libraries, own_root

    found = str(Path(_found(program or "cloud-hypervisor")).resolve())
    if root is None or libraries(Path(found)) is None:
        return CloudHypervisor(found)
    return CloudHypervisor(found, own_root(root / "vm" / "jails"))


def _firecracker(program: str, root: Path | None) -> Hypervisor:
    """In its jailer, where that is installed: beside it or on the path."""
    from drupe.hypervisors.firecracker import Firecracker
    from drupe.hypervisors.jails import Jail

    found = _found(program or "firecracker")
    jailer = shutil.which("jailer", path=os.pathsep.join((str(Path(found).parent), os.environ.get("PATH", ""))))
    if root is None or jailer is None:
        return Firecracker(found)
    return Firecracker(found, Jail(program=jailer, base=root / "vm" / "jails"))


def _stratovirt(program: str, root: Path | None) -> Hypervisor:
    """The same."""
    from drupe.hypervisors.jails import libraries, own_root
    from drupe.hypervisors.stratovirt import StratoVirt

    found = str(Path(_found(program or "stratovirt")).resolve())
    if root is None or libraries(Path(found)) is None:
        return StratoVirt(found)
    return StratoVirt(found, own_root(root / "vm" / "jails"))


OFFERED: dict[str, Callable[[str, Path | None], Hypervisor]] = {
    "qemu": _qemu, "cloud-hypervisor": _cloud_hypervisor, "firecracker": _firecracker, "stratovirt": _stratovirt,
}  # fmt: skip


def _found(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        hint = "Debian has no package of it: install it from its project, or name its path as kinds.vm.program"
        raise NotFound(f"{program} is not installed", hint=hint)
    return path


def open_hypervisor(name: str, program: str = "", root: Path | None = None) -> Hypervisor:
    """The driver of a program that is installed. root: the node's directory, for what a program has to have on the file
    system of the images. NotFound when it is not, InvalidArgument for a name that the kind does
    not offer: User-mode Linux is no machine, which is what the kind's level promises."""
    if name not in OFFERED:
        raise InvalidArgument(
            f"the vm kind does not offer {name!r}" + (f": {_UML}" if name == "uml" else ""),
            hint=f"kinds.vm.hypervisor: {', '.join(OFFERED)}",
        )
    return OFFERED[name](program, root)


class Hypervisors:
    """first: the node's. allowed: others that a pod's annotation may name. root: see `open_hypervisor`."""

    def __init__(self, first: Hypervisor, allowed: Collection[str] = (), root: Path | None = None) -> None:
        self.first = first
        self._root = root
        self._allowed = allowed
        self._known = {first.name: first}

    def of(self, name: str) -> Hypervisor:
        """By the name that a record has; "" is the node's."""
        if name and name not in self._known:
            self._known[name] = open_hypervisor(name, root=self._root)
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
    """What is to be said of a program that does not give up its rights as QEMU does; "" for QEMU, and for one that its
    jailer starts."""
    if hypervisor.name in ("qemu", "uml") or getattr(hypervisor, "jailed", False):
        return ""
    return (
        f"{hypervisor.name} runs as root without capabilities, behind its own filter; it keeps the host's files in view"
    )
