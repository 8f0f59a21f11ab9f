"""The contract on runc sandboxes: the real keeper, with crun and with runc as the OCI runtime."""

from __future__ import annotations

from pathlib import Path

import pytest
from kept_site import KeptSite, make_rootfs
from sandboxer_suite import SandboxerSuite

from drupe.errors import DrupeError
from drupe.sandboxers.runc.command import RuntimeCommand
from drupe.sandboxers.runc.program import RuntimeProgram, find_runtime
from drupe.sandboxers.runc.sandboxer import RuncSandboxer
from framework import probes


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rootfs(tmp_path_factory.mktemp("rootfs"))


class RuncSite(KeptSite):
    states = "oci"

    def __init__(self, directory: Path, rootfs: Path, runtime: str) -> None:
        super().__init__(directory, rootfs)
        self.runtime = runtime

    def make(self) -> RuncSandboxer:
        program = RuntimeProgram(find_runtime(self.runtime))
        command = RuntimeCommand(program=program, root=self.directory / self.states)
        return RuncSandboxer(keeper=self.keeper, command=command, cgroups=self.cgroups, on_exit=self.ended)


class RuncSuite(SandboxerSuite):
    runtime = ""

    @pytest.fixture
    def site(self, tmp_path: Path, rootfs: Path) -> RuncSite:
        probes.needs_root()
        probes.needs_keeper()
        probes.needs_program(self.runtime)
        return RuncSite(tmp_path, rootfs, self.runtime)


@pytest.mark.root
class TestCrun(RuncSuite):
    runtime = "crun"


@pytest.mark.root
class TestRunc(RuncSuite):
    runtime = "runc"


def test_a_runtime_that_is_not_installed() -> None:
    """The error names it and how to get it."""
    with pytest.raises(DrupeError, match="OCI runtime 'crane' is not installed") as caught:
        find_runtime("crane")
    assert caught.value.hint == "apt-get install crane"
