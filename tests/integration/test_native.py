"""The native parts' own tests."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from framework import clones
from framework.guests import cache


@pytest.mark.timeout(600)
def test_cargo_test() -> None:
    """`cargo test` of the native workspace passes; built outside the tree, as scripts/build-native.sh does."""
    if shutil.which("cargo") is None:
        pytest.skip("cargo is not installed")
    env = os.environ | {"CARGO_TARGET_DIR": str(cache() / "native/target")}
    argv = ["cargo", "test", "--quiet", "--locked", "--workspace"]
    with clones.native() as workspace:
        done = subprocess.run(argv, cwd=workspace, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test result: ok. 2" in done.stdout, "the keeper's tests did not run"
