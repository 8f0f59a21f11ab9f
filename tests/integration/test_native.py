"""The native parts' own tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(600)
def test_cargo_test() -> None:
    """`cargo test` of the native workspace passes; built outside the tree, as scripts/build-native.sh does."""
    if shutil.which("cargo") is None:
        pytest.skip("cargo is not installed")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    env = os.environ | {"CARGO_TARGET_DIR": str(cache / "drupe/native/target")}
    argv = ["cargo", "test", "--quiet", "--locked", "--workspace"]
    done = subprocess.run(argv, cwd=ROOT / "native", env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test result: ok. 2" in done.stdout, "the keeper's tests did not run"
