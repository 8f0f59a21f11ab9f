"""virtiofsd: which of the two programs of that name a host has, and how each is told to serve a directory.

QEMU's own, in C, came with QEMU until 7.2 and takes options as `-o NAME=VALUE`. The one in Rust is what distributions
have since; it knows most of the former's options by that form and refuses the others (`log_level`), so it gets its own.
"""

from __future__ import annotations

import resource
import shutil
from collections.abc import Sequence
from pathlib import Path

from drupe.errors import NotFound
from drupe.keeper.client import Keeper

_PLACES = (Path("/usr/lib/qemu/virtiofsd"), Path("/usr/libexec/virtiofsd"), Path("/usr/lib/virtiofsd"))
INSTALL = "apt-get install --no-install-recommends qemu-system-common (Debian 12), or virtiofsd (later ones)"
_OPEN_FILES = 1_000_000  # it would raise its own limit, for which a user namespace gives no right
_TELLS_WITHIN_S = 10.0
_OF_QEMU = "virtiofsd version "  # that in Rust says `virtiofsd 1.13.0`, or `virtiofsd backend 1.4.0`
_NO_NODES = "-mknod"  # device nodes, which would mean the host's devices to whoever opens them there
_IN_C = ("cache=auto", "sandbox=namespace", "xattr", "log_level=err", f"modcaps={_NO_NODES}")
# By descriptors, as handles of files take a right of the host's (open_by_handle_at(2)); mounts are told to nobody, as
# by the other.
_IN_RUST = (
    "--cache=auto", "--sandbox=namespace", "--xattr", "--log-level=error", f"--modcaps={_NO_NODES}",
    "--inode-file-handles=never", "--no-announce-submounts",
)  # fmt: skip
_legacy: dict[tuple[str, int], bool] = {}  # what is known of a program, at its time


def find_virtiofsd(program: str = "") -> str:
    """Its path. program: the one that the node names. NotFound says how to install it."""
    if program:
        if shutil.which(program) is None:
            raise NotFound(f"virtiofsd is not at {program}", hint="kinds.vm.virtiofsd: its path, or nothing")
        return program
    for place in _PLACES:
        if place.exists():
            return str(place)
    found = shutil.which("virtiofsd")
    if found is None:
        raise NotFound("virtiofsd is not installed", hint=INSTALL)
    return found


def serving(program: str, directory: Path, *, legacy: bool) -> list[str]:
    """Its command line; its listening socket is descriptor 3. It sees nothing but the directory, in namespaces of its
    own, with the rights to hand out files of any owner and no others. legacy: QEMU's own."""
    words = [program, "--fd=3", f"--rlimit-nofile={_open_files()}"]
    if not legacy:
        return [*words, f"--shared-dir={directory}", *_IN_RUST]
    return [*words, *_each(f"source={directory}", *_IN_C)]


def _open_files() -> int:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return _OPEN_FILES if most == resource.RLIM_INFINITY else min(most, _OPEN_FILES)


def _each(*options: str) -> Sequence[str]:
    return [word for option in options for word in ("-o", option)]


async def is_legacy(keeper: Keeper, program: str) -> bool:
    """Whether it is QEMU's own; asked once. NotFound for one that does not start."""
    try:
        key = (program, Path(program).stat().st_mtime_ns)
    except OSError:
        raise NotFound(f"virtiofsd is no longer at {program}", hint=INSTALL) from None
    if key not in _legacy:
        done = await keeper.run([program, "--version"], timeout_s=_TELLS_WITHIN_S, check=True)
        _legacy[key] = f"{done.stdout}{done.stderr}".startswith(_OF_QEMU)
    return _legacy[key]
