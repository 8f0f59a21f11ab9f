"""The contract on machines: the real keeper, QEMU, virtiofsd and a guest with its agent."""

from __future__ import annotations

from pathlib import Path

import pytest
from kept_site import KeptSite, make_rootfs
from sandboxer_suite import SandboxerSuite

from drupe.hypervisors.qemu.driver import Qemu
from drupe.sandboxers.vm.options import VmOptions
from drupe.sandboxers.vm.sandboxer import VmSandboxer
from framework import machines


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rootfs(tmp_path_factory.mktemp("rootfs"))


class VmSite(KeptSite):
    states = "vm"

    def make(self) -> VmSandboxer:
        return VmSandboxer(
            keeper=self.keeper,
            cgroups=self.cgroups,
            hypervisor=Qemu(),
            root=machines.root(),
            on_exit=self.ended,
            options=VmOptions(),
        )


@pytest.mark.root
class TestVirtiofs(SandboxerSuite):
    @pytest.fixture
    def site(self, tmp_path: Path, rootfs: Path) -> VmSite:
        machines.needs_machines()
        return VmSite(tmp_path, rootfs)
