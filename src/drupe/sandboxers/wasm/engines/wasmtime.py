"""The engine wasmtime, through its Python package (PyPI: wasmtime)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import wasmtime
from wasmtime import component

from drupe.sandboxers.wasm.engine import Engine, Loaded, ModuleRefused, Trapped
from drupe.sandboxers.wasm.job import COMPONENT, MODULE, Job, Limits

_PREVIEW1 = "wasi_snapshot_preview1"
_COMPONENT_LAYER = b"\x00asm\x0d\x00\x01\x00"
_MODULE_LAYER = b"\x00asm\x01\x00\x00\x00"
# writes nothing, once
_TICK = """(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start"))
  (func (export "write") (drop (call $write (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 8)))))"""
_RUN = ("wasi:cli/run@0.2.", "wasi:http/incoming-handler@0.2.")
_MAX_GUEST_STACK_BYTES = 1 << 20


class WasmtimeEngine(Engine):
    """Two engines, one of which counts fuel: their code differs. What does not depend on a guest is made once."""

    name = "wasmtime"

    def __init__(self) -> None:
        self._plain = _engine(fuel=False)
        self._counting = _engine(fuel=True)
        self._linkers = {False: _linker(self._plain), True: _linker(self._counting)}
        # compiled without the threads that compiling else leaves behind, which a fork would not take along
        tick = wasmtime.Module(_engine(fuel=False, threads=False), _TICK)
        self._tick = wasmtime.Module.deserialize(self._plain, tick.serialize())

    def warm_up(self, *, threads: bool = False) -> None:
        store = wasmtime.Store(self._plain)
        store.set_wasi(_wasi(Job(kind="run", argv=("warm",), env=("A=B",))))
        store.set_limits(1 << 20)
        exports = self._linkers[False].instantiate(store, self._tick).exports(store)
        _function(exports["write" if threads else "_start"])(store)

    def compile(self, wasm: bytes, *, fuel: bool) -> tuple[str, bytes]:
        engine = self._counting if fuel else self._plain
        try:
            if wasm.startswith(_COMPONENT_LAYER):
                compiled = component.Component(engine, wasm)
                _check_component(compiled, engine)
                return COMPONENT, bytes(compiled.serialize())
            if not wasm.startswith(_MODULE_LAYER):
                raise ModuleRefused("it is not WebAssembly: its first bytes are not those of a module or component")
            module = wasmtime.Module(engine, wasm)
        except wasmtime.WasmtimeError as error:
            raise ModuleRefused(_one_line(error)) from None
        self._check_module(module, fuel=fuel)
        return MODULE, bytes(module.serialize())

    def _check_module(self, module: wasmtime.Module, *, fuel: bool) -> None:
        if not any(e.name == "_start" and isinstance(e.type, wasmtime.FuncType) for e in module.exports):
            raise ModuleRefused("it is not a command: it exports no function `_start` (a library or reactor?)")
        try:
            self._linkers[fuel].instantiate_pre(module)
        except wasmtime.WasmtimeError as error:
            raise ModuleRefused(_one_line(error)) from None

    def load(self, path: str, form: str, limits: Limits) -> Loaded:
        fuel = bool(limits.fuel)
        engine = self._counting if fuel else self._plain
        try:
            store = wasmtime.Store(engine)
            store.set_limits(limits.memory_bytes, limits.table_elements, limits.instances)
            if fuel:
                store.set_fuel(limits.fuel)
            if form == COMPONENT:
                return _LoadedComponent(engine, store, component.Component.deserialize_file(engine, path))
            return _LoadedModule(self._linkers[fuel], store, wasmtime.Module.deserialize_file(engine, path))
        except wasmtime.WasmtimeError as error:
            raise ModuleRefused(_one_line(error)) from None


class _LoadedModule(Loaded):
    def __init__(self, linker: wasmtime.Linker, store: wasmtime.Store, module: wasmtime.Module) -> None:
        self._linker, self._store, self._module = linker, store, module

    def run(self, job: Job) -> int:
        def start() -> None:
            self._store.set_wasi(_wasi(job))
            instance = self._linker.instantiate(self._store, self._module)  # may run a start function
            _function(instance.exports(self._store)["_start"])(self._store)

        return _guarded(start)


class _LoadedComponent(Loaded):
    def __init__(self, engine: wasmtime.Engine, store: wasmtime.Store, found: component.Component) -> None:
        self._store, self._component = store, found
        self._linker = component.Linker(engine)
        self._linker.add_wasip2()
        self._http = any(name.startswith("wasi:http/") for name in _imports(found, engine))
        if self._http:
            self._linker.add_wasi_http()

    def run(self, job: Job) -> int:
        failed: list[bool] = []

        def start() -> None:
            self._store.set_wasi(_wasi(job))
            if self._http:
                self._store.set_wasi_http()
            instance = self._linker.instantiate(self._store, self._component)
            name = next(name for name in _exports(self._component, self._store.engine) if name.startswith(_RUN[0]))
            interface = instance.get_export_index(self._store, name)
            index = instance.get_export_index(self._store, "run", interface)
            function = instance.get_func(self._store, index) if index is not None else None
            if function is None:
                raise wasmtime.WasmtimeError("it exports no function `run`")
            result = function(self._store)  # result<_, _>
            failed.append(isinstance(result, component.Variant) and result.tag == "err")

        code = _guarded(start)
        return code or int(any(failed))


def _function(export: object) -> wasmtime.Func:
    if not isinstance(export, wasmtime.Func):
        raise wasmtime.WasmtimeError("its export is no function")
    return export


def _guarded(start: Callable[[], None]) -> int:
    try:
        start()
    except wasmtime.ExitTrap as end:
        return int(end.code)
    except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
        raise Trapped(_one_line(error)) from None
    return 0


def _engine(*, fuel: bool, threads: bool = True) -> wasmtime.Engine:
    config = wasmtime.Config()
    config.parallel_compilation = threads
    config.consume_fuel = fuel
    config.max_wasm_stack = _MAX_GUEST_STACK_BYTES
    return wasmtime.Engine(config)


def _linker(engine: wasmtime.Engine) -> wasmtime.Linker:
    """WASI preview 1, but that `proc_exit` takes any code: wasmtime's own refuses those above 125."""
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    linker.allow_shadowing = True
    end = wasmtime.FuncType([wasmtime.ValType.i32()], [])
    linker.define_func(_PREVIEW1, "proc_exit", end, lambda code: os._exit(code & 0xFF))
    return linker


