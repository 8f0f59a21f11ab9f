"""Kubernetes' CRI validation suite as a program, built by go of its published module. Its sources are not kept here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

MODULE = "sigs.k8s.io/cri-tools"
VERSION = "v1.37.0"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drupe/critest"


def build(version: str = VERSION) -> Path:
    """The program `critest` of a version; built once. Raises RuntimeError, with what mends it."""
    program = CACHE / f"critest-{version}"
    if program.exists():
        return program
    if shutil.which("go") is None:
        raise RuntimeError(f"critest is built by go, which is not there\nhint: install go, or put one at {program}")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        source = Path(scratch) / "source"
        shutil.copytree(_fetched(version, scratch), source)
        source.chmod(0o755)
        made = Path(scratch) / "critest"
        _go(source, "test", "-c", "-vet=off", "-mod=mod", "-o", str(made), "./cmd/critest")
        made.rename(program)
    return program


def _fetched(version: str, directory: str) -> Path:
    answer = _go(Path(directory), "mod", "download", "-json", f"{MODULE}@{version}")
    return Path(json.loads(answer)["Dir"])


def _go(directory: Path, *words: str) -> str:
    static = {**os.environ, "CGO_ENABLED": "0"}
    done = subprocess.run(["go", *words], cwd=directory, env=static, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"go {words[0]} failed: {(done.stdout + done.stderr).strip()[-500:]}")
    return done.stdout
