"""The QEMU driver: machine types q35, microvm (x86-64) and virt (aarch64)."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Mapping
from typing import ClassVar

from drupe.errors import InvalidArgument, NotFound, Unsupported
from drupe.hypervisors.contract import ABILITIES, Hypervisor, Launch, Machine, MachineConfig
from drupe.hypervisors.qemu.arguments import command_line

INSTALL = "apt-get install --no-install-recommends qemu-system-x86 qemu-system-common"
MACHINES = {"x86_64": ("q35", "microvm"), "aarch64": ("virt",)}
_SAID = {"vsock": "no: Debian's QEMU needs the kernel's vhost-vsock for it; the agent has a virtio serial port"}


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
    abilities: ClassVar[Mapping[str, str]] = {word: _SAID.get(word, "yes") for word in ABILITIES}

    def __init__(self, program: str = "", architecture: str = "") -> None:
        self._architecture = architecture or platform.machine()
        self._program = program or f"qemu-system-{self._architecture}"

    def machine_of(self, config: MachineConfig) -> str:
        """Its machine type. InvalidArgument for one that this processor does not have."""
        known = MACHINES.get(self._architecture, ())
        machine = config.machine_type or (known[0] if known else "")
        if machine not in known:
            raise InvalidArgument(f"unknown machine type {machine!r}", hint=f"one of: {', '.join(known)}")
        return machine

    def prepare(self, config: MachineConfig) -> Launch:
        machine = self.machine_of(config)
        if machine == "microvm" and (config.saved or config.host_devices):
            raise Unsupported("a microvm of QEMU takes no PCI devices and starts from no saved machine", feature="save")
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
