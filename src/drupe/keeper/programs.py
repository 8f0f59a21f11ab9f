"""Our native programs that become daemons: where they are, and how they are started."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import drupe
from drupe import errors
from drupe.rpc.timeouts import timeout

START_TIMEOUT_S = 10.0
_LOCKED = 3  # another one serves


def find_program(name: str) -> Path:
    """Beside the package, in the build tree, in the cache, on PATH. Raises NotFound with the command that builds it."""
    for path in _candidates(name):
        if os.access(path, os.X_OK):
            return path
    raise errors.NotFound(f"no program {name}", hint="build it: bash scripts/build-native.sh")


def _candidates(name: str) -> list[Path]:
    package = Path(drupe.__file__).parent
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    found = shutil.which(name)
    return [
        package / "_bin" / name,
        package.parent.parent / "native" / "target" / "release" / name,
        cache / "drupe" / "bin" / name,
        *([Path(found)] if found else []),
    ]


async def begin(argv: Sequence[str], *, what: str, executable: str | None = None, pass_fds: Sequence[int] = ()) -> None:
    """Run a program that exits once its daemon accepts connections; that another one serves already is fine.

    Raises Unavailable, which names `what` and has what it said as its cause.
    """
    process = await asyncio.create_subprocess_exec(
        *argv,
        executable=executable,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        pass_fds=pass_fds,
    )
    try:
        async with timeout(START_TIMEOUT_S):
            _, stderr = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise errors.Unavailable(f"{what} did not start in {START_TIMEOUT_S} s") from None
    if process.returncode not in (0, _LOCKED):
        text = stderr.decode(errors="replace").strip()
        raise errors.Unavailable(f"{what} cannot start", cause=text)
