"""Filters of system calls as the kernel takes them: the BPF program of a container's profile (docs/appkernel.md)."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec

from drupe.errors import InvalidArgument, Unsupported
from drupe.oci.seccomp import compile_oci

_READY = "run.oci.seccomp_bpf_data"  # the annotation by which crun, too, is given a program
_INSTRUCTION_BYTES = 8
_NATIVE = ["SCMP_ARCH_X86_64"]


def instructions(oci: Mapping[str, Any]) -> list[int]:
    """The program of `linux.seccomp`, struct sock_filter by struct sock_filter; [] when there is none.

    Raises Unsupported for an action that the kernel lacks, InvalidArgument for what is no filter.
    """
    profile = (oci.get("linux") or {}).get("seccomp")
    if not profile:
        return []
    ready = (oci.get("annotations") or {}).get(_READY)
    program = base64.b64decode(ready) if ready else _compiled(msgspec.json.encode(profile))
    return list(struct.unpack(f"<{len(program) // _INSTRUCTION_BYTES}Q", program))


@lru_cache(maxsize=64)
def _compiled(profile: bytes) -> bytes:
    filter_ = {"architectures": _NATIVE, "syscalls": [], **msgspec.json.decode(profile)}
    try:
        return compile_oci(filter_, tree=True)
    except KeyError as error:
        raise Unsupported(
            f"the application kernel's filters have no action or operator {error.args[0]}",
            kind="appkernel", feature="seccomp", cause="nobody in the pod could be told of a call",
        ) from None  # fmt: skip
    except OSError as error:
        raise InvalidArgument("linux.seccomp is no filter of system calls", cause=str(error)) from None
