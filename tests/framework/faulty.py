"""A daemon that kills itself where it is told: at the N-th write to its journal from a moment on."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from framework.daemon import Daemon

PROGRAM = [sys.executable, str(Path(__file__).parents[1] / "faults/faulty_daemon.py")]


class FaultyDaemon(Daemon):
    """A daemon that dies where it is told."""

    program = PROGRAM

    @property
    def arm_file(self) -> Path:
        return self.root.parent / "arm"

    def environment(self) -> dict[str, str]:
        return super().environment() | {"DRUPE_TEST_ARM": str(self.arm_file)}

    def arm(self, write: int, moment: str) -> None:
        """Count writes from now on, and die at `write` (0: never)."""
        self.arm_file.with_suffix(".list").unlink(missing_ok=True)
        staged = self.arm_file.with_suffix(".new")
        staged.write_text(f"{write} {moment}")
        staged.rename(self.arm_file)

    def listed(self) -> list[str]:
        """The writes since it was armed."""
        self.arm_file.unlink()
        return self.arm_file.with_suffix(".list").read_text().splitlines()

    def died(self) -> bool:
        """Whether it killed itself, as it was armed to, within a time."""
        assert self.process is not None
        with suppress(subprocess.TimeoutExpired):
            assert self.process.wait(10) == -9
        return self.process.returncode is not None
