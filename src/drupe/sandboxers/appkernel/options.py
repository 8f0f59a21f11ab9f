"""Settings of the appkernel kind: `[kinds.appkernel]` in the node's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from drupe.errors import NotFound
from drupe.keeper.programs import find_program
from drupe.sandboxers.appkernel.platforms import Wanted
from drupe.spec.base import Spec

PROGRAM = "drupe-appkernel"


class AppkernelOptions(Spec):
    """program: the kernel, by path; "": the one that came with this version. root: how it sees containers' roots:
    "directory", the host's overlay; or "image", an EROFS file that all pods share, where what is written stays in the
    pod's memory and out of reach of `cp`, `diff` and `commit`. spares: kernels that wait for pods, from the first pod
    on. platform: what runs guest code: "trap", stub processes; "kvm", a virtual machine of the host's KVM, or no pod;
    "auto": "kvm" where a timed probe finds it fast."""

    program: str = ""
    root: Literal["directory", "image"] = "directory"
    spares: Annotated[int, msgspec.Meta(ge=0, le=64)] = 4
    platform: Wanted = "trap"


def find_kernel(options: AppkernelOptions) -> Path:
    """Its path. NotFound says how to get it."""
    if not options.program:
        return find_program(PROGRAM)
    if not Path(options.program).exists():
        raise NotFound(f"no program {options.program}", hint="kinds.appkernel.program in the node's configuration")
    return Path(options.program)
