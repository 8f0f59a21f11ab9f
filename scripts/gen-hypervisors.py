#!/usr/bin/env python3
"""Writes the table of docs/hypervisors.md: what each driver can do, as it says itself. `--check`: only look."""

from __future__ import annotations

import sys
from pathlib import Path

from drupe.hypervisors.cloud_hypervisor import CloudHypervisor
from drupe.hypervisors.contract import ABILITIES
from drupe.hypervisors.firecracker import Firecracker
from drupe.hypervisors.qemu.driver import MICROVM, VIRT, Qemu
from drupe.hypervisors.stratovirt import StratoVirt
from drupe.hypervisors.uml import Uml

PAGE = Path(__file__).parents[1] / "docs/hypervisors.md"
BEGIN, END = "<!-- abilities: scripts/gen-hypervisors.py -->\n", "<!-- end -->\n"
DRIVERS = {
    "qemu": Qemu.abilities,
    "qemu microvm": MICROVM,
    "qemu virt": VIRT,
    "cloud-hypervisor": CloudHypervisor.abilities,
    "firecracker": Firecracker.abilities,
    "stratovirt": StratoVirt.abilities,
    "uml": Uml.abilities,
}


def table() -> str:
    """Markdown: a row for each ability, then the reasons for what is not plainly there."""
    lines = ["| | " + " | ".join(DRIVERS) + " |", "|---" * (len(DRIVERS) + 1) + "|"]
    for word, meaning in ABILITIES.items():
        answers = [abilities[word].partition(":")[0] for abilities in DRIVERS.values()]
        lines.append(f"| `{word}`: {meaning} | " + " | ".join(answers) + " |")
    for name, abilities in DRIVERS.items():
        lines += ["", f"**{name}**", ""]
        lines += [f"- `{word}`: {answer}" for word, answer in abilities.items() if answer != "yes"]
    return "\n".join(lines) + "\n"


def main() -> int:
    """1 when `--check` finds the page out of date."""
    text = PAGE.read_text()
    head, rest = text.split(BEGIN)
    wanted = head + BEGIN + table() + END + rest.split(END)[1]
    if "--check" in sys.argv:
        return int(text != wanted)
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
