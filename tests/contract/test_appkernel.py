"""The contract on application kernels: the real keeper and kernel; pods of several containers, and of one."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kept_site import KeptSite, make_rootfs
from sandboxer_suite import SandboxerSuite, _nothing

from drupe.errors import DataLoss, HelperFailed, InvalidArgument, NotFound, Unsupported
from drupe.images.erofs import tree_erofs
from drupe.sandboxers.appkernel.kernels import Kernels
from drupe.sandboxers.appkernel.options import AppkernelOptions, find_kernel
from drupe.sandboxers.appkernel.platforms import PlatformChoice
from drupe.sandboxers.appkernel.pods import Pods
from drupe.sandboxers.appkernel.sandboxer import AppkernelSandboxer
from drupe.sandboxers.appkernel.spares import Spares
from drupe.sandboxers.contract import SandboxConfig, TaskConfig
from drupe.spec import ContainerSpec
from framework import probes

ROUNDS = 400 if os.environ.get("DRUPE_TEST_FULL") else 12  # damaged snapshots


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rootfs(tmp_path_factory.mktemp("rootfs"))


@pytest.fixture(scope="module")
def image(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same root as the image store gives it."""
    probes.needs_program("mkfs.erofs")
    return tree_erofs(rootfs, tmp_path_factory.mktemp("image") / "root.erofs", name="root")


class AppkernelSite(KeptSite):
    """Roots are images."""

    states = "appkernel"
    by_image = True

    def __init__(self, directory: Path, rootfs: Path, image: Path) -> None:
        super().__init__(directory, rootfs)
        self.image = image

    def task(self, sandbox: str, line: str, **fields: Any) -> TaskConfig:
        return replace(super().task(sandbox, line, **fields), image=self.image if self.by_image else None)

    def make(self) -> AppkernelSandboxer:
        program = find_kernel(AppkernelOptions())
        kernels = Kernels(
            keeper=self.keeper, cgroups=self.cgroups, program=program, platform=PlatformChoice(program, "trap")
        )
        spares = Spares(kernels=kernels, home=self.directory / self.states, count=1)
        pods = Pods(kernels=kernels, spares=spares, cgroups=self.cgroups)
        return AppkernelSandboxer(pods=pods, cgroups=self.cgroups, on_exit=self.ended, options=AppkernelOptions())


class SoleSite(AppkernelSite):
    """Pods that are made with their one container, as `drupe run` makes them; roots are directories."""

    by_image = False

    def config(self, **spec: Any) -> SandboxConfig:
        return super().config(**{"containers": (ContainerSpec(name="only"),)} | spec)

    def needs(self, *features: str) -> None:
        if "multi-container" in features:
            pytest.skip("the other class has pods of several containers")
        super().needs(*features)


@pytest.mark.root
class TestSeveral(SandboxerSuite):
    @pytest.fixture
    def site(self, tmp_path: Path, rootfs: Path, image: Path) -> AppkernelSite:
        probes.needs_root()
        probes.needs_keeper()
        return AppkernelSite(tmp_path, rootfs, image)

    async def test_stats_of_one_of_several(self, site: AppkernelSite) -> None:
        """As the kernel counts them; all that it counts of memory is in use."""
        sandbox = await site.sandbox()
        tasks = [site.task(sandbox, "sleep 60") for _ in range(2)]
        for task in tasks:
            await site.sandboxer.tasks().create(task)
            await site.sandboxer.tasks().start(task.id)
        stats = await site.sandboxer.tasks().stats(tasks[0].id)
        assert stats.pids == 1 and stats.memory_working_set_bytes == stats.memory_usage_bytes > 0


