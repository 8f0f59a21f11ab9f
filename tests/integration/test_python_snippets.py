"""The Python code in the documents runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from framework.daemon import Daemon

pytestmark = pytest.mark.root

ROOT = Path(__file__).parents[2]
SNIPPETS = [
    pytest.param(code, id=f"{path.stem}-{number}")
    for path in (ROOT / "README.md", ROOT / "docs/python.md")
    for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE))
]


@pytest.mark.parametrize("code", SNIPPETS)
def test_snippet(daemon: Daemon, code: str) -> None:
    """Ends with 0: all that it asserts is true. It leaves no pod."""
    daemon.command("tag", "busybox", "debian", check=True)
    done = subprocess.run(
        [sys.executable, "-c", code], env=daemon.environment(), capture_output=True, text=True, timeout=60, check=False
    )
    try:
        assert done.returncode == 0, done.stderr
        assert daemon.command("pod", "ls", "-q").stdout == ""
    finally:
        daemon.delete_pods()


def test_there_are_snippets() -> None:
    """A changed fence must not make the test above empty."""
    assert len(SNIPPETS) >= 8
