"""The contract of hypervisors as tests: the same for every driver, on a real machine where its program is installed and
can run one here, else on a server that judges each request by the published schema.

A driver's test module gives a `Site` as fixture `site` and inherits `HypervisorSuite`.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drupe.errors import DrupeError, HelperFailed, Unavailable, Unsupported
from drupe.hypervisors.contract import ABILITIES, Device, Disk, Hypervisor, Machine, MachineConfig, Nic, Share

MIB = 1 << 20
TIMEOUT_S = 60.0
HOTPLUG = ("hotplug-disk", "hotplug-nic", "hotplug-share")


class Site(ABC):
    """Where machines of one driver run. files: a directory with `kernel`, `initrd` and `disk`."""

    hypervisor: Hypervisor
    machine_type = ""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._number = 0

    @abstractmethod
    def config(self) -> MachineConfig:
        """A machine that this driver and this host can run, without devices, in a directory of its own."""

    @abstractmethod
    def running(self, config: MachineConfig) -> AbstractAsyncContextManager[None]:
        """Its program, started as `prepare` says and killed at the end."""

    @abstractmethod
    async def kill(self) -> None:
        """SIGKILL to the program that runs now."""

    @abstractmethod
    async def end_from_inside(self, machine: Machine) -> None:
        """Make the guest end its machine."""

    async def booted(self, config: MachineConfig) -> None:  # noqa: B027
        """Wait until the guest can take part in what is asked of its machine."""

    def to_save(self, config: MachineConfig, directory: Path) -> MachineConfig:
        """A machine that is to be saved there, and shared from there if the program can."""
        return config

    def device(self, word: str) -> Device:
        """One that can be plugged in, by the ability's word; asked for anew for each time."""
        disk = self.directory / "disk"
        if word == "hotplug-disk":
            return Disk("extra", disk, read_only=True)
        if word == "hotplug-nic":
            return Nic("nic0", "02:00:00:00:00:01", tap="tap0")
        return Share("share0", "tag0", self.directory, socket=self.directory / "fs.sock")

    def new_dir(self) -> Path:
        """A machine's private directory."""
        self._number += 1
        made = self.directory / f"m{self._number}"
        made.mkdir()
        return made


def said(site: Site, word: str) -> str:
    return site.hypervisor.abilities_of(site.machine_type)[word]


def can(site: Site, word: str) -> bool:
    return not said(site, word).startswith("no")


Scenario = Callable[[Machine], Coroutine[Any, Any, None]]


def on_a_machine(
    site: Site, scenario: Scenario, config: MachineConfig | None = None, *, with_guest: bool = False
) -> None:
    """The scenario on a machine that runs. with_guest: not before its guest can take part."""

    async def whole() -> None:
        wanted = config or site.config()
        async with site.running(wanted):
            machine = await site.hypervisor.connect(wanted, timeout_s=TIMEOUT_S)
            try:
                await machine.boot(timeout_s=TIMEOUT_S)
                if with_guest:
                    await site.booted(wanted)
                await scenario(machine)
            finally:
                await machine.close()

    asyncio.run(whole())


async def refused(call: Awaitable[Any], error: type[DrupeError] = Unsupported) -> None:
    with pytest.raises(error):
        await call


