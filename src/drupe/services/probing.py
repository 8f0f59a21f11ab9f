"""What probes are made of: their two ways to say no, and running a helper program within the deadline."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import ClassVar, NamedTuple

DEADLINE_S = 1.0


class Finding(Exception):
    """What a probe found wrong: the cause in one line, and the command or setting that mends it."""

    state: ClassVar[str] = "fail"

    def __init__(self, cause: str, mend: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.mend = mend


class Problem(Finding):
    """The facility does not work here."""


class Inconclusive(Finding):
    """Something is limited or was not probed, and drupe runs all the same."""

    state = "warn"


class Finished(NamedTuple):
    """How a helper program ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def last_line(self) -> str:
        """The last line that it said, on standard error if there is one."""
        lines = (self.stderr.strip() or self.stdout.strip()).splitlines()
        return lines[-1] if lines else f"exit code {self.code}"


def program(name: str, *, package: str) -> str:
    """The path of a program. Raises Problem naming Debian's package when it is not installed."""
    path = shutil.which(name)
    if path is None:
        raise Problem(f"{name} is not installed", f"apt-get install {package}")
    return path


def run(
    argv: Sequence[str], *, deadline_s: float = DEADLINE_S, cwd: str | None = None, quiet: bool = False
) -> Finished:
    """Run a program to its end, in a process group of its own that is killed whole at the deadline (then Problem).

    quiet: nothing is heard of it: for one that leaves processes behind, which would hold its output open.
    """
    output = subprocess.DEVNULL if quiet else subprocess.PIPE
    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        text=True,
        errors="replace",
        cwd=cwd,
        start_new_session=True,
        env=os.environ | {"LC_ALL": "C"},
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=deadline_s)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise Problem(
                f"no answer within {deadline_s:g} s", "look for a hanging file system or a full machine"
            ) from None
    return Finished(process.returncode, stdout or "", stderr or "")


def expect(done: Finished, text: str, *, mend: str) -> None:
    """Raise Problem unless the program succeeded and printed `text`."""
    if done.code != 0 or done.stdout.strip() != text:
        raise Problem(done.last_line, mend)
