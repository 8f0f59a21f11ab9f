"""Writes docs/compat.md from the conformance tests' cases and their list of differences.

    scripts/gen-compat.py [--check]

--check writes nothing and fails when the page is not what the lists say.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from framework.differences import Difference

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/compat.md"
sys.path.insert(0, str(ROOT / "tests"))

HEAD = """# How drupe-oci differs from runc and crun

<!-- written by scripts/gen-compat.py: change tests/framework/differences.py and kind_differences.py -->

`tests/conformance` runs the same bundles through runc, crun and `drupe-oci`, and compares what the workload, its hooks
and its caller see. What is not in these tables is the same, with Debian 12's runc 1.1.5 and crun 1.8.1. Beside them:
fields that the program would overlook are [refused](oci.md#what-a-bundle-may-hold), where runc and crun ignore them.

"""
GVISOR = """## In gVisor sandboxes
`drupe-oci-gvisor` against runc. What only the workload sees is compared with runsc itself, too, for the same bundles:
there is no difference. "Refused by name" is the whole case: an error names the field, and nothing is made.

"""
APPKERNEL = """## Under the application kernel
`drupe-oci-appkernel` against runc.

"""
MACHINES = """## In machines
`drupe-oci-vm` against runc.

"""
WASM = """## In Wasm sandboxes
`drupe-oci-wasm` against runc: modules and busybox's programs of the same names, as far as a module can see anything.

"""


def table(listed: Iterable[Difference]) -> str:
    """Rows of differences."""
    rows = [f"| {d.case} | `{d.keys.replace('|', '&#124;')}` | {d.why} |" for d in listed]
    return "| case | what is seen | why |\n|---|---|---|\n" + "\n".join(rows) + "\n\n"


def page() -> str:
    """The whole document."""
    from framework import wasm_conformance
    from framework.conformance import CASES, INSIDE
    from framework.differences import DIFFERENCES, of_kind

    parts = [HEAD]
    for other in ("runc", "crun"):
        parts.append(f"## From {other}\n" + table(d for d in DIFFERENCES if d.other == other))
    for head, kind in ((GVISOR, "gvisor"), (APPKERNEL, "appkernel"), (MACHINES, "vm"), (WASM, "wasm")):
        parts += [head, table(of_kind(kind))]
    parts.append("## What is compared\n")
    parts += [f"- {name}{' (with runsc, too)' if name in INSIDE else ''}\n" for name in CASES]
    parts += ["\nFor modules:\n", *(f"- {name}\n" for name in wasm_conformance.CASES)]
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
