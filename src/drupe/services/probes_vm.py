"""The probes of the vm kind: a monitor that answers, and the program that shares directories."""

from __future__ import annotations

import json
import time
from pathlib import Path

from drupe.errors import NotFound
from drupe.hypervisors.qemu.driver import find_qemu
from drupe.resources.kvm import read_fault
from drupe.sandboxers.vm.virtiofsd import find_virtiofsd
from drupe.services.probing import DEADLINE_S, Finished, Problem, run

_ASKS = '{"execute":"qmp_capabilities"}\n{"execute":"query-status"}\n{"execute":"quit"}\n'
_MACHINE = ("-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-S", "-qmp", "stdio")


def qemu() -> str:
    """Start a machine that does not run, and have its monitor answer. Says which accelerator machines will get."""
    try:
        program = find_qemu()
    except NotFound as error:
        raise Problem(error.message, error.hint) from None
    began = time.monotonic()
    machine = "virt" if program.endswith("aarch64") else "q35"
    asking = 'asks=$1; shift; printf %s "$asks" | "$@"'
    done = run(["/bin/sh", "-c", asking, "sh", _ASKS, program, "-M", machine, *_MACHINE])
    took_ms = (time.monotonic() - began) * 1000
    _check(done)
    version = run([program, "--version"]).stdout.splitlines()[0].partition("version ")[2].split()[0]
    return f"QEMU {version}, {took_ms:.0f} ms for an empty machine; accelerator: {_accelerator()}"


def _check(done: Finished) -> None:
    """Raise Problem unless the monitor said what state the machine is in."""
    states = [answer["return"].get("status") for answer in _answers(done.stdout) if answer.get("return")]
    if states != ["prelaunch"]:
        raise Problem(f"its monitor does not answer: {done.last_line}", "is the installation of QEMU whole?")


def _answers(said: str) -> list[dict[str, dict[str, str]]]:
    try:
        return [json.loads(line) for line in said.splitlines() if line]
    except ValueError:
        return []


def _accelerator() -> str:
    import sys

    done = run([sys.executable, "-m", "drupe.linux.kvm"], deadline_s=DEADLINE_S)
    fault = read_fault(done.stdout)
    return f"none, machines are slow ({fault})" if fault else "kvm"


def virtiofsd() -> str:
    """It is there, and starts."""
    try:
        program = find_virtiofsd()
    except NotFound as error:
        raise Problem(error.message, error.hint) from None
    done = run([program, "--version"])
    if done.code != 0:
        raise Problem(done.last_line, "is the installation whole?")
    return f"{Path(program)}: {(done.stdout or done.stderr).splitlines()[0]}"
