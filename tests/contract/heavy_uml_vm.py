"""The vm kind's contract on User-mode Linux: a real kernel at the processor's own speed, the same agent in it.

Not part of every test run, where QEMU is the proof: `make test-hypervisors`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from kept_site import KeptSite, make_rootfs
from sandboxer_suite import SandboxerSuite

from drupe.errors import InvalidArgument
from drupe.guest import build, kernel
from drupe.hypervisors.uml import Uml, find_uml
from drupe.images.store import ImageStore
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

    def needs(self, *features: str) -> None:
        if "snapshot" in features:
            pytest.skip("a machine of User-mode Linux has its root by a share, and cannot be saved")
        super().needs(*features)

    def make(self) -> VmSandboxer:
        return VmSandboxer(
            keeper=self.keeper, cgroups=self.cgroups, hypervisor=Uml(find_uml()), root=self.root,
            images=ImageStore(self.root / "images"), on_exit=self.ended, options=OPTIONS,
        )  # fmt: skip


@pytest.mark.root
class TestUml(SandboxerSuite):
    @pytest.fixture
    def site(self, tmp_path: Path, rootfs: Path, machines_root: Path) -> UmlSite:
        return UmlSite(tmp_path, rootfs, machines_root)


def test_no_node_can_choose_it() -> None:
    """The kind's level promises a machine."""
    with pytest.raises(InvalidArgument, match="does not offer 'uml'"):
        find_hypervisor(OPTIONS)
