#!/usr/bin/env python3
"""Write the blocking twins in src/drupe/api/_sync from the asyncio code in src/drupe/api/_async.

scripts/unasync.py           write them
scripts/unasync.py --check   exit 1 when a file is not what would be written

The code of the API is written once. Modules that really differ (`BY_HAND`) exist in both directories under one name.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src/drupe/api/_async"
TARGET = ROOT / "src/drupe/api/_sync"
BY_HAND = {"__init__.py", "connect.py", "pipes.py"}
HEAD = "# Written by scripts/unasync.py from api/_async/{name}; change that file, not this one.\n"

REPLACEMENTS = [
    (r"\basync (def|with|for)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\b__a(enter|exit|next|iter)__\b", r"__\1__"),
    (r"\banext\(", "next("),
    (r"\bStopAsyncIteration\b", "StopIteration"),
    (r"\bAsync([A-Z]\w*)", r"\1"),
    (r"\b_async\b", "_sync"),
    (r"\basyncio\b", "blocking"),
]


def translate(name: str, text: str) -> str:
    """The blocking form of an asyncio module, formatted."""
    for pattern, replacement in REPLACEMENTS:
        text = re.sub(pattern, replacement, text)
    return ruff("format", ruff("check", HEAD.format(name=name) + text, "--fix", "--exit-zero", "--select", "I"))


def ruff(verb: str, text: str, *options: str) -> str:
    """`text` after a pass of ruff."""
    argv = [sys.executable, "-m", "ruff", verb, "--quiet", *options, "--stdin-filename", str(TARGET / "x.py"), "-"]
    return subprocess.run(argv, input=text, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def wanted() -> dict[Path, str]:
    """Each generated file and its content."""
    return {
        TARGET / path.name: translate(path.name, path.read_text())
        for path in sorted(SOURCE.glob("*.py"))
        if path.name not in BY_HAND
    }


def main() -> int:
    """Write or check; the exit code."""
    files = wanted()
    strays = {path for path in TARGET.glob("*.py") if path.name not in BY_HAND} - set(files)
    stale = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    if sys.argv[1:] == ["--check"]:
        for path in [*stale, *strays]:
            print(f"{path.relative_to(ROOT)} is not current: run scripts/unasync.py")
        return 1 if stale or strays else 0
    for path in strays:
        path.unlink()
    for path in stale:
        path.write_text(files[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
