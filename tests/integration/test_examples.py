"""The examples are programs that check themselves: run each as its first lines say, in a network of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from framework.daemon import make_netns
from framework.probes import needs_keeper, needs_program

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.root
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example(example: Path, tmp_path: Path) -> None:
    """Ends with 0: all that it asserts is true, and it tells who runs it what it has shown. The leak check proves that
    it leaves nothing."""
    needs_keeper()
    needs_program("crun", "busybox", "nsenter")
    netns = make_netns()
    try:
        done = subprocess.run(
            ["nsenter", f"--net=/proc/{os.getpid()}/fd/{netns}", sys.executable, example],
            env=os.environ | {"TMPDIR": str(tmp_path)}, capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip
    finally:
        os.close(netns)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) >= 3 and not done.stderr


def test_there_are_examples() -> None:
    """A moved directory must not make the test above empty."""
    assert {path.stem for path in EXAMPLES} >= {"embedded", "async_sandbox"}
