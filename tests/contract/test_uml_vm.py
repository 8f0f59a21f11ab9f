"""The vm kind's contract on User-mode Linux: a real kernel at the processor's own speed, the same agent in it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from kept_site import KeptSite, make_rootfs
from sandboxer_suite import SandboxerSuite

from drupe.guest import build, kernel
from drupe.sandboxers.vm.options import VmOptions
from drupe.sandboxers.vm.sandboxer import VmSandboxer, find_hypervisor
from framework import probes

OPTIONS = VmOptions(hypervisor="uml", guest="uml", template=False)


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rootfs(tmp_path_factory.mktemp("rootfs"))


@pytest.fixture(scope="module")
def machines_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runtime's root, with a guest image for the installed kernel."""
    probes.needs_root()
    probes.needs_keeper()
    probes.needs_program("linux.uml", "crun")
    root = tmp_path_factory.mktemp("root")
    image = shutil.which("linux.uml")
    assert image
    given = kernel.given(Path(image), max(Path("/usr/lib/uml/modules").iterdir()))
    plan = build.Plan(given, build.find_agent(), build.find_runtime(), extra_modules=("ipv6",))
    build.build(root, plan, "uml")
    return root


class UmlSite(KeptSite):
    states = "vm"

    def __init__(self, directory: Path, rootfs: Path, root: Path) -> None:
        super().__init__(directory, rootfs)
        self.root = root

    def make(self) -> VmSandboxer:
        return VmSandboxer(
            keeper=self.keeper, cgroups=self.cgroups, hypervisor=find_hypervisor(OPTIONS), root=self.root,
            on_exit=self.ended, options=OPTIONS,
        )  # fmt: skip


@pytest.mark.root
class TestUml(SandboxerSuite):
    @pytest.fixture
    def site(self, tmp_path: Path, rootfs: Path, machines_root: Path) -> UmlSite:
        return UmlSite(tmp_path, rootfs, machines_root)
