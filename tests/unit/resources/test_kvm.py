"""What the probe of KVM makes of what it measured."""

from __future__ import annotations

import json

import pytest

from drupe.linux.kvm import own_ns_per_instruction
from drupe.resources.kvm import read_fault


@pytest.mark.parametrize(
    ("guest_ns", "own_ns", "fault"),
    [
        (0.3, 0.3, ""),  # a processor
        (40.0, 0.3, ""),  # one that many want
        (2000.0, 0.3, "ring 0 is emulated"),
        (344.0, 40.0, ""),  # a host that is emulated itself
        (90_000.0, 40.0, "ring 0 is emulated"),
    ],
)
def test_ring_0_against_ourselves(guest_ns: float, own_ns: float, fault: str) -> None:
    found = read_fault(json.dumps({"ns": guest_ns, "own_ns": own_ns}))
    assert found.startswith(fault) if fault else found == ""


def test_a_probe_that_came_to_no_end() -> None:
    assert "without a word" in read_fault("")
    assert read_fault('{"error": "Permission denied"}') == "/dev/kvm: Permission denied"


def test_our_own_loop_runs() -> None:
    assert 0 < own_ns_per_instruction(100_000) < 10_000
