"""A guest's root as an EROFS file, read-only and shared by all machines through the host's page cache."""

from __future__ import annotations

import os
import stat
import tempfile
import uuid
from pathlib import Path

from drupe.guest import helpers
from drupe.guest.tree import Entry, Tree

PROGRAM = "mkfs.erofs"
# of the file systems' UUIDs, which derive from the digest
_NAMESPACE = uuid.UUID("5a6d1a2e-94c7-5e0b-8f55-6d0a6f7b1c10")


def write(tree: Tree, target: Path, digest: str) -> None:
    """Write `tree` as a file system. Times, owner and UUID are fixed. Device nodes are left out: devtmpfs has them.
    Raises what `helpers.run` raises."""
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        for path in sorted(tree.entries):
            _put(Path(scratch) / path, tree.entries[path])
        argv = [PROGRAM, "-T", "0", "-U", str(uuid.uuid5(_NAMESPACE, digest)), "--all-root", "--quiet"]
        helpers.run([*argv, str(target), scratch], hint="apt-get install erofs-utils")


def _put(path: Path, entry: Entry) -> None:
    if stat.S_ISDIR(entry.mode):
        path.mkdir(exist_ok=True)
        path.chmod(stat.S_IMODE(entry.mode))
    elif stat.S_ISLNK(entry.mode):
        path.symlink_to(os.fsdecode(entry.content))
    elif stat.S_ISREG(entry.mode):
        path.write_bytes(entry.content)
        path.chmod(stat.S_IMODE(entry.mode))
