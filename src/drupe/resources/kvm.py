"""Whether KVM is of use here: the device may be there while a guest's kernel mode is emulated.

Nobody chooses KVM because /dev/kvm exists: a loop in ring 0 is timed, in a process that is killed when it hangs.
"""

from __future__ import annotations

import json
import sys

from drupe.keeper.client import Keeper
from drupe.linux.kvm import TOO_SLOW_NS

DEADLINE_S = 1.0
PROBE = (sys.executable, "-m", "drupe.linux.kvm")
_found: list[str] = []  # the answer, once known: it lasts as long as the host


async def find_fault(keeper: Keeper) -> str:
    """Why KVM is of no use here; "" when it is."""
    if not _found:
        done = await keeper.run(PROBE, timeout_s=DEADLINE_S)
        _found.append("a guest did not run to its end in a second" if done.timed_out else read_fault(done.stdout))
    return _found[0]


def read_fault(said: str) -> str:
    """What the probe's output means; "" for a KVM that runs a guest's kernel on the processor."""
    try:
        found = json.loads(said)
    except ValueError:
        return "its probe ended without a word"
    if "error" in found:
        return f"/dev/kvm: {found['error']}"
    if found["ns"] > TOO_SLOW_NS:
        return f"ring 0 is emulated: {found['ns']:.0f} ns an instruction, where a processor takes less than one"
    return ""
