"""What a machine sees of the host: one directory, served by virtiofsd, into which the keeper mounts what its containers
are given: their roots, and what they bind-mount.

A guest whose kernel is hostile has all rights there that virtiofsd has. So the directory itself is read-only to it, and
only what is mounted into it is not: whoever could put a link in the place of the next mount would have the host mount,
or remove, what it leads to.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from drupe.errors import DrupeError, NotFound, Unavailable, Unsupported
from drupe.keeper.client import Keeper
from drupe.keeper.records import Mount
from drupe.keeper.start import mounts_root
from drupe.sandboxers.vm.oci import GUEST_SHARE, brings
from drupe.sandboxers.vm.records import PodRecord

TAG = "drupe"
# Each id is what it is on the host, as files there belong to whatever ids containers have (user_namespaces(7))
_EVERY_ID = ((0, 0, 0xFFFF_FFFF),)
_USERS_HINT = "sysctl -w user.max_user_namespaces=65536"
_PROC_FLAGS = ("nosuid", "nodev", "noexec")
# Directories that are there to be mounted over, and empty otherwise: they hide nothing (fs/namespace.c of Linux)
_FOR_MOUNTS = ("/proc/sys/fs/binfmt_misc", "/proc/fs/nfsd", "/proc/fs/nfs/nfsd")
_PROC_HINT = "a container whose /proc is not masked (privileged), or the annotation drupe.vm.rootfs=block"
# Device numbers that mean the same to every Linux kernel (its admin-guide/devices.txt); a guest has each in its /dev.
_EVERYWHERE = {
    (1, 3): "/dev/null",
    (1, 5): "/dev/zero",
    (1, 7): "/dev/full",
    (1, 8): "/dev/random",
    (1, 9): "/dev/urandom",
}


class Share:
    """The shared directory of one pod."""

    def __init__(self, keeper: Keeper, record: PodRecord) -> None:
        self._keeper = keeper
        self._root = record.share
        self._users = record.home / "users"
        self._proc = record.home / "proc"

    async def make(self) -> None:
        """A mount of its own, so that what is mounted into it later reaches virtiofsd's namespace (shared subtrees).
        The host makes places for mounts below it, where it is not read-only. Unavailable without user namespaces."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        root = str(self._root)
        await self._keeper.mount(
            [Mount(target=root, source=root, flags=("bind", "ro")), Mount(target=root, flags=("shared",))]
        )
        await self.prepare()

    async def prepare(self) -> None:
        """What virtiofsd needs to start, unless it is there: a pod that a daemon of before has made lacks some of it.
        Unavailable where it cannot be made."""
        if not self.users.exists():
            with _explained("virtiofsd's user namespace cannot be made", _USERS_HINT):
                await self._keeper.create_namespaces(self._users, ["user"], uid_map=_EVERY_ID, gid_map=_EVERY_ID)
        if not self._proc.exists() and _masked(self._keeper.pid):
            await self._make_proc()

    async def _make_proc(self) -> None:
        """A whole one: where only masked ones are, virtiofsd, which is in a user namespace, cannot mount its own."""
        self._proc.mkdir(mode=0o700)
        try:
            with _explained("virtiofsd needs a /proc of its own, which cannot be mounted here", _PROC_HINT):
                proc = Mount(target=str(self._proc), source="proc", fstype="proc", flags=_PROC_FLAGS)
                await self._keeper.mount([proc])
        except Unavailable:
            self._proc.rmdir()
            raise

    @property
    def users(self) -> Path:
        """The user namespace in which virtiofsd is root, and nothing beyond."""
        return self._users / "user"

    async def remove(self) -> None:
        """Idempotent."""
        await self._keeper.release(self._users)
        targets = [str(self._root / name) for name in self._names()]
        for name in self._names():
            targets = [*(str(path) for path in self._below(name)), *targets]
        await self._keeper.umount([*targets, str(self._root), *self._has_proc()], lazy=True)
        _remove_empty(self._root)

    def _has_proc(self) -> list[str]:
        return [str(self._proc)] if self._proc.exists() else []

    async def add(self, task: str, oci: Mapping[str, Any], known: Mapping[str, str]) -> tuple[str, dict[str, str]]:
        """Show a container's root and binds; answers where the guest has them: its root, and source to source.
        known: sources that the guest has anyhow. Unsupported for a device of the host, NotFound for what is not
        there."""
        sources = [mount["source"] for mount in oci.get("mounts", ()) if brings(mount) and mount["source"] not in known]
        binds = {**known, **{source: found for source in sources if (found := self._device(source))}}
        place = self._root / task
        (place / "rootfs").mkdir(mode=0o700, parents=True, exist_ok=True)
        mounts = [Mount(target=str(place / "rootfs"), source=oci["root"]["path"], flags=("rbind",))]
        wanted = [mount for mount in oci.get("mounts", ()) if brings(mount) and mount["source"] not in binds]
        for number, mount in enumerate(wanted):
            target = place / f"bind-{number}"
            self._prepare(mount["source"], target)
            only = ("ro",) if {"ro", "rro"} & set(mount.get("options", ())) else ()
            mounts.append(Mount(target=str(target), source=mount["source"], flags=("rbind", *only)))
            binds[mount["source"]] = f"{GUEST_SHARE}/{task}/bind-{number}"
        await self._keeper.mount(mounts)
        return f"{GUEST_SHARE}/{task}/rootfs", binds

    def _stat(self, source: str) -> os.stat_result:
        try:
            return Path(f"{mounts_root(self._keeper)}{source}").stat()
        except OSError:
            raise NotFound(f"{source} is not there to be mounted") from None

    def _device(self, source: str) -> str:
        """The guest's own, for a device node; "" for what is none. A node of the host's is but its number, and that may
        be another device's in the guest."""
        found = self._stat(source)
        if not (stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)):
            return ""
        number = os.major(found.st_rdev), os.minor(found.st_rdev)
        if stat.S_ISBLK(found.st_mode) or number not in _EVERYWHERE:
            what = f"{source} is a device of the host, and its number may be another device's in the guest"
            hint = f"a block device: --device {source}"
            raise Unsupported(what, kind="vm", feature="devices", hint=hint)
        return _EVERYWHERE[number]

    def _prepare(self, source: str, target: Path) -> None:
        if stat.S_ISDIR(self._stat(source).st_mode):
            target.mkdir(exist_ok=True)
        else:
            target.touch()

    async def drop(self, task: str) -> None:
        """Take a container's part away. Idempotent."""
        place = self._root / task
        if not place.exists():
            return
        await self._keeper.umount([str(path) for path in self._below(task)], lazy=True)
        _remove_empty(place)

    def _below(self, task: str) -> list[Path]:
        return sorted((self._root / task).iterdir()) if (self._root / task).is_dir() else []

    def _names(self) -> list[str]:
        return sorted(entry.name for entry in self._root.iterdir()) if self._root.is_dir() else []


def _masked(pid: int) -> bool:
    """Whether something lies over parts of /proc, as a process sees it: containers' engines do that. The kernel then
    gives nobody in a user namespace another, unless a whole one is mounted anywhere (proc(5), mount_namespaces(7))."""
    try:
        lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    except OSError:
        return False
    return masks(line.split()[4] for line in lines)


def masks(places: Iterable[str]) -> bool:
    """Whether mounts at these places cover a part of /proc."""
    return any(place.startswith("/proc/") and place not in _FOR_MOUNTS for place in places)


@contextlib.contextmanager
def _explained(what: str, hint: str) -> Iterator[None]:
    try:
        yield
    except DrupeError as error:
        raise Unavailable(what, stage="share", cause=error.cause or error.message, hint=hint) from None


def _remove_empty(root: Path) -> None:
    """Remove what was made as places for mounts, and nothing that holds something."""
    if root.is_symlink() or not root.is_dir():
        root.unlink(missing_ok=True)
        return
    for entry in root.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            _remove_empty(entry)
        elif entry.stat().st_size == 0:
            entry.unlink(missing_ok=True)
    try:
        root.rmdir()
    except OSError:
        return
