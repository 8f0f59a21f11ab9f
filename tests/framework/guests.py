"""WASI programs for tests: `suite.wasm`, built from C by Debian's clang and wasi-libc, once for all clones."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "wasm/suite.c"
COMPILER = "clang-14"
PROGRAMS = (
    "true", "false", "exit", "echo", "complain", "seq", "cat", "sleep", "patient", "stubborn", "spin", "printenv",
    "pwd", "tty", "size",
)  # fmt: skip


def suite() -> Path:
    """The compiled module, from the cache if it is there. Skips when nothing here can compile it."""
    text = SOURCE.read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drupe/guests"
    built = cache / f"suite-{hashlib.sha256(text).hexdigest()[:16]}.wasm"
    if not built.exists():
        if shutil.which(COMPILER) is None or not Path("/usr/include/wasm32-wasi").is_dir():
            pytest.skip("no C compiler for WASI (scripts/setup.sh --tests installs one)")
        cache.mkdir(parents=True, exist_ok=True)
        partial = built.with_suffix(f".{os.getpid()}")
        subprocess.run([COMPILER, "--target=wasm32-wasi", "-O2", "-o", partial, SOURCE], check=True)
        partial.rename(built)
    return built


def make_rootfs(root: Path) -> Path:
    """A root with the suite's programs, as links to one module."""
    (root / "bin").mkdir(parents=True)
    shutil.copyfile(suite(), root / "bin/suite.wasm")
    for name in PROGRAMS:
        (root / "bin" / name).symlink_to("suite.wasm")
    (root / "bin/plain-file").write_text("no program\n")
    return root
