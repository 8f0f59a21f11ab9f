"""docs/hypervisors.md says what the drivers say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_the_table_is_up_to_date() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts/gen-hypervisors.py", "--check"], check=False)
    assert done.returncode == 0, "run scripts/gen-hypervisors.py"
