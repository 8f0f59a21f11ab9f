"""The program by which a kind of sandbox runs a bundle that somebody else made.

An OCI runtime's container is the child of whoever called it: conmon, a containerd shim and a shell wait for it. So such
a program is not started by the daemon or its keeper, but by the caller, in the caller's namespaces (decision 19).
"""

from __future__ import annotations

from collections.abc import Callable

from drupe.keeper.client import Keeper
from drupe.oci.honoured import Version, parse_version


class BundleProgram:
    """An OCI runtime's command line. kind: of sandbox. name: "crun", "runc": decides which words it understands. path:
    its file. executable: a path to execute now, which may start faster. stands: what it makes only stands for the
    workload, which the daemon keeps in a sandbox of that kind."""

    def __init__(
        self, kind: str, name: str, *, path: str, executable: Callable[[], str], keeper: Keeper, stands: bool = False
    ) -> None:
        self.kind = kind
        self.name = name
        self.path = path
        self.executable = executable
        self.stands = stands
        self._keeper = keeper
        self._known: tuple[str, str] = ("", "")

    @property
    def home(self) -> str:
        """The directory of its own below `--root`: programs do not read each other's state."""
        return f"{self.kind}-{self.name}"

    async def version(self) -> Version:
        """Raises HelperFailed."""
        return parse_version(await self.about())

    async def about(self) -> str:
        """What it says of its version and of how it was built, asked once for each program. Raises HelperFailed."""
        program = self.executable()
        if self._known[0] != program:
            answer = await self._keeper.run([program, "--version"], timeout_s=10.0, check=True)
            self._known = (program, answer.stdout)
        return self._known[1]
