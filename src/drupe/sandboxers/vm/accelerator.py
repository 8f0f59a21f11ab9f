"""Which accelerator machines get: KVM when it has proven to be one, else none, which is said loudly."""

from __future__ import annotations

from drupe.hypervisors.contract import Accelerator
from drupe.keeper.client import Keeper
from drupe.resources.kvm import find_fault


async def choose_accelerator(keeper: Keeper) -> Accelerator:
    """KVM only where a guest's kernel mode was timed to run on the processor; never because the device is there."""
    return "tcg" if await find_fault(keeper) else "kvm"
