"""The contract on the fake: as it is, and once with everything optional switched off."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from sandboxer_suite import SandboxerSuite, Site

from drupe.sandboxers.contract import SandboxInfo
from drupe.sandboxers.fake import FakeSandboxer

OPTIONAL = ("exec", "tty", "attach", "multi-container", "pause", "update", "stats", "signals")


class FakeSite(Site):
    """The fake in a directory."""

    def __init__(self, directory: Path, without: Iterable[str] = ()) -> None:
        super().__init__(directory)
        self.without = tuple(without)

    async def open(self) -> FakeSandboxer:
        self.sandboxer = FakeSandboxer(on_exit=self.ended, without=self.without)
        return self.sandboxer

    async def reopen(self) -> FakeSandboxer:
        self.sandboxer = FakeSandboxer(on_exit=self.ended, world=self.sandboxer.world, without=self.without)
        return self.sandboxer

    async def close(self) -> None:
        for sandbox in list(self.sandboxer.world.sandboxes):
            await self.sandboxer.delete(sandbox)
        assert not self.sandboxer.world.tasks and not self.sandboxer.world.sandboxes

    def oci(self, task: str, process: dict[str, Any], info: SandboxInfo, cgroup: str) -> dict[str, Any]:
        return {"process": process}


class TestFake(SandboxerSuite):
    @pytest.fixture
    def site(self, tmp_path: Path) -> FakeSite:
        return FakeSite(tmp_path)


class TestFakeWithout(SandboxerSuite):
    """The refusing half of the suite is proved on a kind that can do next to nothing."""

    @pytest.fixture
    def site(self, tmp_path: Path) -> FakeSite:
        return FakeSite(tmp_path, without=OPTIONAL)
