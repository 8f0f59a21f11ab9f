"""Other hypervisors under the vm kind: chosen by the node or by a pod, their agent reached over hybrid vsock.

The programs cannot run here. What stands for them judges each request by the published schema, is started by the keeper
as they would be, and leads to a real agent.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from kept_site import KeptSite

from drupe.errors import InvalidArgument, InvalidState, NotFound, PermissionDenied, Unsupported
from drupe.hypervisors.owners import uid_of
from drupe.images.store import ImageStore
from drupe.rpc.guest import guest_pb2 as pb
from drupe.sandboxers.contract import SandboxConfig
from drupe.sandboxers.vm import hardware, sandboxer, starting
from drupe.sandboxers.vm.hypervisors import HYPERVISOR, Hypervisors, open_hypervisor
from drupe.sandboxers.vm.machines import Machines
from drupe.sandboxers.vm.options import QUEUES, ROOTFS, VmOptions, queues_for, rootfs_for
from drupe.sandboxers.vm.sandboxer import VmSandboxer
from drupe.spec import ContainerSpec, Device, NetworkSpec, PodSpec
from framework import fakejailer, fakevmm, machines
from framework.agentservice import AgentService
from framework.fakesysfs import GPU, SOUND, FakeSysfs

REST = ("cloud-hypervisor", "firecracker")


class OtherSite(KeptSite):
    """A node whose machines are run by another program than QEMU."""

    states = "vm"

    def __init__(self, directory: Path, name: str, program: Path) -> None:
        super().__init__(directory, directory)
        self.options = VmOptions(hypervisor=name, program=str(program), rootfs="block")

    def make(self) -> VmSandboxer:
        root = self.directory / "root"
        hypervisor = open_hypervisor(self.options.hypervisor, self.options.program, root)
        if not (root / "guests").exists():
            machines.make_root(root)
        return VmSandboxer(
            keeper=self.keeper, cgroups=self.cgroups, hypervisor=hypervisor, root=root,
            images=ImageStore(root / "images"), on_exit=self.ended, options=self.options,
        )  # fmt: skip

    def config(self, **fields: object) -> SandboxConfig:
        spec = PodSpec(network=NetworkSpec(mode="none"), **fields)  # type: ignore[arg-type]
        made = SandboxConfig("other", spec, self.directory / "pod", f"{self.cgroup_parent}/other", hostname="other-pod")
        made.dir.mkdir()
        self.prepare(made)
        return made

    @contextlib.asynccontextmanager
    async def started(self, **fields: object) -> AsyncIterator[tuple[VmSandboxer, SandboxConfig]]:
        """A pod that was made and started; the node is closed afterwards."""
        kind, config = await self.open(), self.config(**fields)
        try:
            await kind.create(config)
            await kind.start("other")
            yield kind, config
        finally:
            await self.close()

    async def taken_over(self, config: SandboxConfig) -> VmSandboxer:
        """By another daemon."""
        kind = await self.reopen()
        await kind.recover({"other": config})
        return kind


def site_of(directory: Path, name: str, agent: AgentService) -> OtherSite:
    """A node with what stands for that program, in `bin`."""
    for part in ("bin", "root"):
        (directory / part).mkdir()
    return OtherSite(directory, name, fakevmm.install(name, directory / "bin", agent.path))


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AgentService]:
    """What stands for the guest. It is on this host, whose clock it must not set."""
    machines.needs_machines()
    real = starting._setup

    def timeless(*arguments: object) -> pb.SetupRequest:
        request = real(*arguments)  # type: ignore[arg-type]
        request.clock_unix_ns = 0
        return request

    async def no_clock(*_: object) -> None:
        return None

    async def kvm(_: object) -> str:
        return "kvm"

    monkeypatch.setattr(starting, "_setup", timeless)
    monkeypatch.setattr(Machines, "set_clock", no_clock)
    monkeypatch.setattr(sandboxer, "choose_accelerator", kvm)
    service = AgentService(tmp_path)
    yield service
    service.close()


@pytest.mark.root
@pytest.mark.parametrize("name", REST)
def test_a_pod_on_another_hypervisor(name: str, tmp_path: Path, agent: AgentService) -> None:
    """Started, set up by its agent, paused, taken over by another daemon, ended."""
    site = site_of(tmp_path, name, agent)

    async def scenario() -> None:
        async with site.started() as (kind, config):
            assert agent.inside("hostname").strip() == "other-pod"
            info = await kind.measure("other")
            assert info is not None
            assert (info.hypervisor, info.accelerator) == (name, "kvm")
            assert any("without capabilities" in note for note in info.notes)
            await kind.pause("other")
            await kind.resume("other")
            kind = await site.taken_over(config)
            assert (await kind.measure("other")) is not None
            await kind.stop("other", deadline_s=1.0)

    asyncio.run(scenario())
    asked = (tmp_path / "bin/asked").read_text()
    assert "drupe.channel=vsock:1024" in asked
    assert ("PATCH /vm" if name == "firecracker" else "PUT /vm.pause") in asked


@pytest.mark.root
def test_in_a_jail(tmp_path: Path, agent: AgentService) -> None:
    """Where Firecracker's jailer is installed: a user and a root of its own, with what it was given, of which nothing
    is left; a daemon that comes back finds it there."""
    site = site_of(tmp_path, "firecracker", agent)
    fakejailer.install(tmp_path / "bin")
    jail = tmp_path / "root/vm/jails/firecracker/other/root"

    async def scenario() -> None:
        async with site.started() as (kind, config):
            assert agent.inside("hostname").strip() == "other-pod"
            info = await kind.measure("other")
            assert info is not None and not any("without capabilities" in note for note in info.notes)
            assert {"kernel", "initrd", "api.sock", "vsock.sock"} <= {path.name for path in jail.iterdir()}
            assert jail.stat().st_uid == uid_of("other")
            kind = await site.taken_over(config)
            await kind.pause("other")
            await kind.resume("other")
            await kind.stop("other", deadline_s=1.0)
            assert not jail.parent.exists()

    asyncio.run(scenario())
    asked = (tmp_path / "bin/asked").read_text()
    assert "'kernel_image_path': '/kernel'" in asked and "'uds_path': '/vsock.sock'" in asked


@pytest.mark.root
def test_hardware_of_the_host(tmp_path: Path, agent: AgentService, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device's whole group is the machine's from its start, and its drivers' again afterwards; on a tree of files."""
    site = site_of(tmp_path, "cloud-hypervisor", agent)
    sysfs = FakeSysfs(tmp_path / "sys")
    monkeypatch.setattr(hardware, "SYSFS", sysfs.root)
    wanted = ContainerSpec(devices=(Device(path=f"vfio={GPU}"), Device(path=f"vfio={SOUND}")))
    before = sysfs.drivers()

    async def scenario() -> None:
        async with site.started(containers=(wanted,)) as (_, config):
            assert sysfs.drivers() == before | {GPU: "vfio-pci", SOUND: "vfio-pci"}
            kind = await site.taken_over(config)
            await kind.stop("other", deadline_s=1.0)

    try:
        asyncio.run(scenario())
        assert sysfs.drivers() == before
        asked = (tmp_path / "bin/asked").read_text()
        assert all(f"/sys/bus/pci/devices/{address}" in asked for address in (GPU, SOUND))
    finally:
        sysfs.close()


