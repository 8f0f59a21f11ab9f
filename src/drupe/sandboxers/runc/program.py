"""The OCI runtime's program, ready to be started often.

crun and runc copy themselves into a sealed memfd and execute that copy at *every* call, so that no container can write
to the program that made it (CVE-2019-5736). That costs a second exec and dynamic link, some 3 ms of a 10 ms start. They
leave it out when they see that they run from a sealed memfd already: so drupe makes the sealed copy once and starts
that. The protection is the same one; the copy is made anew when the program on disk changes.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from drupe.errors import NotFound
from drupe.linux.memfd import sealed_copy


def find_runtime(name: str = "crun") -> Path:
    """The runtime's program, by name or path. NotFound says how to install it."""
    found = shutil.which(name)
    if found is None:
        raise NotFound(f"OCI runtime {name!r} is not installed", hint=f"apt-get install {Path(name).name}")
    return Path(found)


class RuntimeProgram:
    """A program on disk and its sealed copy. `name` decides which words it understands."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self._descriptor: int | None = None
        self._identity: tuple[int, int, int] | None = None

    def executable(self) -> str:
        """A path to execute, valid while this process lives. NotFound when the program has been removed."""
        try:
            found = self.path.stat()
        except OSError:
            raise NotFound(
                f"OCI runtime {self.path} has vanished", hint=f"apt-get install --reinstall {self.name}"
            ) from None
        identity = (found.st_ino, found.st_mtime_ns, found.st_size)
        if identity != self._identity:
            self._renew()
            self._identity = identity
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def close(self) -> None:
        """Let go of the copy."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            self._identity = None

    def _renew(self) -> None:
        self.close()
        self._descriptor = sealed_copy(self.path)
