"""Which platform kernels get: KVM is taken where it is asked for, or where a probe has timed it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from drupe.sandboxers.appkernel.platforms import VARIABLE, KvmVerdict, PlatformChoice, Wanted, probe_kvm


def prober(directory: Path, script: str) -> Path:
    """A kernel's program that answers a probe, and notes that it was asked."""
    program = directory / "kernel"
    program.write_text(f"#!/bin/sh\necho $1 >>{directory}/asked\n{script}\n")
    program.chmod(0o755)
    return program


def figures(call_ns: int, *, fast: str) -> str:
    """As `drupe-appkernel probe-kvm` prints them."""
    return f"""echo '{{"platform":"kvm","start_ns":1,"call_ns":{call_ns},"limit_ns":15000,"fast":{fast}}}'"""


@pytest.fixture(autouse=True)
def no_word_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def test_a_slow_kvm_is_said_to_be_slow(tmp_path: Path) -> None:
    verdict = probe_kvm(prober(tmp_path, figures(38_500, fast="false")))
    assert verdict == KvmVerdict(fast=False, why="slow, 38.5 µs a call (limit 15)")


def test_a_kvm_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    verdict = probe_kvm(prober(tmp_path, "echo 'drupe-appkernel: /dev/kvm: Permission denied' >&2; exit 1"))
    assert verdict == KvmVerdict(fast=False, why="/dev/kvm: Permission denied")


def test_a_program_that_is_not_there_has_no_kvm(tmp_path: Path) -> None:
    assert not probe_kvm(tmp_path / "missing").fast


@pytest.mark.parametrize(("fast", "expected"), [("true", "kvm"), ("false", "trap")])
def test_auto_takes_kvm_where_it_is_fast_and_asks_once(tmp_path: Path, fast: str, expected: str) -> None:
    async def twice() -> list[str]:
        choice = PlatformChoice(prober(tmp_path, figures(5_000, fast=fast)), "auto")
        return [await choice.name(), await choice.name()]

    assert asyncio.run(twice()) == [expected, expected]
    assert (tmp_path / "asked").read_text() == "probe-kvm\n"


@pytest.mark.parametrize("wanted", ["trap", "kvm"])
def test_a_platform_that_is_named_is_not_probed(tmp_path: Path, wanted: Wanted) -> None:
    assert asyncio.run(PlatformChoice(prober(tmp_path, "exit 1"), wanted).name()) == wanted
    assert not (tmp_path / "asked").exists()


def test_the_environment_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "kvm")
    assert asyncio.run(PlatformChoice(prober(tmp_path, "exit 1"), "trap").name()) == "kvm"
