"""Programs of the host that help to build an image: the one place that starts them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from drupe.errors import DeadlineExceeded, HelperFailed, NotFound

_TIMEOUT_S = 600


def run(argv: Sequence[str], *, hint: str, stdin: bytes = b"", cwd: Path = Path("/")) -> bytes:
    """What a program answers. hint: how to get it. Raises NotFound, HelperFailed (its last words), DeadlineExceeded."""
    if shutil.which(argv[0]) is None:
        raise NotFound(f"no program {argv[0]}", hint=hint)
    env = os.environ | {"LC_ALL": "C"}
    words = " ".join(argv[:2])
    try:
        done = subprocess.run(argv, input=stdin, cwd=cwd, env=env, capture_output=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise DeadlineExceeded(f"{words} took longer than {_TIMEOUT_S} s", stage="build") from None
    except OSError as error:
        raise HelperFailed(f"{argv[0]} does not run", cause=error.strerror or "", stage="build") from None
    if done.returncode != 0:
        raise HelperFailed(f"{words} failed", cause=_last_line(done.stderr or done.stdout), stage="build")
    return done.stdout


def _last_line(text: bytes) -> str:
    lines = text.decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else ""
