"""QEMU's `virt` machines (aarch64), by emulation: what the driver says on the command line and over QMP, held by a QEMU
that runs. There is no guest of that architecture to take part: the processors run an endless loop."""

from __future__ import annotations

import asyncio
import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from drupe.errors import Unsupported
from drupe.hypervisors.contract import Disk, Machine, MachineConfig, MachineStatus, Share
from drupe.hypervisors.qemu.driver import Qemu
from framework import probes, qemus

pytestmark = pytest.mark.root
MIB = 1 << 20
TIMEOUT_S = 60.0
LOOP = struct.pack("<I", 0x14000000)  # b .


@pytest.fixture
def config(tmp_path: Path) -> MachineConfig:
    probes.needs_program("qemu-system-aarch64")
    (tmp_path / "kernel").write_bytes(LOOP)
    for name, size in (("disk", MIB), ("extra", MIB), ("memory", 128 * MIB)):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, size)
    return MachineConfig(
        "m", tmp_path, tmp_path / "kernel", None, processors=2, processors_max=2, memory_bytes=128 * MIB,
        memory_max_bytes=256 * MIB, memory_file=tmp_path / "memory",
    )  # fmt: skip


def told(config: MachineConfig, saved: Path | None = None) -> list[MachineStatus]:
    """What a machine says of itself when it runs and when it is paused; one more disk is plugged in, or it is saved."""
    found: list[MachineStatus] = []

    async def scenario(machine: Machine) -> None:
        found.append(await machine.status())
        if saved is None:  # another would not go on without it
            await machine.add(Disk("more", config.dir / "extra", read_only=True))
        with pytest.raises(Unsupported):
            await machine.resize(processors=1)
        await machine.pause()
        found.append(await machine.status())
        if saved is not None:
            await machine.save(saved)

    async def whole() -> None:
        hypervisor = Qemu(architecture="aarch64")
        with qemus.started(hypervisor.prepare(config), config.dir / "console"):
            machine = await hypervisor.connect(config, timeout_s=TIMEOUT_S)
            try:
                await machine.boot(timeout_s=TIMEOUT_S)
                await scenario(machine)
            finally:
                await machine.close()

    asyncio.run(whole())
    return found


def test_a_machine_runs_and_another_goes_on_from_it(config: MachineConfig, tmp_path: Path) -> None:
    """With devices of the start, and ones that are plugged in; with memory that can grow."""
    saved, given = tmp_path / "saved", tmp_path / "given"
    saved.mkdir()
    given.mkdir()
    (saved / "memory").symlink_to(tmp_path / "memory")
    expected = [("running", 2, 128 * MIB), ("paused", 2, 128 * MIB)]
    disks, shares = [Disk("first", tmp_path / "disk", read_only=True)], [Share("nine", "nine", given)]
    with_devices = told(replace(config, disks=disks, shares=shares))
    plain = told(config, saved)
    again = told(replace(config, saved=saved, share_memory=True, memory_file=None))
    for one in (with_devices, plain, again):
        assert [(status.state, status.processors, status.memory_bytes) for status in one] == expected


def test_what_it_cannot_do_is_refused(config: MachineConfig) -> None:
    hypervisor = Qemu(architecture="aarch64")
    assert hypervisor.abilities_of("")["resize-processors"].startswith("no")
    with pytest.raises(Unsupported):
        hypervisor.prepare(replace(config, processors_max=4))
