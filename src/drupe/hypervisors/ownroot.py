"""What drivers share whose programs get a user and a root of their own from us (linux/jail_program.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from drupe.hypervisors.contract import Hypervisor, MachineConfig
from drupe.hypervisors.jails import Jail, Place, libraries, name_in_jail
from drupe.hypervisors.owners import uid_of


class InOwnRoot(Hypervisor):
    """program: its name or path (a path when there is a jail). jail: one of `own_root`."""

    def __init__(self, program: str = "", jail: Jail | None = None) -> None:
        self._program, self._jail = program or self.name, jail
        self._libraries = (libraries(Path(program)) or []) if jail else []

    @property
    def jailed(self) -> bool:
        """Whether it has no other rights than those of a user of its own, in a root of its own."""
        return self._jail is not None

    def owner(self, machine_id: str) -> int:
        return uid_of(machine_id) if self._jail else 0

    def leaves(self, config: MachineConfig) -> Sequence[Path]:
        return [self._place(config).root.parent] if self._jail and self._jail.base else []

    def share_socket(self, config: MachineConfig) -> Path:
        return self._place(config).given_at("virtiofs.sock")

    def _place(self, config: MachineConfig) -> Place:
        if self._jail is None:
            return Place(config.dir, None)
        uid, base = self.owner(config.id), self._jail.base or config.dir
        root = base / self.name / name_in_jail(config.id) / "root"
        return Place(root, replace(self._jail, uid=uid, gid=uid))