@pytest.mark.root
class TestSole:
    """What differs when a pod has one container, and its root is a directory."""

    test_many_at_once = SandboxerSuite.test_many_at_once
    test_what_it_says_comes_out = SandboxerSuite.test_attached_before_the_start_no_byte_is_missed
    test_exit_codes = SandboxerSuite.test_exit_codes
    test_a_missing_program = SandboxerSuite.test_a_missing_program
    test_a_deleted_task_can_be_made_again = SandboxerSuite.test_a_deleted_task_can_be_made_again
    test_kill_of_one_that_was_never_started = SandboxerSuite.test_kill_of_one_that_was_never_started
    test_pause_and_resume_of_a_task = SandboxerSuite.test_pause_and_resume_of_a_task
    test_a_paused_task_can_be_deleted = SandboxerSuite.test_a_paused_task_can_be_deleted
    test_update_is_seen_in_stats = SandboxerSuite.test_update_is_seen_in_stats
    test_the_end_of_a_task_ends_its_execs = SandboxerSuite.test_the_end_of_a_task_ends_its_execs
    test_a_sandbox_goes_on_from_a_snapshot = SandboxerSuite.test_a_sandbox_goes_on_from_a_snapshot
    test_recover_finds_what_lives_and_what_ended = SandboxerSuite.test_recover_finds_what_lives_and_what_ended
    test_recovered_tasks_can_be_served_on = SandboxerSuite.test_recovered_tasks_can_be_served_on
    _config = staticmethod(SandboxerSuite._config)

    @pytest.fixture
    def site(self, tmp_path: Path, rootfs: Path, image: Path) -> SoleSite:
        probes.needs_root()
        probes.needs_keeper()
        return SoleSite(tmp_path, rootfs, image)


def sealed(state: bytes) -> bytes:
    """The state with the sum that its body has (FNV-1a)."""
    total = 0xCBF2_9CE4_8422_2325
    for byte in state[20:]:
        total = (total ^ byte) * 0x100_0000_01B3 % 2**64
    return state[:12] + total.to_bytes(8, "little") + state[20:]


def changed(state: bytes, chance: random.Random) -> bytes:
    """With some bytes that are others, or cut off; its sum is right."""
    new = bytearray(state if chance.random() < 0.9 else state[: chance.randrange(20, len(state))])
    for _ in range(chance.choice([1, 1, 2, 8])):
        new[chance.randrange(20, len(new))] = chance.choice([0, 1, 0x7F, 0xFF, chance.randrange(256)])
    return sealed(bytes(new))


@pytest.mark.root
class TestDamagedSnapshots:
    """What is none is refused by name, or goes on as whatever it says; its kernel lives."""

    _config = staticmethod(SandboxerSuite._config)

    @pytest.fixture
    def site(self, tmp_path: Path, rootfs: Path, image: Path) -> SoleSite:
        probes.needs_root()
        probes.needs_keeper()
        return SoleSite(tmp_path, rootfs, image)

    async def test_every_state_is_read_or_refused(self, site: SoleSite, tmp_path: Path) -> None:
        (tmp_path / "snapshot").mkdir()
        task = await site.running("patient")
        await site.sandboxer.snapshot(task.sandbox, tmp_path / "snapshot", meanwhile=_nothing)
        state, chance = (tmp_path / "snapshot/state").read_bytes(), random.Random(ROUNDS)
        assert sealed(state) == state
        cases = [state[:30], state[:-1] + b"?", b"x" + state, state[:8] + b"????" + state[12:]]
        outcomes: list[str] = []
        for case in [*cases, *(changed(state, chance) for _ in range(ROUNDS))]:
            (tmp_path / "snapshot/state").write_bytes(case)
            outcomes.append(await self.tried(site, task.id, tmp_path / "snapshot"))
        assert outcomes[:4] == ["DataLoss", "DataLoss", "DataLoss", "Unsupported"]
        assert not site.has_ended(task.id)

    async def tried(self, site: SoleSite, old: str, directory: Path) -> str:
        """What came of it; the kernel answers."""
        config = site.config()
        site.prepare(config)
        site.infos[config.id] = await site.sandboxer.create(config)
        twin = site.task(config.id, "patient")
        await site.sandboxer.tasks().create(twin)
        try:
            await site.sandboxer.restore(config.id, directory, {twin.id: old})
            outcome = ""
        except (DataLoss, Unsupported, HelperFailed, InvalidArgument) as error:
            outcome = type(error).__name__
        log = config.dir / "appkernel/kernel.log"
        assert "panicked" not in (log.read_text() if log.exists() else "")
        await site.sandboxer.tasks().processes(twin.id) if not outcome else None
        await site.sandboxer.tasks().delete(twin.id)
        await site.sandboxer.delete(config.id)
        return outcome


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(NotFound, match="no program /nowhere"):
        find_kernel(AppkernelOptions(program="/nowhere"))
