"""StratoVirt keeps the contract, as far as can be told without its program: its command line and its QMP are judged by
what the project publishes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from contract.hypervisor_suite import HypervisorSuite, Site, on_a_machine
from drupe.errors import DeadlineExceeded, HelperFailed, InvalidArgument, ResourceExhausted, Unavailable
from drupe.hypervisors.contract import Disk, Machine, MachineConfig, Nic, Share
from drupe.hypervisors.stratovirt import MOST_DISKS, StratoVirt
from framework.qmpapi import QmpApi, StratoModel, judge_command_line
from framework.vmmapi import Schema, SchemaError


class StratoSite(Site):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.hypervisor = StratoVirt()
        self.schema = Schema.read("stratovirt")
        self.faults: dict[str, object] = {}
        self.greeting = b""
        for name in ("kernel", "initrd", "disk"):
            (directory / name).write_bytes(b"x" * 512)

    def config(self) -> MachineConfig:
        files = self.directory
        return MachineConfig("m", self.new_dir(), files / "kernel", files / "initrd", accelerator="kvm", processors=2)

    def to_save(self, config: MachineConfig, directory: Path) -> MachineConfig:
        return config

    @asynccontextmanager
    async def running(self, config: MachineConfig) -> AsyncIterator[None]:
        config = replace(config, processors_max=config.processors)
        launch = self.hypervisor.prepare(config)
        self.model = StratoModel(judge_command_line(self.schema, launch.argv))
        self.api = QmpApi(self.schema, self.model, faults=self.faults)
        self.api.greeting = self.greeting or self.api.greeting
        async with self.api.serving(launch.control):
            yield

    async def kill(self) -> None:
        await self.api.die()

    async def end_from_inside(self, machine: Machine) -> None:
        await self.api.tell("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"})
        await self.api.die()


class TestStratoVirt(HypervisorSuite):
    @pytest.fixture
    def site(self, tmp_path: Path) -> StratoSite:
        return StratoSite(tmp_path)

    @pytest.fixture(autouse=True)
    def schema_kept(self, site: StratoSite) -> Iterator[None]:
        yield
        assert not hasattr(site, "api") or site.api.wrong == []

    def test_the_schema_refuses_what_the_program_would(self, site: StratoSite) -> None:
        """The oracle first: a misspelt word does not pass."""
        argv = list(site.hypervisor.prepare(site.config()).argv)
        judge_command_line(site.schema, argv)
        for wrong in (["-kernels", "k"], ["-device", "virtio-blk-pci,id=a"], ["-drive", "id=a,file=b,read-only=on"]):
            with pytest.raises(SchemaError):
                judge_command_line(site.schema, [*argv, *wrong])
        with pytest.raises(SchemaError):
            site.schema.check("QMP", "/device_add", {"id": "a", "driver": "virtio-blk-mmio", "address": "0x0"})

    def test_all_devices_at_the_start(self, site: StratoSite) -> None:
        config = replace(
            site.config(),
            shared_memory=True,
            disks=[Disk("root", site.directory / "disk", read_only=True), Disk("data", site.directory / "disk")],
            nics=[Nic("n0", "02:00:00:00:00:02", tap="tap0")],
            shares=[Share("s", "tag", site.directory, socket=Path("/s.sock"))],
        )

        async def scenario(machine: Machine) -> None:
            assert site.model.places == {("blk", 0): "root", ("blk", 1): "data", ("net", 0): "n0"}
            told = site.model.arguments
            assert told["-drive"][0]["readonly"] == "on"
            assert told["-chardev/socket"][1]["path"] == "/s.sock"
            assert told["-machine"][0]["mem-share"] == "on"
            await machine.add(Disk("third", site.directory / "disk"))
            assert site.model.places["blk", 2] == "third"
            with pytest.raises(HelperFailed, match="plugged in already"):
                await machine.add(Disk("root", site.directory / "disk"))

        on_a_machine(site, scenario, config)

    def test_places_are_limited_and_come_back(self, site: StratoSite) -> None:
        async def scenario(machine: Machine) -> None:
            for number in range(MOST_DISKS):
                await machine.add(Disk(f"d{number}", site.directory / "disk"))
            with pytest.raises(ResourceExhausted, match="no room"):
                await machine.add(Disk("more", site.directory / "disk"))
            await machine.remove("d1", timeout_s=5)
            await machine.add(Disk("more", site.directory / "disk"))
            assert site.model.places["blk", 1] == "more"

        on_a_machine(site, scenario)

    def test_a_refused_device_leaves_nothing(self, site: StratoSite) -> None:
        """Its backend goes again, so that it can be tried anew."""

        async def scenario(machine: Machine) -> None:
            site.model.places["blk", 0] = "somebody's"
            for _ in range(2):
                with pytest.raises(HelperFailed, match="occupied"):
                    await machine.add(Disk("extra", site.directory / "disk"))
            assert site.model.backends == {}

        on_a_machine(site, scenario)

    def test_a_tap_by_its_descriptor(self, site: StratoSite) -> None:
        async def scenario(machine: Machine) -> None:
            with (site.directory / "disk").open("rb") as file:
                await machine.add(Nic("n0", "02:00:00:00:00:02", descriptor=file.fileno()))
            assert [name for name, _ in site.api.asked][-3:] == ["getfd", "netdev_add", "device_add"]
            assert site.model.fds == {"n0": 1}

        on_a_machine(site, scenario)

    def test_what_its_guest_ends_with_is_told(self, site: StratoSite) -> None:
        async def scenario(machine: Machine) -> None:
            await site.api.tell("SHUTDOWN", {"guest": True, "reason": "guest-reset"})
            await site.kill()
            assert await machine.wait() == "reset"

        on_a_machine(site, scenario)

    @pytest.mark.parametrize(
        ("fault", "error"),
        [
            (b"", Unavailable),
            (b'{"return": {', Unavailable),
            (b"what?\r\n", Unavailable),
            (b"[1]\r\n", Unavailable),
            (b"[" * 100_000 + b"\r\n", Unavailable),
            (b" " * (70 << 20), Unavailable),
            ("hang", DeadlineExceeded),
        ],
        ids=["hang-up", "half", "garbage", "no-object", "deep", "endless", "hang"],
    )
    def test_bad_answers(
        self, site: StratoSite, fault: object, error: type[Exception], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An error, soon, and the wait ends where there is no monitor any more."""
        monkeypatch.setattr("drupe.hypervisors.qmp.ANSWERS_WITHIN_S", 0.5)
        site.faults["migrate"] = fault

        async def scenario(machine: Machine) -> None:
            monkeypatch.setattr("drupe.hypervisors.stratovirt._SAVE_TIMEOUT_S", 5.0 if fault != "hang" else 0.5)
            with pytest.raises(error):
                await machine.save(site.directory)
            if fault != "hang":
                assert await asyncio.wait_for(machine.wait(), 10) == "killed"

        on_a_machine(site, scenario)

    @pytest.mark.parametrize(
        "greeting", [b"{}\r\n", b"hello\r\n", b"\xff\xfe\r\n", json.dumps({"QMP": 7}).encode() + b"\r\n", b"x" * 20_000_000]
    )
    def test_a_greeting_that_is_none(self, site: StratoSite, greeting: bytes) -> None:
        site.greeting = greeting
        config = site.config()

        async def whole() -> None:
            async with site.running(config):
                with pytest.raises((DeadlineExceeded, Unavailable)):
                    await site.hypervisor.connect(config, timeout_s=0.3)

        asyncio.run(whole())

    def test_nobody_listens(self, site: StratoSite) -> None:
        with pytest.raises(DeadlineExceeded, match="was not ready"):
            asyncio.run(site.hypervisor.connect(site.config(), timeout_s=0.1))

    def test_another_machine_type(self, site: StratoSite) -> None:
        with pytest.raises(InvalidArgument, match="q35"):
            site.hypervisor.prepare(replace(site.config(), machine_type="q35"))
