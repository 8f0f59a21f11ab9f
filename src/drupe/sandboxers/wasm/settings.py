"""What a container's OCI config says about its module: our own annotations, and limits."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from typing import Any

from drupe.errors import InvalidArgument
from drupe.sandboxers.wasm.job import Limits, Rlimit
from drupe.sandboxers.wasm.known import check_name
from drupe.sandboxers.wasm.modules import Own

PREFIX = "drupe.wasm."
ENGINE = PREFIX + "engine"
FUEL = PREFIX + "fuel"
MEMORY = PREFIX + "memory"
TABLE_ELEMENTS = PREFIX + "table-elements"
INSTANCES = PREFIX + "instances"
MODULE = PREFIX + "module"  # set by the runtime, never by a user: where the container's own module lies
IDLE = "drupe.idle"
SETTINGS = (ENGINE, FUEL, MEMORY, TABLE_ELEMENTS, INSTANCES)
OVERHEAD_BYTES = 8 << 20  # what a process of an engine needs for itself, out of a container's memory limit


def engine_of(annotations: Mapping[str, str], default: str) -> str:
    """The engine that a container asks for, or the node's own."""
    return annotations.get(ENGINE) or default


def limits_of(annotations: Mapping[str, str]) -> Limits:
    """InvalidArgument for what is no number, or a negative one."""
    return Limits(
        memory_bytes=_number(annotations, MEMORY, -1),
        table_elements=_number(annotations, TABLE_ELEMENTS, -1),
        instances=_number(annotations, INSTANCES, -1),
        fuel=_number(annotations, FUEL, 0),
    )


def check(annotations: Mapping[str, str]) -> None:
    """Raise InvalidArgument for a setting that there is not, or one that makes no sense; Unsupported for an engine."""
    for name in annotations:
        if name.startswith(PREFIX) and name not in SETTINGS:
            raise InvalidArgument(f"unknown annotation {name}", hint=f"there are {', '.join(SETTINGS)}")
    if ENGINE in annotations:
        check_name(annotations[ENGINE])
    limits_of(annotations)


def own_module(oci: Mapping[str, Any]) -> Own | None:
    """The module that lies outside the container's root, if it has one."""
    path = oci.get("annotations", {}).get(MODULE, "")
    return Own(path, (oci["process"]["args"][0],)) if path else None


def umask_of(user: Mapping[str, Any]) -> int:
    """What is taken from the permissions of files that it makes (umask(2)); by a runtime-spec `user`."""
    given: int | None = user.get("umask")
    return 0o22 if given is None else given


def rlimits_of(process: Mapping[str, Any]) -> tuple[Rlimit, ...]:
    """Those of the OCI process, as setrlimit(2) wants them."""
    found = []
    for limit in process.get("rlimits", ()):
        number = getattr(resource, limit["type"])
        found.append(Rlimit(number, _signed(limit["soft"]), _signed(limit["hard"])))
    return tuple(found)


def _signed(value: int) -> int:
    return -1 if value >= 2**63 else value


def _number(annotations: Mapping[str, str], name: str, default: int) -> int:
    text = annotations.get(name, "")
    if not text:
        return default
    from drupe.spec.units import parse_size

    try:
        value = parse_size(text) if name == MEMORY else int(text)
    except (ValueError, InvalidArgument):
        value = -1
    if value < 0:
        raise InvalidArgument(f"annotation {name}: {text!r} is no number")
    return value
