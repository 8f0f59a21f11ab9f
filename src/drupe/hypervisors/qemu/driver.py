"""The QEMU driver: machine types q35, microvm (x86-64) and virt (aarch64)."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Mapping
from typing import ClassVar

from drupe.errors import InvalidArgument, NotFound, Unsupported
from drupe.hypervisors.contract import Hypervisor, Launch, Machine, MachineConfig, said
from drupe.hypervisors.qemu.arguments import ROOT_PORTS, command_line

INSTALL = "apt-get install --no-install-recommends qemu-system-x86 qemu-system-common"
MACHINES = {"x86_64": ("q35", "microvm"), "aarch64": ("virt",)}
_SAID = {
    "vsock": "no: Debian's QEMU needs the kernel's vhost-vsock for it; the agent has a virtio serial port",
    "9p": "limited: from the start only, with the rights of the machine's own user id",
    "hotplug-share": "limited: over virtio-fs",
    "hotplug-vfio": "no: it has given up the host's files by then; from the start only",
    "save": "limited: not with a shared directory or a host device, which hold state of their own",
}
_NO_BUS = "no: a microvm has no bus into which devices can be plugged"
_AS_IT_IS = "no: a microvm keeps the size that it has"
MICROVM: Mapping[str, str] = said({
    **_SAID,
    "save": "no: a microvm is not saved",
    "clone": "no: a microvm is not saved",
    **{f"hotplug-{what}": _NO_BUS for what in ("disk", "nic", "share", "vfio")},
    "resize-processors": _AS_IT_IS,
    "resize-memory": _AS_IT_IS,
    "balloon": _AS_IT_IS,
    "virtiofs": "no: under emulation programs that were read over it came to hang",
})  # fmt: skip
VIRT: Mapping[str, str] = said({
    **_SAID,
    "resize-processors": "no: QEMU's virt takes no processors while it runs",
    **{f"hotplug-{what}": f"limited: {ROOT_PORTS['virt']} devices at once" for what in ("disk", "nic")},
    "hotplug-share": f"limited: over virtio-fs; {ROOT_PORTS['virt']} devices at once",
})  # fmt: skip


def find_qemu(program: str = "", architecture: str = "") -> str:
    """The path of QEMU's system emulator. NotFound says how to install it."""
    name = program or f"qemu-system-{architecture or platform.machine()}"
    found = shutil.which(name)
    if found is None:
        raise NotFound(f"{name} is not installed", hint=INSTALL)
    return found


class Qemu(Hypervisor):
    """program: QEMU, by name or path; "" for the one of this processor."""

    name: ClassVar[str] = "qemu"
    abilities: ClassVar[Mapping[str, str]] = said(_SAID)

    def __init__(self, program: str = "", architecture: str = "") -> None:
        self._architecture = architecture or platform.machine()
        self._program = program or f"qemu-system-{self._architecture}"

    def abilities_of(self, machine_type: str) -> Mapping[str, str]:
        wanted = machine_type or next(iter(MACHINES.get(self._architecture, ())), "")
        return {"microvm": MICROVM, "virt": VIRT}.get(wanted, self.abilities)

    def machine_of(self, config: MachineConfig) -> str:
        """Its machine type. InvalidArgument for one that this processor does not have."""
        known = MACHINES.get(self._architecture, ())
        machine = config.machine_type or (known[0] if known else "")
        if machine not in known:
            raise InvalidArgument(f"unknown machine type {machine!r}", hint=f"one of: {', '.join(known)}")
        return machine

    def prepare(self, config: MachineConfig) -> Launch:
        machine = self.machine_of(config)
        if machine == "microvm":
            refuse_microvm(config)
        if machine == "virt" and config.processors_max > config.processors:
            raise Unsupported("a virt machine of QEMU keeps its processors", feature="resize-processors")
        control, agent, empty = config.dir / "qmp.sock", config.dir / "agent.sock", config.dir / "empty"
        return Launch(
            argv=command_line(config, find_qemu(self._program), machine, empty),
            control=control,
            agent=agent,
            listeners=(control, agent),
            empty=empty,
            cwd=config.dir,
            devices=("/dev/kvm",) if config.accelerator == "kvm" else (),
        )

    async def connect(self, config: MachineConfig, *, timeout_s: float) -> Machine:
        from drupe.hypervisors.qemu.machine import connect

        return await connect(config, self.machine_of(config), timeout_s=timeout_s)


def refuse_microvm(config: MachineConfig) -> None:
    """Raises Unsupported for what a microvm cannot do."""
    for refused, what, feature in (
        (config.saved is not None, "starts from no saved machine", "save"),
        (bool(config.host_devices), "has no PCI", "hotplug-vfio"),
        (any(share.socket for share in config.shares), "takes no virtio-fs here", "virtiofs"),
        (config.processors_max > config.processors, "keeps its processors", "resize-processors"),
        (config.memory_max_bytes > config.memory_bytes, "keeps its memory", "resize-memory"),
    ):
        if refused:
            raise Unsupported(f"a microvm of QEMU {what}", feature=feature)
