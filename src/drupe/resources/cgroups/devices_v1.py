"""The v1 devices controller: which device nodes the processes of a cgroup may use (admin-guide/cgroup-v1/devices)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from drupe.errors import InternalError, InvalidArgument
from drupe.resources.cgroups.base import read_text

_EVERYTHING = "a"
_LIST_OF_EVERYTHING = "a *:* rwm"
_ALL = "a *:*"


def restrict(directory: str, rules: Iterable[Mapping[str, Any]]) -> None:
    """Write the rules of `linux.resources.devices` in their order and read the list back.

    Raises InvalidArgument for a rule that takes away a part of what one before it gives, which this controller cannot
    do; InternalError when the kernel took something else. OSError as it comes.
    """
    wanted = _listed(directory)
    files = {
        allow: os.open(f"{directory}/devices.{name}", os.O_WRONLY | os.O_CLOEXEC)
        for allow, name in ((True, "allow"), (False, "deny"))
    }
    try:
        for rule in rules:
            follow(rule, wanted)
            os.write(files[bool(rule["allow"])], _line(rule).encode())  # one rule a write
    finally:
        for fd in files.values():
            os.close(fd)
    if (found := _listed(directory)) != wanted:
        raise InternalError(f"the devices controller took {found}, not {wanted}", stage="limits")


def _listed(directory: str) -> dict[str, set[str]]:
    return {node: set(access) for node, _, access in map(_split, read_text(f"{directory}/devices.list").splitlines())}


def follow(rule: Mapping[str, Any], wanted: dict[str, set[str]]) -> None:
    """What the list is after a rule: node ("c 1:3", "b 8:*") to what may be done with it."""
    line = _line(rule)
    if line == _EVERYTHING:
        wanted.clear()
    node, _, access = _split(_LIST_OF_EVERYTHING if line == _EVERYTHING else line)
    if rule["allow"]:
        if _ALL not in wanted:  # it then has nothing to add, and is not listed
            wanted.setdefault(node, set()).update(access)
    elif line != _EVERYTHING:
        for other, given in wanted.items():
            if other != node and given & set(access) and _overlap(other, node):
                hint = "deny all, then allow some"
                raise InvalidArgument(f"device rule {dict(rule)} takes away a part of {other!r}", hint=hint)
        left = wanted.pop(node, set()) - set(access)
        wanted.update({node: left} if left else {})


def _overlap(one: str, other: str) -> bool:
    """Whether there is a device that both nodes name."""
    pairs = zip(one.replace(":", " ").split(), other.replace(":", " ").split(), strict=True)
    return all(mine == theirs or {"*", _EVERYTHING} & {mine, theirs} for mine, theirs in pairs)


def _line(rule: Mapping[str, Any]) -> str:
    if (rule.get("type") or _EVERYTHING) == _EVERYTHING:
        return _EVERYTHING
    return f"{rule['type']} {_number(rule, 'major')}:{_number(rule, 'minor')} {rule['access']}"


def _number(rule: Mapping[str, Any], name: str) -> Any:
    """Missing, and -1, are any (runtime-spec, config-linux.md)."""
    number = rule.get(name)
    return "*" if number is None or number < 0 else number


def _split(line: str) -> tuple[str, str, str]:
    return line.rpartition(" ")
