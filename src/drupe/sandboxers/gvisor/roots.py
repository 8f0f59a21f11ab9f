"""What runsc will meet in a container's root, as the keeper sees it, which has the root mounted."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from drupe.errors import InvalidArgument
from drupe.linux.openat2 import O_PATH, stat_in_root
from drupe.sandboxers.gvisor.config import TMP


def has_tmp(keeper_pid: int, root: str) -> bool:
    """Whether a root has a directory /tmp, and no link that would lead out of it."""
    try:
        return stat.S_ISDIR(Path(f"/proc/{keeper_pid}/root{root}{TMP}").lstat().st_mode)
    except OSError:
        return False


def check_places(keeper_pid: int, oci: dict[str, Any]) -> None:
    """Raises InvalidArgument where a mount is to cover a FIFO: runsc opens it first, and waits there for ever."""
    try:
        root = os.open(f"/proc/{keeper_pid}/root{oci['root']['path']}", O_PATH)
    except OSError:
        return
    try:
        for mount in oci.get("mounts", ()):
            if _is_fifo(root, mount["destination"]):
                raise InvalidArgument(f"{mount['destination']} is a FIFO in the image, which gVisor cannot mount on")
    finally:
        os.close(root)


def _is_fifo(root: int, path: str) -> bool:
    try:
        return stat.S_ISFIFO(stat_in_root(root, path).st_mode)
    except OSError:
        return False
