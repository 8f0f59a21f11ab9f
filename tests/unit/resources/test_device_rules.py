"""Device rules of cgroup v1 as the list that the kernel is to have after them."""

from __future__ import annotations

from typing import Any

import pytest

from drupe.errors import InvalidArgument
from drupe.resources.cgroups.devices_v1 import follow

DENY_ALL: dict[str, Any] = {"allow": False, "access": "rwm"}


def after(*rules: dict[str, Any]) -> dict[str, set[str]]:
    wanted: dict[str, set[str]] = {}
    for rule in (DENY_ALL, *rules):
        follow(rule, wanted)
    return wanted


def rule(allow: bool, major: int | None = None, minor: int | None = None, access: str = "rwm") -> dict[str, Any]:
    return {"allow": allow, "type": "c", "major": major, "minor": minor, "access": access}


def test_a_device_that_was_never_given_is_taken_away() -> None:
    """As Docker does with the one of FUSE."""
    assert after(rule(True, 1, 3), rule(False, 10, 229)) == {"c 1:3": {"r", "w", "m"}}


def test_a_device_is_given_and_taken_away() -> None:
    assert after(rule(True, 1, 3), rule(False, 1, 3, "w")) == {"c 1:3": {"r", "m"}}
    assert after(rule(True, 1, 3), rule(False, 1, 3)) == {}
    assert after(rule(True, 1, 3, "r"), rule(True, 1, 3, "w")) == {"c 1:3": {"r", "w"}}
    assert after(rule(True, 1, 3), DENY_ALL, rule(True, -1, 5)) == {"c *:5": {"r", "w", "m"}}


def test_who_may_use_all_gets_nothing_more() -> None:
    """The kernel lists all alone, whatever is given after it: privileged containers of the CRI are given both."""
    everything: dict[str, Any] = {"allow": True, "access": "rwm"}
    assert after(rule(True, 1, 3), everything, rule(True, 1, 5), rule(True, access="m")) == {"a *:*": {"r", "w", "m"}}
    assert after(everything, DENY_ALL, rule(True, 1, 5)) == {"c 1:5": {"r", "w", "m"}}


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (rule(True, 1), rule(False, 1, 3)),
        (rule(True), rule(False, 10, 229, "m")),
        (rule(True, 10, 229), rule(False, 10)),
        ({"allow": True, "access": "rwm"}, rule(False, 10, 229)),
    ],
)
def test_a_part_of_what_was_given_cannot_be_taken_away(given: dict[str, Any], taken: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="takes away a part"):
        after(given, taken)
    assert after(rule(True, 1, access="m"), rule(False, 1, 3, "rw")) == {"c 1:*": {"m"}}
