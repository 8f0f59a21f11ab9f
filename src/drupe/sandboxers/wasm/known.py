"""The engines that drupe knows: which are installed, in what version, and how to get the others."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import NamedTuple

from drupe.errors import InvalidArgument, Unsupported


class Known(NamedTuple):
    """package: of PyPI. module: what it is imported as. install: what to say when it is not there."""

    package: str
    module: str
    install: str


ENGINES = {
    "wasmtime": Known("wasmtime", "wasmtime", "pip install 'drupe[wasm]'"),
    "wasmer": Known("wasmer-sdk", "wasmer_sdk", "pip install wasmer-sdk"),
    "wasmedge": Known(
        "wasmedge", "wasmedge", "no registry has WasmEdge for Python (PyPI's `wasmedge` is empty); use wasmtime"
    ),
}


def version(engine: str) -> str:
    """Of an installed engine. Unsupported says how to install it; InvalidArgument: no such engine."""
    known = ENGINES.get(engine)
    if known is None:
        raise InvalidArgument(f"unknown Wasm engine {engine!r}", hint=f"one of {', '.join(ENGINES)}")
    try:
        found = importlib.metadata.version(known.package)
    except importlib.metadata.PackageNotFoundError:
        found = ""
    if not found or importlib.util.find_spec(known.module) is None:
        raise Unsupported(
            f"the Wasm engine {engine} is not installed", kind="wasm", feature="engine", hint=known.install
        )
    return found