@pytest.mark.root
def test_hardware_that_the_host_uses(tmp_path: Path, agent: AgentService, monkeypatch: pytest.MonkeyPatch) -> None:
    """One device of a group whose other one nobody asked for is refused, and nothing has changed."""
    (tmp_path / "root").mkdir()
    site = OtherSite(tmp_path, "cloud-hypervisor", fakevmm.install("cloud-hypervisor", tmp_path, agent.path))
    sysfs = FakeSysfs(tmp_path / "sys")
    monkeypatch.setattr(hardware, "SYSFS", sysfs.root)
    before = sysfs.drivers()

    async def scenario() -> None:
        kind = await site.open()
        try:
            with pytest.raises(InvalidState, match="also has"):
                await kind.create(site.config(containers=(ContainerSpec(devices=(Device(path=f"vfio={GPU}"),)),)))
        finally:
            await site.close()

    try:
        asyncio.run(scenario())
        assert sysfs.drivers() == before
    finally:
        sysfs.close()


@pytest.mark.parametrize("name", ["cloud-hypervisor", "firecracker", "stratovirt"])
def test_one_that_is_not_installed(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotFound, match=f"{name} is not installed"):
        open_hypervisor(name)


def test_what_pods_may_choose() -> None:
    """Only what the node lists; and User-mode Linux never, which is no machine."""

    class Other:
        name = "cloud-hypervisor"

    def pod(name: str) -> PodSpec:
        return PodSpec(annotations={HYPERVISOR: name})

    first = Other()
    chosen = Hypervisors(first)  # type: ignore[arg-type]
    assert chosen.wished(PodSpec()) is first
    assert chosen.wished(pod("cloud-hypervisor")) is first
    with pytest.raises(PermissionDenied, match="may not choose 'firecracker'"):
        chosen.wished(pod("firecracker"))
    for name in ("uml", "nonsense"):
        with pytest.raises(InvalidArgument, match="does not offer"):
            Hypervisors(first, (name,)).wished(pod(name))  # type: ignore[arg-type]


def test_roots_that_a_program_cannot_have() -> None:
    from drupe.hypervisors.firecracker import Firecracker
    from drupe.sandboxers.vm.options import rootfs_for

    able = Firecracker.abilities
    assert rootfs_for(VmOptions(), PodSpec(), able) == "block"
    with pytest.raises(Unsupported, match="shares no directories"):
        rootfs_for(VmOptions(), PodSpec(annotations={ROOTFS: "virtiofs"}), able)


def test_what_pods_may_wish_of_a_machine() -> None:
    """As many queues as a program has, and no roots by 9p, which would be served by the monitor itself."""
    several, one = {"multiqueue": "yes", "virtiofs": "yes"}, {"multiqueue": "no: it has one", "virtiofs": "no: none"}
    options, four = VmOptions(queues=2), PodSpec(annotations={QUEUES: "4"})
    assert (queues_for(options, PodSpec(), several), queues_for(options, PodSpec(), one)) == (2, 1)
    assert queues_for(options, four, several) == 4
    with pytest.raises(Unsupported, match="one queue"):
        queues_for(options, four, one)
    for wrong in ("0", "9", "-1", "many", ""):
        with pytest.raises(InvalidArgument, match=QUEUES):
            queues_for(options, PodSpec(annotations={QUEUES: wrong}), several)
    with pytest.raises(Unsupported, match="9p") as refused:
        rootfs_for(options, PodSpec(annotations={ROOTFS: "9p"}), several)
    assert "block" in refused.value.hint
