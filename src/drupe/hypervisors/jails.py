"""A root and a user of its own for a machine's program, and the files that it is given there.

The program may be in its guest's hands: what it leaves in its root is never followed to somewhere else.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from drupe.errors import HelperFailed, InvalidArgument
from drupe.guest.programs import libraries_of
from drupe.linux import jail_program, loops

_JAILERS_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
_MAX_READ_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Jail:
    """Firecracker's jailer: the program runs as uid:gid (0: as a user of the machine's own) in a root of its own below
    `base` (None: `MachineConfig.dir`), into which kernel and disks are linked: on their file system, which must have
    device nodes. netns: path of the namespace that it joins, when whoever starts it has not. own_dir, given_dir: where
    in the root what it makes is, and what it is given, where it can put nothing else then."""

    uid: int = 0
    gid: int = 0
    program: str = "jailer"
    netns: str = ""
    base: Path | None = None
    own_dir: str = ""
    given_dir: str = ""


def own_root(base: Path) -> Jail:
    """A root by our own program (linux/jail_program.py)."""
    return Jail(program="", base=base, own_dir=jail_program.OWN, given_dir="given")


def enter(root: Path, uid: int, program: str, files: Sequence[str]) -> list[str]:
    """The words before a program's arguments that put it there. files: its libraries."""
    return [sys.executable, "-I", "-S", jail_program.__file__, str(root), str(uid), *files, "--", program]


def libraries(program: Path) -> list[str] | None:
    """The files that a program needs to be loaded; None for one that is no program of the processor's (a script, which
    needs more than that)."""
    with program.open("rb") as file:
        if file.read(4) != b"\x7fELF":
            return None
    return sorted(str(path) for path in libraries_of(program).values())


def name_in_jail(machine_id: str) -> str:
    """The machine's name for the jailer, which takes 64 letters, digits and hyphens at most: its id where that is one,
    and nobody else's in any case."""
    if _JAILERS_ID.fullmatch(machine_id):
        return machine_id
    return f"{re.sub(r'[^A-Za-z0-9-]', '-', machine_id)[:55]}-{zlib.crc32(machine_id.encode()):08x}"


class Place:
    """The files that a machine uses, as its program sees them. In a jail they are linked into it."""

    def __init__(self, root: Path, jail: Jail | None) -> None:
        self.root, self.jail = root, jail
        self._held: list[int] = []

    def own(self, name: str) -> str:
        """The path of a file of the machine's own."""
        return str(Path("/", self.jail.own_dir, name)) if self.jail else str(self.root / name)

    def ours(self, name: str) -> Path:
        """The same, as we see it."""
        return self.root / (self.jail.own_dir if self.jail else "") / name

    def make(self, name: str) -> str:
        """Makes a file that the program writes."""
        path = self.ours(name)
        path.touch(0o600)
        self._give(path)
        return self.own(name)

    def read(self, name: str) -> str:
        """What the program has written to a file of its own. OSError where that is none."""
        handle = os.open(self.ours(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:  # noqa: PTH123 a descriptor
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise IsADirectoryError(f"{name} is no file")
            return file.read(_MAX_READ_BYTES).decode(errors="replace")

    def take(self, name: str, target: Path) -> None:
        """Move a file that the program has written out of its root. HelperFailed where that is none."""
        if not stat.S_ISREG(self.ours(name).lstat().st_mode):
            raise HelperFailed(f"the program left no file {name}", stage="vmm")
        shutil.move(self.ours(name), target)

    def given(self, name: str, path: Path, *, read_only: bool = True) -> str:
        """The path of a file or a block device of the host's: linked, or copied where that is as good. A file that is
        written is a loop device there, which is held until `settle`. InvalidArgument when it cannot be in the jail."""
        if not self.jail:
            return str(path)
        target = self.given_at(name)
        target.parent.mkdir(mode=0o755, exist_ok=True)
        try:
            if path != target:
                target.unlink(missing_ok=True)
                self._put(target, path, read_only)
            if path.is_socket():
                self._give(target)
        except OSError as error:
            hint = f"put {path} on the file system of {self.root}"
            raise InvalidArgument(f"cannot put {path} into the jail", cause=error.strerror or "", hint=hint) from None
        return str(Path("/", self.jail.given_dir, name))

    def named(self, name: str, path: Path) -> str:
        """What `given` answers; touches nothing."""
        return str(Path("/", self.jail.given_dir, name)) if self.jail else str(path)

    def given_at(self, name: str) -> Path:
        """Where we see it."""
        return self.root / (self.jail.given_dir if self.jail else "") / name

    def _put(self, target: Path, path: Path, read_only: bool) -> None:
        found = path.stat()
        if stat.S_ISBLK(found.st_mode):
            self._node(target, found.st_rdev)
        elif stat.S_ISSOCK(found.st_mode):
            target.hardlink_to(path)
        elif not read_only:
            self._held.append(loop := loops.attach(path))
            self._node(target, os.fstat(loop).st_rdev)
        elif found.st_mode & stat.S_IROTH and found.st_dev == self.root.stat().st_dev:
            target.hardlink_to(path)
        else:
            shutil.copyfile(path, target)
            self._give(target)

    def _node(self, target: Path, number: int) -> None:
        os.mknod(target, stat.S_IFBLK | 0o600, number)
        self._give(target)

    def given_files(self, name: str, directory: Path, files: Sequence[str]) -> str:
        """A directory with some files, of which one may be a link to where it is."""
        if not self.jail:
            return str(directory)
        self.given_at(name).mkdir(mode=0o755, parents=True, exist_ok=True)
        for file in files:
            self.given(f"{name}/{file}", (directory / file).resolve())
        return str(Path("/", self.jail.given_dir, name))

    def make_dir(self, name: str) -> str:
        """Makes a directory to which the program writes."""
        self.ours(name).mkdir(mode=0o700, exist_ok=True)
        self._give(self.ours(name))
        return self.own(name)

    def host_device(self, address: str) -> None:
        """The nodes by which VFIO has a PCI device, at the paths that they have here."""
        if self.jail:
            group = (Path("/sys/bus/pci/devices") / address / "iommu_group").resolve().name
            for node in (Path("/dev/vfio/vfio"), Path("/dev/vfio") / group):
                target = self.root / node.relative_to("/")
                target.parent.mkdir(mode=0o755, exist_ok=True)
                target.unlink(missing_ok=True)
                os.mknod(target, stat.S_IFCHR | 0o600, node.stat().st_rdev)
                self._give(target)

    def settle(self) -> None:
        """The program has opened what it was given, or never will."""
        while self._held:
            os.close(self._held.pop())

    def drop(self, name: str) -> None:
        """It uses that no longer."""
        if self.jail:
            self.given_at(name).unlink(missing_ok=True)

    def _give(self, path: Path) -> None:
        if self.jail:
            os.chown(path, self.jail.uid, self.jail.gid, follow_symlinks=False)
