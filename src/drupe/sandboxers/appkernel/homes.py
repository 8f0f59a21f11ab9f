"""Where a user of a container is at home: whoever writes config.json leaves it to the runtime, as runc has it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from drupe.errors import InvalidArgument
from drupe.linux.openat2 import O_PATH
from drupe.oci.users import resolve_user

_NOWHERE = "/"


def with_home(env: Sequence[str], uid: int, root: Path) -> list[str]:
    """The environment with a HOME: its own, or what /etc/passwd of the container's root says of the user, or "/"."""
    if any(one.startswith("HOME=") for one in env):
        return list(env)
    return [*env, f"HOME={_home(uid, root)}"]


def _home(uid: int, root: Path) -> str:
    try:
        fd = os.open(root, O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # an image that the kernel alone reads
        return _NOWHERE
    try:
        user = resolve_user(fd, str(uid))
        return user.home if user.name else _NOWHERE
    except InvalidArgument:  # a passwd that cannot be read
        return _NOWHERE
    finally:
        os.close(fd)
