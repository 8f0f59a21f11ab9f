"""The contract on gVisor sandboxes: the real keeper and runsc; pods of several containers, and of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kept_site import KeptSite, make_rootfs
from sandboxer_suite import SandboxerSuite, until

from drupe.errors import NotFound
from drupe.sandboxers.contract import SandboxConfig
from drupe.sandboxers.gvisor.command import RunscCommand, find_runsc
from drupe.sandboxers.gvisor.options import GvisorOptions
from drupe.sandboxers.gvisor.pods import Pods
from drupe.sandboxers.gvisor.sandboxer import GvisorSandboxer
from drupe.spec import ContainerSpec
from framework import probes
from framework.residue import children


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rootfs(tmp_path_factory.mktemp("rootfs"))


class GvisorSite(KeptSite):
    states = "gvisor"

    def make(self) -> GvisorSandboxer:
        command = RunscCommand(find_runsc())
        state = self.directory / self.states
        pods = Pods(keeper=self.keeper, command=command, cgroups=self.cgroups, state=state)
        return GvisorSandboxer(pods=pods, cgroups=self.cgroups, on_exit=self.ended, options=GvisorOptions())


class SoleSite(GvisorSite):
    """Pods that are made with their one container, as `drupe run` makes them."""

    def config(self, **spec: Any) -> SandboxConfig:
        return super().config(**{"containers": (ContainerSpec(name="only"),)} | spec)

    def needs(self, *features: str) -> None:
        if "multi-container" in features:
            pytest.skip("the other class has pods of several containers")
        super().needs(*features)


class GvisorSuite(SandboxerSuite):
    kind_of_site: type[GvisorSite]
    shortly: frozenset[str] = frozenset()

    @pytest.fixture
    def site(self, request: pytest.FixtureRequest, tmp_path: Path, rootfs: Path) -> GvisorSite:
        if self.shortly and request.function.__name__ not in self.shortly:
            probes.needs_full("all of the contract on pods of one container")
        probes.needs_root()
        probes.needs_keeper()
        probes.needs_program("runsc")
        return self.kind_of_site(tmp_path, rootfs)


@pytest.mark.root
class TestSeveral(GvisorSuite):
    kind_of_site = GvisorSite

    async def test_no_gofer_is_left_of_one_that_cannot_be_started(self, site: GvisorSite) -> None:
        sandbox = await site.sandbox()
        before = children(site.keeper.pid)
        wrong = site.task(sandbox, "no-such-program")
        await site.sandboxer.tasks().create(wrong)
        with pytest.raises(NotFound):
            await site.sandboxer.tasks().start(wrong.id)
        await until(lambda: children(site.keeper.pid) == before, "its gofer has ended")


@pytest.mark.root
class TestSole(GvisorSuite):
    kind_of_site = SoleSite
    # what differs when a sandbox is made with its container
    shortly = frozenset(
        {
            "test_many_at_once",
            "test_attached_before_the_start_no_byte_is_missed",
            "test_exit_codes",
            "test_a_missing_program",
            "test_a_deleted_task_can_be_made_again",
            "test_kill_of_one_that_was_never_started",
            "test_pause_and_resume_of_a_task",
            "test_a_paused_task_can_be_deleted",
            "test_update_is_seen_in_stats",
            "test_the_end_of_a_task_ends_its_execs",
            "test_a_sandbox_goes_on_from_a_snapshot",
            "test_recover_finds_what_lives_and_what_ended",
            "test_recovered_tasks_can_be_served_on",
        }
    )


def test_a_runsc_that_is_not_installed() -> None:
    """The error names it and how to get it."""
    with pytest.raises(NotFound, match="'runscx' is not installed") as caught:
        find_runsc("runscx")
    assert "bookworm-backports" in caught.value.hint
