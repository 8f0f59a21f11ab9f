"""Where drupe-oci differs from runc and crun, and why. docs/compat.md is written from it (scripts/gen-compat.py)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class Difference(NamedTuple):
    """case: of framework.conformance. keys: a pattern for what is seen there. other: "runc" or "crun"."""

    case: str
    keys: str
    other: str
    why: str


_ROOT = "crun, which does the work, tells hooks the root as well: more than the specification asks for"
_MOMENT = "crun takes the container for created when these run, runc for being created; the specification says creating"
_CORE = "crun always links /dev/core, runc only where /proc/kcore is there"
DIFFERENCES: tuple[Difference, ...] = (
    Difference("device nodes", "core", "runc", _CORE),
    Difference("usual device nodes", "core", "runc", _CORE),
    Difference(
        "mistakes at the command line", "a signal that is none", "crun",
        "refused by name; crun 1.8 sends the signal 0 and says nothing",
    ),
    Difference("hooks", "(prestart|createRuntime|createContainer|poststart) fields", "runc", _ROOT),
    Difference("hooks", "poststop fields", "runc", _ROOT + ". It also keeps the pid, of a process that is gone"),
    Difference("hooks", "(prestart|createRuntime|createContainer) status", "runc", _MOMENT),
    Difference("hooks", "poststart status", "runc", "running, as the specification says; runc says created"),
    Difference(
        "hooks", "createContainer pid", "runc",
        "crun runs it inside the PID namespace's parent before it knows the pid, and tells 0",
    ),
    Difference(
        "hooks inside", '"status":"(starting|created)"', "runc",
        "crun calls the moment of startContainer starting, runc (and the specification) created",
    ),
    Difference(
        "hooks that fail", "(createRuntime|createContainer): order", "runc",
        "after a hook that failed, runc runs poststop, and crun 1.8 only removes what it made",
    ),
    Difference(
        "hooks that fail", "poststart: exit code is 0", "runc",
        "a failing poststart is a warning, as the specification says; runc kills the container",
    ),
    Difference(
        "exec", "plain .*", "crun",
        "an exec by flags begins with the container's own process, as runc's; crun's in /, without its environment",
    ),
    Difference(
        "exec", "flags .*", "crun", "the same: with --env, crun's exec has no other variable, not even a PATH",
    ),
    Difference(
        "standard streams", "own file", "runc", "the caller's own files; runc's run copies through pipes",
    ),
    Difference("state", "absolute rootfs", "crun", "made absolute, as runc has it"),
)  # fmt: skip


@dataclass(frozen=True)
class Keys:
    """The listed differences of a case with one other runtime."""

    patterns: tuple[str, ...]

    def covers(self, key: str) -> bool:
        return any(re.fullmatch(pattern, key) for pattern in self.patterns)

    def unused(self, found: Iterable[str]) -> list[str]:
        """Listed, and not among those found."""
        keys = list(found)
        return [pattern for pattern in self.patterns if not any(re.fullmatch(pattern, key) for key in keys)]


def of_kind(kind: str) -> tuple[Difference, ...]:
    """All of a kind's."""
    from framework import kind_differences

    return DIFFERENCES if kind == "runc" else kind_differences.OF_KIND[kind]


def keys(case: str, other: str, kind: str = "runc") -> Keys:
    """What is listed for a case."""
    return Keys(tuple(d.keys for d in of_kind(kind) if (d.case, d.other) == (case, other)))
