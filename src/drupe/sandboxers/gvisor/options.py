"""Settings of the gVisor kind: `[kinds.gvisor]` in the node's configuration, and what a pod's annotations say."""

from __future__ import annotations

from typing import Literal, get_args

from drupe.errors import InvalidArgument, Unsupported
from drupe.keeper.client import Keeper
from drupe.resources.kvm import find_fault
from drupe.spec.base import Spec
from drupe.spec.pod import PodSpec

PLATFORM = "drupe.gvisor.platform"
DEBUG = "drupe.gvisor.debug"

Platform = Literal["systrap", "ptrace", "kvm"]


class GvisorOptions(Spec):
    """program: runsc, by name or path. platform: how the sentry gets at system calls. debug: log each of them."""

    program: str = "runsc"
    platform: Platform = "systrap"
    debug: bool = False


async def platform_for(options: GvisorOptions, spec: PodSpec, keeper: Keeper) -> Platform:
    """The pod's wish or the node's. InvalidArgument for an unknown one, Unsupported for "kvm" where that is no use."""
    wished = spec.annotations.get(PLATFORM, options.platform)
    for platform in get_args(Platform):
        if platform == wished:
            if platform == "kvm":
                await _check_kvm(keeper)
            found: Platform = platform
            return found
    hint = f"one of: {', '.join(get_args(Platform))}"
    raise InvalidArgument(f"unknown gVisor platform {wished!r} in annotation {PLATFORM}", hint=hint)


async def _check_kvm(keeper: Keeper) -> None:
    fault = await find_fault(keeper)
    if fault:
        raise Unsupported(
            "gVisor's platform kvm cannot be used here", kind="gvisor", feature="platform", cause=fault,
            hint="leave the platform at systrap",
        )  # fmt: skip


def wants_debug(options: GvisorOptions, spec: PodSpec) -> bool:
    """Whether the pod's sandbox logs what it does in detail."""
    return spec.annotations.get(DEBUG, str(options.debug)).lower() == "true"
