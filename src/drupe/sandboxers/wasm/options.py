"""Settings of the wasm kind: `[kinds.wasm]` in the node's configuration."""

from __future__ import annotations

from drupe.spec.base import Spec


class WasmOptions(Spec):
    """engine: the one that is used unless a pod names another. cache_bytes: how much room compiled modules may take.
    module_bytes: the biggest module that is compiled. compile_memory_bytes, compile_time_s: what that may take."""

    engine: str = "wasmtime"
    cache_bytes: int = 2 << 30
    module_bytes: int = 256 << 20
    compile_memory_bytes: int = 4 << 30
    compile_time_s: int = 300
