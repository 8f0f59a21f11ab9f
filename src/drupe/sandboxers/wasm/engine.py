"""What an engine is to the rest: a name, a compiler, a way to run. Implementations: `engines/`.

An engine lives in a zygote and its children only; the daemon knows its name and version, and imports nothing of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from drupe.sandboxers.wasm.job import Job, Limits


class ModuleRefused(Exception):
    """The module cannot be run by this engine; the text is one line that says why."""


class Trapped(Exception):
    """The guest was ended by the engine: a trap, or a limit that it ran into; the text is one line."""


class Loaded(ABC):
    """A module made ready, with nothing of it run yet."""

    @abstractmethod
    def run(self, job: Job) -> int:
        """Run it to its end as `job` says; its exit code. Raises Trapped. May end the process itself with that code."""


class Engine(ABC):
    """Made once in the zygote, before it forks, so that children find it warm. It keeps no thread and no guest."""

    name: ClassVar[str]

    @abstractmethod
    def warm_up(self, *, threads: bool = False) -> None:
        """In a child: touch what every run touches, with a module of our own. Never in the zygote: what that seeds
        (random numbers) would be the same in every child. threads: also start those that input and output need;
        only where no change of rights follows."""

    @abstractmethod
    def compile(self, wasm: bytes, *, fuel: bool) -> tuple[str, bytes]:
        """The form of a module (`job.MODULE`, `job.COMPONENT`) and its code. Raises ModuleRefused."""

    @abstractmethod
    def load(self, path: str, form: str, limits: Limits) -> Loaded:
        """Make ready what `compile` gave, now at `path`. Raises ModuleRefused."""
