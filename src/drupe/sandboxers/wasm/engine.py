"""What an engine is to the rest: a name, a compiler, a way to run. Implementations: `engines/`.

An engine lives in a zygote and its children only; the daemon knows its name and version, and imports nothing of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from drupe.sandboxers.wasm.job import Job

TRAP_EXIT = 134  # 128 + SIGABRT: what a shell shows for a process that broke an assumption of its own


class ModuleRefused(Exception):
    """The module cannot be run by this engine; the text is one line that says why."""


class Trapped(Exception):
    """The guest was ended by the engine: a trap, or a limit that it ran into; the text is one line."""


class Loaded(ABC):
    """A module made ready, with nothing of it run yet."""

    @abstractmethod
    def run(self) -> int:
        """Run it to its end; its exit code. Raises Trapped. May end the process itself with the guest's exit code."""


class Engine(ABC):
    """Made once in the zygote, before it forks, so that children find it warm. It keeps no thread and no guest."""

    name: ClassVar[str]

    @abstractmethod
    def warm_up(self) -> None:
        """Touch what every run touches, with a module of our own and without a thread."""

    @abstractmethod
    def compile(self, wasm: bytes, *, fuel: bool) -> tuple[str, bytes]:
        """The form of a module (`job.MODULE`, `job.COMPONENT`) and its code. Raises ModuleRefused."""

    @abstractmethod
    def load(self, path: str, job: Job) -> Loaded:
        """Make ready what `compile` gave, now at `path`. Raises ModuleRefused."""
