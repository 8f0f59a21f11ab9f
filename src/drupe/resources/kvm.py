"""Whether KVM is of use here: the device may be there while a guest's kernel mode is emulated.

Nobody chooses KVM because /dev/kvm exists: a loop in ring 0 is timed, in a process that is killed when it hangs.
"""

from __future__ import annotations

import json
import sys

from drupe.keeper.client import Keeper
from drupe.linux.kvm import is_slow

DEADLINE_S = 10.0  # of the whole program, on a busy host too; its loops have one of their own
PROBE = (sys.executable, "-m", "drupe.linux.kvm")
_found: list[str] = []  # the answer, once known: it lasts as long as the host


async def find_fault(keeper: Keeper) -> str:
    """Why KVM is of no use here; "" when it is."""
    if not _found:
        done = await keeper.run(PROBE, timeout_s=DEADLINE_S)
        _found.append("a guest did not run to its end" if done.timed_out else read_fault(done.stdout))
    return _found[0]


def read_fault(said: str) -> str:
    """What the probe's output means; "" for a KVM that runs a guest's kernel on the processor."""
    try:
        found = json.loads(said)
    except ValueError:
        return "its probe ended without a word: a guest may not have come to its end"
    if "error" in found:
        return f"/dev/kvm: {found['error']}"
    if is_slow(found["ns"], found["own_ns"]):
        own = f"{found['own_ns']:.1f} of our own"
        return f"ring 0 is emulated: an instruction of it takes {found['ns']:.0f} ns, and {own}"
    return ""
