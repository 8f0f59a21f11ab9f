"""CRIU, by which crun and runc write processes of the host's kernel down and have them go on (criu(8))."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from drupe.errors import Unsupported
from drupe.keeper.client import Keeper
from drupe.sandboxers.bundles import BundleProgram

_CHECKS_WITHIN_S = 30.0
_FIRST_WITHOUT_FLAG = (1, 2)  # runc from here on looks for it in PATH
_ERROR = re.compile(r"Error \([^)]*\): (.+)")


class Criu:
    """Which one there is, and whether it works here: asked once for each file."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._known: dict[tuple[str, int, int], str] = {}

    async def flags(self, program: BundleProgram, wanted: str) -> list[str]:
        """What `program` is told before its verb. wanted: the caller's own CRIU, "" for that in PATH. Raises
        Unsupported, naming what is missing."""
        await self._check_program(program)
        path = shutil.which(wanted or "criu")
        if path is None:
            raise _unsupported(f"{wanted or 'criu'} is not installed", hint="apt-get install criu")
        if cause := await self._trouble(path):
            raise _unsupported(f"CRIU does not work on this kernel ({cause})", hint="a later CRIU may know it")
        takes_path = program.name == "runc" and await program.version() < _FIRST_WITHOUT_FLAG
        return ["--criu", path] if takes_path else []

    async def _check_program(self, program: BundleProgram) -> None:
        """runc has it always; crun where it was built so."""
        if program.name != "runc" and "+CRIU" not in await program.about():
            raise _unsupported(
                f"{program.name} here is built without CRIU", hint='[kinds.runc] program = "runc" makes them by runc'
            )

    async def _trouble(self, path: str) -> str:
        """Why it cannot; "" when it can."""
        found = Path(path).stat()
        key = (path, found.st_mtime_ns, found.st_size)
        if key not in self._known:
            checked = await self._keeper.run([path, "check"], timeout_s=_CHECKS_WITHIN_S)
            said = _ERROR.search(checked.stdout + checked.stderr)
            self._known[key] = "" if checked.exit == 0 else said[1] if said else f"it exits with {checked.exit}"
        return self._known[key]


def _unsupported(cause: str, *, hint: str) -> Unsupported:
    return Unsupported("containers cannot be checkpointed", kind="runc", feature="checkpoint", cause=cause, hint=hint)
