"""Probe of the Wasm kind: a module really runs, in a process made and confined as any guest's."""

from __future__ import annotations

import sys

from drupe.errors import DrupeError
from drupe.services.probing import Problem, expect, run

ENGINE = "wasmtime"
_DEADLINE_S = 5.0  # three interpreters start one after the other


def engine() -> str:
    """The engine's name and version. Raises Problem."""
    from drupe.sandboxers.wasm.known import version

    try:
        found = version(ENGINE)
    except DrupeError as error:
        raise Problem(error.message, error.hint) from None
    done = run([sys.executable, "-P", "-m", "drupe.sandboxers.wasm.probe", ENGINE], deadline_s=_DEADLINE_S)
    expect(done, "ok", mend="see the cause; SECURITY.md says what a process of this kind needs")
    return f"{ENGINE} {found}"
