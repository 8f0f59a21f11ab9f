"""Cloud Hypervisor and Firecracker keep the contract, and each of their requests the published schema."""

from __future__ import annotations

import asyncio
import os
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from contract.hypervisor_suite import MIB, HypervisorSuite, Site, on_a_machine
from drupe.errors import DeadlineExceeded, HelperFailed, InvalidArgument, Unavailable, Unsupported
from drupe.hypervisors import firecracker
from drupe.hypervisors.cloud_hypervisor import CloudHypervisor
from drupe.hypervisors.contract import Disk, HostDevice, Machine, MachineConfig, Nic, Share
from drupe.hypervisors.firecracker import Firecracker
from drupe.hypervisors.jails import Jail
from framework.vmmapi import Schema, VmmApi
from framework.vmmodels import CloudModel, FireModel


class ServerSite(Site):
    """A schema server where the program would be."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        for name in ("kernel", "initrd", "disk"):
            (directory / name).write_bytes(b"x" * 512)
        self.api: VmmApi | None = None
        self.wrong: list[str] = []
        self.faults: dict[str, object] = {}

    def config(self) -> MachineConfig:
        files = self.directory
        config = MachineConfig("m", self.new_dir(), files / "kernel", files / "initrd", accelerator="kvm")
        return replace(config, append=["drupe.agent=vsock:1024"], processors=2, processors_max=2)

    @abstractmethod
    def make(self, config: MachineConfig) -> VmmApi:
        """The server that stands for its program."""

    @asynccontextmanager
    async def running(self, config: MachineConfig) -> AsyncIterator[None]:
        launch = self.hypervisor.prepare(config)
        launch.control.parent.mkdir(parents=True, exist_ok=True)
        for path, content in launch.files.items():
            path.write_bytes(content)
        self.api = self.make(config)
        self.api.faults = self.faults
        async with self.api.serving(launch.control):
            yield
        self.wrong += self.api.wrong

    async def kill(self) -> None:
        assert self.api
        await self.api.die(for_good=True)


class CloudSite(ServerSite):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.hypervisor = CloudHypervisor()

    def make(self, config: MachineConfig) -> VmmApi:
        self.model = CloudModel(config.dir)
        return VmmApi(Schema.read("cloud-hypervisor"), self.model, base="/api/v1", last="PUT /vmm.shutdown")

    async def end_from_inside(self, machine: Machine) -> None:
        self.model.tell("vm", "shutdown")
        await self.kill()


class FireSite(ServerSite):
    def __init__(self, directory: Path, jail: Jail | None = None) -> None:
        super().__init__(directory)
        self.jail = jail
        self.hypervisor = Firecracker("/usr/bin/firecracker", jail)

    def make(self, config: MachineConfig) -> VmmApi:
        root = self.hypervisor.root(config)
        self.log = root / "log"
        self.model = FireModel(root=root if self.jail else None)
        return VmmApi(Schema.read("firecracker"), self.model)

    async def end_from_inside(self, machine: Machine) -> None:
        self.log.write_text("Firecracker exiting successfully. exit_code=0\n")
        await self.kill()


class JudgedSuite(HypervisorSuite):
    """Nothing that was asked was against the schema, whatever the driver made of the answer."""

    @pytest.fixture(autouse=True)
    def schema_kept(self, site: ServerSite, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        def end_server(_: Path, *, uid: int | None = None) -> bool:  # it lives in this process
            assert site.api
            return site.api.end_soon()

        monkeypatch.setattr(firecracker, "kill_peer", end_server)
        yield
        assert site.wrong == []


class TestCloudHypervisor(JudgedSuite):
    @pytest.fixture
    def site(self, tmp_path: Path) -> CloudSite:
        return CloudSite(tmp_path)

    def test_all_devices_at_the_start(self, site: CloudSite) -> None:
        """Also by descriptor, which goes along with its own request, and over vhost-user."""
        reading, writing = os.pipe()
        config = replace(
            site.config(),
            shared_memory=True,
            disks=[Disk("root", site.directory / "disk", read_only=True), Disk("v", Path(), socket=Path("/v.sock"))],
            nics=[
                Nic("n0", "02:00:00:00:00:02", tap="tap0", queues=2),
                Nic("n1", "02:00:00:00:00:03", descriptor=reading),
            ],
            shares=[Share("s", "tag", site.directory, socket=Path("/s.sock"))],
            host_devices=[HostDevice("gpu", "0000:3b:00.0")],
        )  # fmt: skip

        async def scenario(machine: Machine) -> None:
            assert site.api
            assert site.model.devices == {"root", "v", "n0", "n1", "s", "gpu"}
            assert [r.fds for r in site.api.asked if r.path == "/vm.add-net"] == [1]
            assert [str(r) for r in site.api.asked] == ["PUT /vm.create", "PUT /vm.add-net", "PUT /vm.boot"]
            created = site.api.asked[0].body
            assert created["disks"][0]["image_type"] == "Raw"
            assert created["net"][0]["num_queues"] == 4
            assert "drupe.agent=vsock:1024" in created["payload"]["cmdline"]

        try:
            on_a_machine(site, scenario, config)
        finally:
            os.close(reading)
            os.close(writing)

    def test_what_was_saved_gets_the_names_of_the_new_machine(self, site: CloudSite) -> None:
        """Two machines never share a socket."""
        saved = site.directory / "saved"
        saved.mkdir()

        async def save(machine: Machine) -> None:
            await machine.pause()
            await machine.save(saved)

        async def look(machine: Machine) -> None:
            assert site.model.config["vsock"]["socket"] == str(config.dir / "vsock.sock")
            assert site.model.config["serial"] == {"mode": "Tty"}
            assert site.model.config["disks"][0]["path"] == str(site.directory / "disk")

        on_a_machine(site, save)
        config = replace(site.config(), saved=saved, disks=[Disk("root", site.directory / "disk")])
        on_a_machine(site, look, config)

    def test_a_guest_that_keeps_a_device(self, site: CloudSite) -> None:
        async def scenario(machine: Machine) -> None:
            await machine.add(Disk("extra", site.directory / "disk"))
            site.model.held = {"extra"}
            with pytest.raises(DeadlineExceeded, match="did not let go of extra"):
                await machine.remove("extra", timeout_s=0.3)

        on_a_machine(site, scenario)

    @pytest.mark.parametrize(
        ("fault", "error", "text"),
        [
            ("hang up", Unavailable, "has gone"),
            ("half", HelperFailed, "no HTTP"),
            ("garbage", HelperFailed, "no HTTP"),
            ((500, ["first", "second"]), HelperFailed, "500 first: second"),
            ((200, b"{no json"), HelperFailed, "no JSON"),
            ((200, b"[" * 200_000), HelperFailed, "no JSON"),
            ((200, b" " * (5 << 20)), HelperFailed, "more than"),
        ],
        ids=["hang-up", "half", "garbage", "refusal", "no-json", "deep-json", "endless"],
    )
    def test_bad_answers(self, site: CloudSite, fault: object, error: type[Exception], text: str) -> None:
        async def scenario(machine: Machine) -> None:
            site.faults["PUT /vm.pause"] = fault
            with pytest.raises(error, match=text):
                await machine.pause()
            assert (await machine.status()).state == "running"

        on_a_machine(site, scenario)

    def test_a_program_that_does_not_answer(self, site: CloudSite) -> None:
        site.faults["PUT /vm.boot"] = "hang"
        config = site.config()

        async def whole() -> None:
            async with site.running(config):
                machine = await site.hypervisor.connect(config, timeout_s=5)
                with pytest.raises(DeadlineExceeded, match=r"did not answer PUT /vm\.boot"):
                    await machine.boot(timeout_s=0.3)
                await machine.close()

        asyncio.run(whole())

    def test_nobody_listens(self, site: CloudSite) -> None:
        with pytest.raises(DeadlineExceeded, match="was not ready"):
            asyncio.run(site.hypervisor.connect(site.config(), timeout_s=0.1))

    def test_a_panic_is_told(self, site: CloudSite) -> None:
        async def scenario(machine: Machine) -> None:
            site.model.tell("guest", "panic")
            assert (await machine.status()).state == "panicked"
            await site.kill()
            assert await machine.wait() == "panic"

        on_a_machine(site, scenario)

    def test_without_kvm(self, site: CloudSite) -> None:
        with pytest.raises(Unsupported, match="needs KVM"):
            site.hypervisor.prepare(replace(site.config(), accelerator="tcg"))


class TestFirecracker(JudgedSuite):
    @pytest.fixture
    def site(self, tmp_path: Path) -> FireSite:
        return FireSite(tmp_path)

    def test_the_whole_configuration(self, site: FireSite) -> None:
        disks = [Disk("root-lower", site.directory / "disk", read_only=True)]
        nics = [Nic("eth0", "02:00:00:00:00:02", tap="tap0")]
        config = replace(site.config(), disks=disks, nics=nics, memory_max_bytes=600 * MIB)

        async def scenario(machine: Machine) -> None:
            assert site.model.put["/drives/root_lower"]["is_read_only"]
            assert site.model.put["/network-interfaces/eth0"]["host_dev_name"] == "tap0"
            assert site.model.put["/vsock"]["uds_path"] == str(config.dir / "vsock.sock")
            assert site.api
            assert [r.body for r in site.api.asked if str(r) == "PUT /hotplug/memory"] == [{"total_size_mib": 384}]
            assert (await machine.metrics())["block_read_bytes"] == 7
            await machine.resize(memory_bytes=200 * MIB)
            assert site.model.balloon_mib == 56

        on_a_machine(site, scenario, config)

    def test_an_old_version_is_not_asked_for_what_it_lacks(
        self, site: FireSite, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(FireModel.__init__, "__defaults__", ("1.7.0", None))

        async def scenario(machine: Machine) -> None:
            assert "free_page_reporting" not in site.model.put["/balloon"]

        on_a_machine(site, scenario)
        with pytest.raises(Unsupported, match=r"from Firecracker 1\.14 on"):
            on_a_machine(site, scenario, replace(site.config(), memory_max_bytes=600 * MIB))

    def test_its_last_word_comes_late(self, site: FireSite) -> None:
        """As with the program itself: its socket is closed first."""

        async def scenario(machine: Machine) -> None:
            site.log.write_text("Vmm is stopping.\n")
            await site.kill()
            waiting = asyncio.ensure_future(machine.wait())
            await asyncio.sleep(0.2)
            assert not waiting.done()
            site.log.write_text("Vmm is stopping.\nFirecracker exiting successfully. exit_code=0\n")
            assert await asyncio.wait_for(waiting, 5) == "shutdown"

        on_a_machine(site, scenario)

    def test_a_refusal_keeps_its_words(self, site: FireSite) -> None:
        with pytest.raises(HelperFailed, match="no such file"):
            on_a_machine(site, lambda machine: machine.pause(), replace(site.config(), kernel=Path("/no/kernel")))


class TestFirecrackerInAJail(JudgedSuite):
    @pytest.fixture
    def site(self, tmp_path: Path) -> FireSite:
        return FireSite(tmp_path, Jail(os.getuid(), os.getgid()))

    def test_files_are_linked_into_the_jail(self, site: FireSite) -> None:
        config = replace(site.config(), disks=[Disk("root", site.directory / "disk", read_only=True)])
        root = config.dir / "firecracker/m/root"
        launch = site.hypervisor.prepare(config)
        assert launch.argv[: launch.argv.index("--")][-2:] == ["--chroot-base-dir", str(config.dir)]

        async def scenario(machine: Machine) -> None:
            assert site.model.put["/boot-source"]["kernel_image_path"] == "/kernel"
            assert site.model.put["/drives/root"]["path_on_host"] == "/root"
            assert site.model.put["/vsock"]["uds_path"] == "/vsock.sock"
            assert (root / "root").samefile(site.directory / "disk")

        on_a_machine(site, scenario, config)

    def test_a_disk_on_another_file_system(self, site: FireSite) -> None:
        config = replace(site.config(), disks=[Disk("root", Path("/proc/version"))])
        with pytest.raises(InvalidArgument, match="into the jail"):
            on_a_machine(site, lambda machine: machine.pause(), config)
