"""What everyone pays for at import: heavy libraries are loaded only where they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"httpx", "rich", "ssl", "zstandard", "sqlite3", "email", "http.client", "urllib.request", "hypothesis"}
LOADED = "import sys; {code}; print(*sorted(sys.modules))"


def modules_after(code: str) -> set[str]:
    """Names of all modules that a fresh interpreter has after running `code`."""
    argv = [sys.executable, "-c", LOADED.format(code=code)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("code", "without"),
    [
        ("import drupe", HEAVY | {"asyncio"}),
        ("import drupe.spec", HEAVY | {"asyncio"}),
        ("import drupe.rpc.client", HEAVY | {"asyncio"}),
        ("import drupe.cli.main, drupe.cli.run", HEAVY | {"asyncio"}),
        ("import drupe.sandboxers.wasm.sandboxer, drupe.services.build", {"wasmtime"}),
        ("import drupe.cli.exec, drupe.cli.logs, drupe.cli.ps", HEAVY | {"asyncio"}),
    ],
)
def test_heavy_libraries_are_not_imported(code: str, without: set[str]) -> None:
    """The command line and the library answer at once."""
    assert modules_after(code) & without == set()
