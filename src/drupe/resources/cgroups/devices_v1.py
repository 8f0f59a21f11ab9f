"""The v1 devices controller: which device nodes the processes of a cgroup may use (admin-guide/cgroup-v1/devices)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from drupe.errors import InternalError, InvalidArgument
from drupe.resources.cgroups.base import read_text, write_text

_EVERYTHING = "a"
_LIST_OF_EVERYTHING = "a *:* rwm"


def restrict(directory: str, rules: Iterable[Mapping[str, Any]]) -> None:
    """Write the rules of `linux.resources.devices` in their order and read the list back.

    Raises InvalidArgument for a rule that is not one of "nothing", "everything" and "this one too", InternalError when
    the kernel took something else. OSError as it comes.
    """
    wanted: dict[str, set[str]] = {}
    allow = os.open(f"{directory}/devices.allow", os.O_WRONLY | os.O_CLOEXEC)
    try:
        for rule in rules:
            line = _line(rule)
            if line == _EVERYTHING:
                wanted.clear()
            if not rule["allow"]:
                write_text(f"{directory}/devices.deny", line)
                continue
            os.write(allow, line.encode())  # one rule a write
            node, _, access = (_LIST_OF_EVERYTHING if line == _EVERYTHING else line).rpartition(" ")
            wanted.setdefault(node, set()).update(access)
    finally:
        os.close(allow)
    found = {node: set(access) for node, _, access in map(_split, read_text(f"{directory}/devices.list").splitlines())}
    if found != wanted:
        raise InternalError(f"the devices controller took {found}, not {wanted}", stage="limits")


def _line(rule: Mapping[str, Any]) -> str:
    if rule.get("type", _EVERYTHING) == _EVERYTHING:
        return _EVERYTHING
    if not rule["allow"]:
        raise InvalidArgument(f"device rule {dict(rule)} takes one device away", hint="deny all, then allow some")
    return f"{rule['type']} {rule.get('major', '*')}:{rule.get('minor', '*')} {rule['access']}"


def _split(line: str) -> tuple[str, str, str]:
    return line.rpartition(" ")