def _wasi(job: Job) -> wasmtime.WasiConfig:
    wasi = wasmtime.WasiConfig()
    wasi.argv = list(job.argv)
    wasi.env = [word.partition("=")[::2] for word in job.env]
    wasi.inherit_stdin()
    wasi.inherit_stdout()
    wasi.inherit_stderr()
    for path, name, writable in job.place.preopens:
        wasi.preopen_dir(path, name, writable)
    if job.network:
        from wasmtime import _bindings as raw

        raw.wasi_config_inherit_network(wasi.ptr())
        raw.wasi_config_allow_ip_name_lookup(wasi.ptr(), True)
    return wasi


def _one_line(error: Exception) -> str:
    """The cause at the end of wasmtime's report: "wasm trap: out of bounds memory access"."""
    text = str(error).strip()
    lines = [line.strip() for line in text.partition("Caused by:")[2].splitlines() if line.strip()]
    if not lines:
        return text.splitlines()[0] if text else type(error).__name__
    last = lines[-1]
    number, colon, rest = last.partition(": ")
    return rest if colon and number.isdigit() else last


def _imports(found: component.Component, engine: wasmtime.Engine) -> list[str]:
    return list(found.type.imports(engine))


def _exports(found: component.Component, engine: wasmtime.Engine) -> list[str]:
    return list(found.type.exports(engine))


def _check_component(found: component.Component, engine: wasmtime.Engine) -> None:
    exports = _exports(found, engine)
    if not any(name.startswith(_RUN[0]) for name in exports):
        if any(name.startswith(_RUN[1]) for name in exports):
            raise ModuleRefused(
                "it is an HTTP server (wasi:http/incoming-handler), which the engine's Python package cannot serve"
            )
        raise ModuleRefused("it is not a command: it exports no wasi:cli/run")
    for name in _imports(found, engine):
        if not _offered(name):
            raise ModuleRefused(f"unknown import: `{name}` is not offered")


_OFFERED = ("wasi:cli/", "wasi:io/", "wasi:clocks/", "wasi:filesystem/", "wasi:random/", "wasi:sockets/", "wasi:http/")


def _offered(name: str) -> bool:
    return name.startswith(_OFFERED) and "@0.2." in name


def make() -> Any:
    return WasmtimeEngine()
