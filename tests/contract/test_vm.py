"""The contract on machines: the real keeper, QEMU, virtiofsd and a guest with its agent."""

from __future__ import annotations

from pathlib import Path

import pytest
from kept_site import KeptSite, make_rootfs
from sandboxer_suite import SandboxerSuite

from drupe.hypervisors.qemu.driver import Qemu
from drupe.images.store import ImageStore
from drupe.sandboxers.vm.options import RootfsForm, VmOptions
from drupe.sandboxers.vm.sandboxer import VmSandboxer
from drupe.spec import PodSpec
from framework import machines
from framework.probes import FULL, needs_full


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rootfs(tmp_path_factory.mktemp("rootfs"))


@pytest.fixture(scope="module")
def machines_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runtime's root: its templates serve all tests of the module."""
    machines.needs_machines()
    return machines.make_root(tmp_path_factory.mktemp("root"))


class VmSite(KeptSite):
    """Pods start from a template, which the first test makes."""

    states = "vm"
    many = 10 if FULL else 4
    sandboxer: VmSandboxer

    def __init__(self, directory: Path, rootfs: Path, root: Path, form: RootfsForm) -> None:
        super().__init__(directory, rootfs)
        self.root = root
        self.form = form

    async def open(self) -> VmSandboxer:
        await super().open()
        if not list((self.root / "vm/templates").glob("[!.]*")):
            await self.sandboxer.make_template(PodSpec(), f"{self.cgroup_parent}/template")
        return self.sandboxer

    def needs(self, *features: str) -> None:
        if "snapshot" in features and self.form == "virtiofs":
            pytest.skip("a machine with a shared directory cannot be saved; the other class has none")
        super().needs(*features)

    def make(self) -> VmSandboxer:
        return VmSandboxer(
            keeper=self.keeper,
            cgroups=self.cgroups,
            hypervisor=Qemu(),
            root=self.root,
            images=ImageStore(self.root / "images"),
            on_exit=self.ended,
            options=VmOptions(rootfs=self.form),
        )


@pytest.mark.root
class TestVirtiofs(SandboxerSuite):
    @pytest.fixture
    def site(self, tmp_path: Path, rootfs: Path, machines_root: Path) -> VmSite:
        return VmSite(tmp_path, rootfs, machines_root, "virtiofs")


# what differs when roots are disks
BY_BLOCK = {
    "test_attached_before_the_start_no_byte_is_missed",
    "test_exit_codes",
    "test_several_containers_in_one_sandbox",
    "test_a_sandbox_goes_on_from_a_snapshot",
    "test_recovered_tasks_can_be_served_on",
}


@pytest.mark.root
class TestBlock(SandboxerSuite):
    @pytest.fixture
    def site(self, request: pytest.FixtureRequest, tmp_path: Path, rootfs: Path, machines_root: Path) -> VmSite:
        if request.function.__name__ not in BY_BLOCK:
            needs_full("all of the contract on roots by block")
        return VmSite(tmp_path, rootfs, machines_root, "block")
