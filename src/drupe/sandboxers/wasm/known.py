"""The engines that drupe knows: which can be used, in what version, and what is to be said of the others."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import NamedTuple

from drupe.errors import InvalidArgument, Unsupported


class Known(NamedTuple):
    """package: of PyPI. module: what it is imported as. install: how to get it."""

    package: str
    module: str
    install: str


ENGINES = {"wasmtime": Known("wasmtime", "wasmtime", "pip install 'drupe[wasm]'")}
# engines that people ask for, and why they are not among those (docs/decisions/0013)
OTHERS = {
    "wasmedge": "no registry has WasmEdge for Python: PyPI's `wasmedge` is an empty placeholder",
    "wasmer": "wasmer-sdk neither mounts host directories nor keeps compiled code; `wasmer` ended with Python 3.10",
}


def check_name(engine: str) -> None:
    """Raise Unsupported for an engine that drupe knows and cannot use, InvalidArgument for any other word."""
    if engine in ENGINES:
        return
    usable = ", ".join(ENGINES)
    if engine in OTHERS:
        raise Unsupported(
            f"the Wasm engine {engine} cannot be used",
            kind="wasm",
            feature="engine",
            cause=OTHERS[engine],
            hint=f"use {usable}",
        )
    raise InvalidArgument(f"unknown Wasm engine {engine!r}", hint=f"there is {usable}")


def version(engine: str) -> str:
    """Of an installed engine. Unsupported says how to install it; InvalidArgument: no such engine."""
    check_name(engine)
    known = ENGINES[engine]
    try:
        found = importlib.metadata.version(known.package)
    except importlib.metadata.PackageNotFoundError:
        found = ""
    if not found or importlib.util.find_spec(known.module) is None:
        raise Unsupported(
            f"the Wasm engine {engine} is not installed", kind="wasm", feature="engine", hint=known.install
        )
    return found
