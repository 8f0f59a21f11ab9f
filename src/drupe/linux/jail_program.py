"""Runs a program in a root of its own, as a user of its own:

    python -I -S jail_program.py ROOT UID [FILE...] -- PROGRAM [ARGUMENT...]

ROOT, which is made where it is missing, is all that is left of the file system then (pivot_root(2)), with PROGRAM and
each FILE (its libraries) at the paths that they have here, read-only, and the device nodes that a machine's monitor
opens. What is in it before stays; only its /run is the program's to write to. The user is UID, with its group, no
other and no capability, in no bounding set either. What is at other places stays out of reach: nothing leads there but
descriptors that it was given.
"""

from __future__ import annotations

import ctypes
import os
import stat
import sys
from pathlib import Path

_CLONE_NEWNS = 0x00020000
_RDONLY, _NOSUID, _NOEXEC, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 8, 32, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
# the same to every Linux kernel (its admin-guide/devices.txt)
_DEVICES = {"dev/kvm": (10, 232), "dev/net/tun": (10, 200), "dev/urandom": (1, 9), "dev/null": (1, 3)}

OWN = "run"  # what is below it is the program's own

_libc = ctypes.CDLL(None, use_errno=True)


def _done(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def _mount(source: str, target: Path, flags: int) -> None:
    _done(_libc.mount(source.encode(), bytes(target), None, ctypes.c_ulong(flags), None), str(target))


def make(root: Path, uid: int) -> None:
    """The directory, and the device nodes."""
    (root / OWN).mkdir(mode=0o711, parents=True, exist_ok=True)
    os.chown(root / OWN, uid, uid)
    for name, (major, minor) in _DEVICES.items():
        node = root / name
        node.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        node.unlink(missing_ok=True)
        os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(major, minor))
        os.chown(node, uid, uid)


def show(root: Path, file: str) -> None:
    """A file of the host at the path that it has here."""
    target = root / file.lstrip("/")
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    target.mkdir(exist_ok=True) if Path(file).is_dir() else target.touch()
    _mount(file, target, _BIND)
    _mount("", target, _BIND | _REMOUNT | _RDONLY | _NOSUID)


def enter(root: Path, files: list[str]) -> None:
    """Have nothing left but `root` and the files."""
    _done(_libc.unshare(_CLONE_NEWNS), "unshare")
    _mount("", Path("/"), _REC | _PRIVATE)
    _mount(str(root), root, _BIND)
    _mount("", root, _BIND | _REMOUNT | _NOSUID | _NOEXEC)
    for file in files:
        show(root, file)
    os.chdir(root)
    _done(_libc.syscall(ctypes.c_long(_PIVOT_ROOT[os.uname().machine]), b".", b"."), "pivot_root")
    _done(_libc.umount2(b".", _MNT_DETACH), "umount2")
    os.chdir("/")


def become(uid: int) -> None:
    """For good."""
    for capability in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            break  # this kernel has no more
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    _done(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def main(argv: list[str]) -> None:
    """See the module."""
    at = argv.index("--")
    root, uid, files, command = Path(argv[0]), int(argv[1]), argv[2:at], argv[at + 1 :]
    if uid == 0:
        raise ValueError("the user of a jail is not root")
    make(root, uid)
    enter(root, [*files, command[0]])
    become(uid)
    os.execv(command[0], command)  # noqa: S606 that is what it is for


if __name__ == "__main__":
    main(sys.argv[1:])
