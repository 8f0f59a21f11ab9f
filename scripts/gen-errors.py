#!/usr/bin/env python3
"""Write docs/errors.md from the tree in drupe.errors, so that the page and the code cannot disagree.

scripts/gen-errors.py           write the page
scripts/gen-errors.py --check   exit 1 when the page is not what would be written
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from drupe import errors

PAGE = Path(__file__).parents[1] / "docs/errors.md"

HEAD = """# Errors and exit codes

Written by `scripts/gen-errors.py` from `src/drupe/errors.py`; change that file, not this one.

Every expected failure is a `drupe.errors.DrupeError`: one line that says what and where, a `hint` that says how to
mend it, the `stage` of the work that failed, the `cause` below it, and `may_have_run`: when false, the workload did
certainly not start. The command line prints the line and the hint; a traceback only for `InternalError`, a bug.

## The tree

| error | gRPC status | exit code of `drupe` | retry is safe | meaning |
|---|---|---|---|---|
"""

TAIL = """
## Exit codes of the command line

| code | meaning |
|---|---|
| 0 | done; for `run`, `exec`, `start -a`, `attach`: the workload ended with 0 |
| 1 to 123 | the workload's own exit code, passed through |
| 2 | the command line itself is wrong (unknown verb or option; 125 for `run`, `exec`, `create`, `start`) |
| 124 | a deadline passed (`DeadlineExceeded`), as timeout(1) |
| 125 | drupe failed: any other error of the tree |
| 126 | the program in the container exists but cannot be executed |
| 127 | the program in the container was not found |
| 128 + n | the workload was ended by signal n (137: SIGKILL, also at its memory limit; 143: SIGTERM) |
| 70 | `InternalError`: a bug in drupe, shown with its traceback |
"""

MEANINGS = {
    line.split("── ")[1].split()[0]: " ".join(line.split("── ")[1].split()[1:])
    for line in (errors.__doc__ or "").splitlines()
    if "── " in line
}


def walk(kind: type[errors.DrupeError], depth: int = 0) -> Iterator[tuple[int, type[errors.DrupeError]]]:
    """The error types in the order of the tree, with their depth."""
    yield depth, kind
    for sub in kind.__subclasses__():
        yield from walk(sub, depth + 1)


def page() -> str:
    """The whole page."""
    rows = []
    for depth, kind in walk(errors.DrupeError):
        name = "&nbsp;" * 4 * depth + f"`{kind.__name__}`"
        meaning = MEANINGS.get(kind.__name__, "base of all expected errors")
        retry = "yes" if kind.retryable else "no"
        rows.append(f"| {name} | `{kind.code}` | {kind.exit_code} | {retry} | {meaning} |")
    return HEAD + "\n".join(rows) + "\n" + TAIL


def main() -> int:
    """Write or check; the exit code."""
    if sys.argv[1:] != ["--check"]:
        PAGE.write_text(page())
        return 0
    if PAGE.read_text() == page():
        return 0
    print("docs/errors.md is not current: run scripts/gen-errors.py")
    return 1


if __name__ == "__main__":
    sys.exit(main())
