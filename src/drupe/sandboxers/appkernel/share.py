"""What of the host a pod's kernel can see: one directory of the pod, a mount that is the root of the kernel's process,
into which the keeper mounts what its containers are given."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from pathlib import Path

from drupe.errors import NotFound
from drupe.keeper.client import Keeper
from drupe.keeper.records import Mount
from drupe.keeper.start import mounts_root
from drupe.sandboxers.appkernel.config import Bind


class Share:
    """The directory of one pod. root: its path."""

    def __init__(self, keeper: Keeper, root: Path) -> None:
        self._keeper = keeper
        self.root = root

    async def make(self) -> None:
        """A mount of its own, so that what is mounted into it later reaches the kernel's namespace (slave)."""
        self.root.mkdir(mode=0o755, parents=True, exist_ok=True)
        root = str(self.root)
        await self._keeper.mount(
            [Mount(target=root, source=root, flags=("bind",)), Mount(target=root, flags=("shared",))]
        )

    async def add(self, task: str, binds: Iterable[Bind]) -> None:
        """Show these to the kernel, each at TASK/NAME. NotFound for a source that is not there."""
        place = self.root / task
        place.mkdir(mode=0o755, exist_ok=True)
        mounts = []
        for bind in binds:
            self._prepare(bind.source, place / bind.name)
            only = ("ro",) if bind.read_only else ()
            mounts.append(Mount(target=str(place / bind.name), source=bind.source, flags=("rbind", *only)))
        await self._keeper.mount(mounts)

    def seen(self, task: str, name: str) -> Path:
        """A path by which we see what was added."""
        return Path(f"{mounts_root(self._keeper)}{self.root}/{task}/{name}")

    def _prepare(self, source: str, target: Path) -> None:
        try:
            mode = Path(f"{mounts_root(self._keeper)}{source}").stat().st_mode
        except OSError:
            raise NotFound(f"{source} is not there to be mounted") from None
        target.mkdir(mode=0o755, exist_ok=True) if stat.S_ISDIR(mode) else target.touch()

    async def drop(self, task: str) -> None:
        """Take a container's part away. Idempotent."""
        place = self.root / task
        if not place.is_dir():
            return
        targets = sorted(place.iterdir())
        await self._keeper.umount([str(target) for target in targets], lazy=True)
        for target in targets:
            target.rmdir() if target.is_dir() else target.unlink(missing_ok=True)
        place.rmdir()

    async def remove(self) -> None:
        """Idempotent."""
        for place in sorted(self.root.iterdir()) if self.root.is_dir() else []:
            await self.drop(place.name)
        await self._keeper.umount([str(self.root)], lazy=True)
