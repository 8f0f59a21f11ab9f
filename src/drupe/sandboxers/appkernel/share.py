"""What of the host a pod's kernel may open: one directory of the pod, into which the keeper mounts what its containers are
given. The kernel gets each as an open descriptor; its Landlock rules allow what lies below that directory, and nothing
else."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from drupe.errors import NotFound, from_os_error
from drupe.keeper.client import Keeper
from drupe.keeper.records import Mount
from drupe.keeper.start import mounts_root
from drupe.sandboxers.appkernel.config import Bind

_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class Share:
    """The directory of one pod. root: its path."""

    def __init__(self, keeper: Keeper, root: Path) -> None:
        self._keeper = keeper
        self._root = root

    def open(self) -> int:
        """Make it; its descriptor, as the keeper sees it."""
        self._root.mkdir(mode=0o755, parents=True, exist_ok=True)
        return os.open(self._seen(self._root), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    async def add(self, task: str, binds: Iterable[Bind]) -> None:
        """Show these to the kernel. NotFound for a source that is not there."""
        place = self._root / task
        place.mkdir(mode=0o755, exist_ok=True)
        mounts = []
        for bind in binds:
            self._prepare(bind.source, place / bind.name)
            only = ("ro",) if bind.read_only else ()
            mounts.append(Mount(target=str(place / bind.name), source=bind.source, flags=("rbind", *only)))
        await self._keeper.mount(mounts)

    def _prepare(self, source: str, target: Path) -> None:
        try:
            mode = self._seen(source).stat().st_mode
        except OSError:
            raise NotFound(f"{source} is not there to be mounted") from None
        target.mkdir(mode=0o755, exist_ok=True) if stat.S_ISDIR(mode) else target.touch()

    @contextlib.contextmanager
    def opened(self, task: str, binds: Iterable[Bind]) -> Iterator[dict[str, int]]:
        """Descriptors of what was added, by name."""
        with contextlib.ExitStack() as stack:
            found = {}
            for bind in binds:
                try:
                    found[bind.name] = os.open(self._seen(self._root / task / bind.name), _OPEN)
                except OSError as error:
                    raise from_os_error(error) from None
                stack.callback(os.close, found[bind.name])
            yield found

    async def drop(self, task: str) -> None:
        """Take a container's part away. Idempotent."""
        place = self._root / task
        if not place.is_dir():
            return
        targets = sorted(place.iterdir())
        await self._keeper.umount([str(target) for target in targets], lazy=True)
        for target in targets:
            target.rmdir() if target.is_dir() else target.unlink(missing_ok=True)
        place.rmdir()

    async def remove(self) -> None:
        """Idempotent."""
        for place in sorted(self._root.iterdir()) if self._root.is_dir() else []:
            await self.drop(place.name)

    def _seen(self, path: Path | str) -> Path:
        return Path(f"{mounts_root(self._keeper)}{path}")
