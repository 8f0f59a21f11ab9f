"""Writes docs/compat.md from the conformance tests' cases and their list of differences.

    scripts/gen-compat.py [--check]

--check writes nothing and fails when the page is not what the lists say.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/compat.md"
sys.path.insert(0, str(ROOT / "tests"))

HEAD = """# How drupe-oci differs from runc and crun

<!-- written by scripts/gen-compat.py: change tests/framework/differences.py -->

`tests/conformance` runs the same bundles through runc, crun and `drupe-oci`, and compares what the workload, its hooks
and its caller see. What is not in these tables is the same, with Debian 12's runc 1.1.5 and crun 1.8.1. Beside them:
fields that the program would overlook are [refused](oci.md#what-a-bundle-may-hold), where runc and crun ignore them.

"""


def page() -> str:
    """The whole document."""
    from framework.conformance import CASES
    from framework.differences import DIFFERENCES

    parts = [HEAD]
    for other in ("runc", "crun"):
        rows = [f"| {d.case} | `{d.keys.replace('|', '&#124;')}` | {d.why} |" for d in DIFFERENCES if d.other == other]
        parts.append(f"## From {other}\n| case | what is seen | why |\n|---|---|---|\n" + "\n".join(rows) + "\n\n")
    parts.append("## What is compared\n" + "".join(f"- {name}\n" for name in CASES))
    return "".join(parts)


def main() -> None:
    """Write the page, or say that it is stale."""
    text = page()
    if "--check" in sys.argv:
        if not PAGE.exists() or PAGE.read_text() != text:
            sys.exit(f"{PAGE.relative_to(ROOT)} is not what scripts/gen-compat.py writes")
        return
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
