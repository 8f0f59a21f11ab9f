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
    shortly: frozenset[str] = frozenset()

    @pytest.fixture
    def site(self, request: pytest.FixtureRequest, tmp_path: Path, rootfs: Path) -> RuncSite:
        if self.shortly and request.function.__name__ not in self.shortly:
            probes.needs_full(f"all of the contract with {self.runtime}")
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
    # what the program does or says; the rest is the sandboxer's and the keeper's
    shortly = frozenset(
        {
            "test_exit_codes",
            "test_a_task_id_is_taken_once",
            "test_a_missing_program",
            "test_a_program_that_is_not_executable",
            "test_start_of_what_is_not_there_or_started",
            "test_a_deleted_task_can_be_made_again",
            "test_several_containers_in_one_sandbox",
            "test_attached_before_the_start_no_byte_is_missed",
            "test_a_terminal_and_its_size",
            "test_kill_of_one_that_was_never_started",
            "test_everything_reaches_execs_too",
            "test_pause_and_resume_of_a_task",
            "test_update_is_seen_in_stats",
            "test_exec_exit_codes",
            "test_exec_of_a_missing_program",
            "test_exec_with_a_terminal",
            "test_exec_in_what_does_not_run",
            "test_recover_finds_what_lives_and_what_ended",
            "test_recovered_tasks_can_be_served_on",
        }
    )


def test_a_runtime_that_is_not_installed() -> None:
    """The error names it and how to get it."""
    with pytest.raises(DrupeError, match="OCI runtime 'crane' is not installed") as caught:
        find_runtime("crane")
    assert caught.value.hint == "apt-get install crane"
