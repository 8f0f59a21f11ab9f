"""A guest's root as an EROFS file, read-only and shared by all machines through the host's page cache."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
import uuid
from pathlib import Path

from drupe.errors import HelperFailed, NotFound
from drupe.guest.tree import Entry, Tree

PROGRAM = "mkfs.erofs"
_TIMEOUT_S = 300
_NAMESPACE = uuid.UUID(
    "5a6d1a2e-94c7-5e0b-8f55-6d0a6f7b1c10"
)  # of the file systems' UUIDs, which derive from the digest


def write(tree: Tree, target: Path, digest: str) -> None:
    """Write `tree` as a file system. Times, owner and UUID are fixed. Device nodes are left out: devtmpfs has them.
    Raises NotFound without mkfs.erofs, HelperFailed."""
    if shutil.which(PROGRAM) is None:
        raise NotFound(f"no program {PROGRAM}", hint="apt-get install erofs-utils")
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        for path in sorted(tree.entries):
            _put(Path(scratch) / path, tree.entries[path])
        argv = [PROGRAM, "-T", "0", "-U", str(uuid.uuid5(_NAMESPACE, digest)), "--all-root", "--quiet"]
        done = subprocess.run(
            [*argv, str(target), scratch], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    if done.returncode != 0:
        raise HelperFailed(f"{PROGRAM} failed", cause=(done.stderr or done.stdout).strip().splitlines()[-1:][0])


def _put(path: Path, entry: Entry) -> None:
    if stat.S_ISDIR(entry.mode):
        path.mkdir(exist_ok=True)
        path.chmod(stat.S_IMODE(entry.mode))
    elif stat.S_ISLNK(entry.mode):
        path.symlink_to(os.fsdecode(entry.content))
    elif stat.S_ISREG(entry.mode):
        path.write_bytes(entry.content)
        path.chmod(stat.S_IMODE(entry.mode))
