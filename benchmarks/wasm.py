"""drupe's Wasm kind under measurement, on the daemon of `ours.Drupe`: modules that are already compiled."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import wasmtime
from common import STEP_TIMEOUT_S, BenchError, first_bytes, pss_bytes, since
from ours import Drupe, descendants, pipe

from drupe.rpc.client import Stream
from drupe.spec import ContainerSpec, ExecSpec, NetworkSpec, PodSpec, PodStatus
from drupe.spec.container import IDLE
from drupe.spec.control import Delete, ExecStart, ImageImport, PodRun, Wait

# writes "hello\n", as the native `echo hello` does
HELLO = """(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\\08\\00\\00\\00\\06\\00\\00\\00hello\\n")
  (func (export "_start") (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 32)))))"""
# waits for a clock, a day at a time
WAIT = """(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (i32.store (i32.const 16) (i32.const 1))
    (i64.store (i32.const 24) (i64.const 86400000000000))
    (loop $again (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128))) (br $again))))"""
MODULES = {"bench-hello": HELLO, "bench-wait": WAIT}
NETWORK = NetworkSpec(mode="none", attachments=())


class WasmDrupe:
    """`pod.run` and `exec.start` of the control API with a pipe as standard output."""

    name = "drupe wasm"

    def __init__(self, ours: Drupe) -> None:
        self._ours = ours
        self._kept: list[PodStatus] = []
        self._sandbox: PodStatus | None = None
        for name, text in MODULES.items():
            self._import(name, bytes(wasmtime.wat2wasm(text)))

    def _import(self, name: str, module: bytes) -> None:
        with tempfile.TemporaryFile() as file:
            file.write(module)
            file.seek(0)
            request = ImageImport(format="wasm", tag=name, title=f"{name}.wasm")
            self._ours.client.call("image.import", request, fds={"data": file.fileno()})

    def start(self) -> float:
        """A new pod with one container."""
        with ExitStack() as stack:
            began = time.perf_counter()
            call, output = self._run(stack)
            seen = os.read(output, 1)
            took = since(began)
            self._finish(call, seen)
        return took

    def burst(self, count: int) -> float:
        """`count` pods at once, each over a connection of its own."""
        with ExitStack() as stack:
            began = time.perf_counter()
            calls = [self._run(stack) for _ in range(count)]
            seen = first_bytes([output for _, output in calls])
            took = since(began)
            for (call, _), byte in zip(calls, seen, strict=True):
                self._finish(call, byte)
        return took

    def call(self) -> float:
        """A call into a running sandbox."""
        if self._sandbox is None:
            self._sandbox = self._idle("bench-hello", {IDLE: "true"})
        params = ExecStart(ref=self._sandbox.containers[0].id, spec=ExecSpec(argv=("bench-hello",)))
        with ExitStack() as stack:
            output, theirs = pipe(stack)
            began = time.perf_counter()
            call = stack.enter_context(self._ours.client.stream("exec.start", params, fds={"stdout": theirs}))
            os.close(theirs)
            seen = os.read(output, 1)
            took = since(began)
            if not seen or call.wait().code != 0:
                raise BenchError("the call wrote nothing")
        time.sleep(0.05)  # what the next call finds ready is made in the meantime, as between real calls
        return took

    def keep(self) -> None:
        """One more container whose guest waits."""
        self._kept.append(self._idle("bench-wait", {}))

    def pss_bytes(self) -> int:
        """Of everything: daemon, keeper, zygote, and the guests' own processes."""
        return pss_bytes([pid for pid in descendants(self._ours.roots()) if Path(f"/proc/{pid}/smaps_rollup").exists()])

    def helpers(self) -> int:
        """Processes beside the guests' do not grow in number."""
        return 0

    def drop(self) -> None:
        """Remove kept pods."""
        kept = [*self._kept, *([self._sandbox] if self._sandbox else [])]
        self._kept, self._sandbox = [], None
        for pod in kept:
            self._ours.client.call("pod.delete", Delete(ref=pod.id, force=True), timeout_s=STEP_TIMEOUT_S)

    def _idle(self, image: str, annotations: dict[str, str]) -> PodStatus:
        container = ContainerSpec(image=image, annotations=annotations)
        spec = PodSpec(sandbox="wasm", network=NETWORK, containers=(container,))
        pod: PodStatus = self._ours.client.call("pod.run", PodRun(spec=spec), timeout_s=STEP_TIMEOUT_S)
        return pod

    def _run(self, stack: ExitStack) -> tuple[Stream, int]:
        output, theirs = pipe(stack)
        spec = PodSpec(sandbox="wasm", network=NETWORK, containers=(ContainerSpec(image="bench-hello"),))
        call = stack.enter_context(self._ours.client.stream("pod.run", PodRun(spec=spec), fds={"stdout": theirs}))
        os.close(theirs)
        return call, output

    def _finish(self, call: Stream, seen: bytes) -> None:
        pod: PodStatus = call.wait()
        if not seen:
            raise BenchError(f"pod {pod.id} wrote nothing")
        self._ours.client.call("container.wait", Wait(ref=pod.containers[0].id), timeout_s=STEP_TIMEOUT_S)
        self._ours.client.call("pod.delete", Delete(ref=pod.id, force=True), timeout_s=STEP_TIMEOUT_S)