class HypervisorSuite:
    """See the module."""

    def test_every_ability_has_an_answer(self, site: Site) -> None:
        assert site.hypervisor.abilities.keys() == ABILITIES.keys()
        for answer in site.hypervisor.abilities.values():
            assert answer == "yes" or answer.startswith(("no: ", "limited: "))

    def test_prepare_touches_nothing(self, site: Site) -> None:
        config = site.config()
        before = sorted(config.dir.rglob("*"))
        launch = site.hypervisor.prepare(config)
        assert site.hypervisor.prepare(config) == launch
        assert sorted(config.dir.rglob("*")) == before
        leaves = site.hypervisor.leaves(config)
        for path in (launch.control, launch.agent, *launch.files):
            assert any(path.is_relative_to(place) for place in (config.dir, *leaves))
            assert leaves or len(str(path)) < 108
        assert all(isinstance(word, str) for word in launch.argv)

    def test_what_it_cannot_do_is_refused_at_once(self, site: Site) -> None:
        """By `prepare` for what a machine begins with; nothing is asked of the program."""
        config = site.config()
        tried = {
            "9p": replace(config, shares=[Share("s", "tag", site.directory)]),
            "virtiofs": replace(config, shares=[Share("s", "tag", site.directory, socket=site.directory / "fs.sock")]),
            "hotplug-vfio": replace(config, host_devices=[site_host_device()]),
            "clone": replace(config, saved=site.directory, share_memory=True),
            "resize-processors": replace(config, processors_max=config.processors + 1),
        }
        for word, wanted in tried.items():
            if not can(site, word) and "from the start" not in said(site, word):
                with pytest.raises(Unsupported) as told:
                    site.hypervisor.prepare(wanted)
                assert told.value.details["feature"]

    def test_boot_and_status(self, site: Site) -> None:
        config = site.config()

        async def scenario(machine: Machine) -> None:
            status = await machine.status()
            assert (status.state, status.processors) == ("running", config.processors)
            assert status.memory_bytes == config.memory_bytes
            assert all(isinstance(value, float) for value in (await machine.metrics()).values())

        on_a_machine(site, scenario, config)

    def test_pause_and_resume(self, site: Site) -> None:
        async def scenario(machine: Machine) -> None:
            await machine.pause()
            assert (await machine.status()).state == "paused"
            await machine.resume()
            assert (await machine.status()).state == "running"

        on_a_machine(site, scenario)

    def test_a_second_connection_finds_the_same_machine(self, site: Site) -> None:
        """As a daemon that comes back does."""
        config = site.config()

        async def whole() -> None:
            async with site.running(config):
                first = await site.hypervisor.connect(config, timeout_s=TIMEOUT_S)
                await first.boot(timeout_s=TIMEOUT_S)
                await first.close()
                second = await site.hypervisor.connect(config, timeout_s=TIMEOUT_S)
                assert (await second.status()).state == "running"
                await second.close()

        asyncio.run(whole())

    def test_a_killed_program_ends_the_wait_and_every_call(self, site: Site) -> None:
        async def scenario(machine: Machine) -> None:
            waiting = asyncio.ensure_future(machine.wait())
            await asyncio.sleep(0)
            await site.kill()
            assert await asyncio.wait_for(waiting, 10) == "killed"
            await refused(machine.status(), Unavailable)
            await machine.quit(timeout_s=5)

        on_a_machine(site, scenario)

    def test_a_guest_that_ends_is_told_apart(self, site: Site) -> None:
        async def scenario(machine: Machine) -> None:
            await site.end_from_inside(machine)
            assert await asyncio.wait_for(machine.wait(), TIMEOUT_S) in ("shutdown", "reset")

        on_a_machine(site, scenario, with_guest=True)

    def test_quit_twice(self, site: Site) -> None:
        async def scenario(machine: Machine) -> None:
            await machine.quit(timeout_s=10)
            await asyncio.wait_for(machine.wait(), 10)
            await machine.quit(timeout_s=10)

        on_a_machine(site, scenario)

    def test_devices_come_and_go(self, site: Site) -> None:
        """Removing what is not there is no error; adding twice is one. All on one machine: each boot takes seconds."""

        async def scenario(machine: Machine) -> None:
            for word in HOTPLUG:
                await self.comes_and_goes(site, machine, word)

        on_a_machine(site, scenario, with_guest=any(can(site, word) for word in HOTPLUG))

    async def comes_and_goes(self, site: Site, machine: Machine, word: str) -> None:
        """One device of a kind, or the refusal of all of its kind."""
        device = site.device(word)
        if not can(site, word):
            await refused(machine.add(device))
            return
        await machine.add(device)
        await refused(machine.add(site.device(word)), HelperFailed)
        await machine.remove(device.id, timeout_s=20)
        await machine.remove(device.id, timeout_s=20)
        await machine.add(site.device(word))

    def test_sizes(self, site: Site) -> None:
        """Within what the machine was made for."""
        config = site.config()
        more = config.memory_bytes + 256 * MIB
        if can(site, "resize-memory"):
            config = replace(config, memory_max_bytes=more)
        if can(site, "resize-processors"):
            config = replace(config, processors_max=config.processors + 1)

        async def scenario(machine: Machine) -> None:
            if can(site, "resize-memory"):
                assert (await machine.resize(memory_bytes=more)).memory_bytes == more
                await refused(machine.resize(memory_bytes=more * 4), DrupeError)
                await machine.resize(memory_bytes=config.memory_bytes)
            else:
                await refused(machine.resize(memory_bytes=more))
            if can(site, "resize-processors"):
                assert (await machine.resize(processors=config.processors + 1)).processors == config.processors + 1
            else:
                await refused(machine.resize(processors=config.processors + 1))
            await self.has_its_size(site, machine, config)

        on_a_machine(site, scenario, config, with_guest=can(site, "resize-memory"))

    async def has_its_size(self, site: Site, machine: Machine, config: MachineConfig) -> None:
        """What a driver's own tests look at on the machine whose size has changed."""

    def test_save_and_start_from_it(self, site: Site) -> None:
        saved = site.directory / "saved"
        saved.mkdir()
        config = site.to_save(site.config(), saved) if can(site, "save") else site.config()

        async def save(machine: Machine) -> None:
            if not can(site, "save"):
                await refused(machine.save(saved))
                return
            await machine.pause()
            await machine.save(saved)
            assert (await machine.status()).state == "paused"

        async def look(machine: Machine) -> None:
            assert (await machine.status()).state == "running"

        on_a_machine(site, save, config)
        if can(site, "save"):
            assert list(saved.iterdir())
            shared = can(site, "clone")
            on_a_machine(site, look, replace(site.config(), saved=saved, share_memory=shared))


def site_host_device() -> Any:
    from drupe.hypervisors.contract import HostDevice

    return HostDevice("gpu", "0000:3b:00.0")
