"""The linters, as tests: ruff, mypy --strict, cargo fmt, clippy, and where `unsafe` may be."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from framework import clones
from framework.guests import cache

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "native"

# crates that may contain `unsafe`, each with its reason
UNSAFE_HOMES = {
    NATIVE / "sys": "thin wrappers over the system calls that the keeper and the client make",
    NATIVE
    / "trim": "a plugin of QEMU: C functions that it calls and is called by, and memory of QEMU that it gives back",
    NATIVE / "appkernel/hostsys": "stub processes of the application kernel, and the code in their signal handlers",
}


# what clippy has learned of a crate is the same for every clone
CACHE = cache() / "native/clippy"


def check(*argv: object, cwd: Path = ROOT) -> None:
    """Run a linter; its output is the failure."""
    env = os.environ | {"CARGO_TARGET_DIR": str(CACHE)}
    words = [str(word) for word in argv]
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}"


def test_ruff_finds_nothing() -> None:
    """Every lint rule of pyproject.toml holds."""
    check(sys.executable, "-m", "ruff", "check", "--quiet", ".")


def test_code_is_formatted() -> None:
    """`make format` would change nothing."""
    check(sys.executable, "-m", "ruff", "format", "--check", "--quiet", ".")


@pytest.mark.timeout(600)
def test_types_are_strict() -> None:
    """mypy --strict over the package, the benchmarks and the scripts."""
    with clones.held("mypy") as known:  # of each file by its content, so that it serves every clone
        check(sys.executable, "-m", "mypy", "--cache-dir", known)


def cargo(*argv: str, component: str) -> None:
    """Run a cargo subcommand in the native workspace, or skip when it is not installed."""
    if shutil.which("cargo") is None:
        pytest.skip("cargo is not installed")
    if shutil.which(component) is None:
        pytest.skip(f"{component} is not installed")
    probe = subprocess.run(["cargo", argv[0], "--version"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"cargo {argv[0]} does not work here: {probe.stderr.strip().splitlines()[-1]}")
    with clones.native() as workspace:
        check("cargo", *argv, cwd=workspace)


def test_rust_is_formatted() -> None:
    """`cargo fmt` would change nothing."""
    cargo("fmt", "--all", "--check", component="cargo-fmt")


@pytest.mark.timeout(600)
def test_clippy_finds_nothing() -> None:
    """No warning of clippy, in any crate or test."""
    cargo("clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings", component="cargo-clippy")


def rust_sources() -> list[Path]:
    """Every Rust file of the native workspace."""
    return [p for p in sorted(NATIVE.rglob("*.rs")) if "target" not in p.relative_to(NATIVE).parts]


def test_unsafe_is_in_named_crates_only() -> None:
    """`unsafe` is written in few crates, each named with its reason: what a reviewer must distrust."""
    assert rust_sources(), "the native workspace is missing"
    wrong = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in rust_sources()
        if not UNSAFE_HOMES.keys() & set(path.parents)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"\bunsafe\b(?!_)", line.split("//")[0])
    ]
    assert wrong == []
