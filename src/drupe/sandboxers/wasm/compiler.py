"""From a module to code that can be run: out of the cache, or compiled in a child of the zygote that can do nothing
else and has bounds on memory and time. Those who want the same module at once wait for one compilation."""

from __future__ import annotations

import asyncio
import os
import resource
from pathlib import Path

from drupe.errors import (
    DeadlineExceeded,
    DrupeError,
    HelperFailed,
    InternalError,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from drupe.sandboxers.wasm.cache import CodeCache, Entry, key_of
from drupe.sandboxers.wasm.job import Job, Limits, Report, Rlimit
from drupe.sandboxers.wasm.known import version
from drupe.sandboxers.wasm.modules import Digests
from drupe.sandboxers.wasm.options import WasmOptions
from drupe.sandboxers.wasm.zygotes import Child, Zygotes

_INLINE_BYTES = 1 << 20  # what is hashed at once, without a thread
_NOBODY = 65534


class Compiler:
    """One for each runtime root."""

    def __init__(self, root: Path, zygotes: Zygotes, options: WasmOptions) -> None:
        self.cache = CodeCache(root, max_bytes=options.cache_bytes)
        self._options = options
        self._zygotes = zygotes
        self._digests = Digests()
        self._versions: dict[str, str] = {}
        self._running: dict[str, asyncio.Future[Entry]] = {}

    async def code(self, module: int, program: str, *, engine: str, fuel: bool) -> Entry:
        """Code of the module in the descriptor `module`. program: its name in errors.

        Unsupported: the engine is not installed. InvalidArgument: the module is refused. ResourceExhausted,
        DeadlineExceeded: it cannot be compiled within bounds.
        """
        self._check_size(module, program)
        if engine not in self._versions:
            self._versions[engine] = version(engine)
        key = key_of(await self._digest(module), engine, self._versions[engine], fuel=fuel)
        found = self.cache.find(key)
        if found is not None:
            return found
        return await self._once(key, module, program, engine, fuel=fuel)

    def _check_size(self, module: int, program: str) -> None:
        size, most = os.fstat(module).st_size, self._options.module_bytes
        if size > most:
            raise InvalidArgument(
                f"module {program!r} has {size >> 20} MiB, over the limit of {most >> 20} MiB",
                hint="the node's setting module_bytes of [kinds.wasm] allows more",
                exit_code="126",
            )

    async def _digest(self, module: int) -> str:
        known = self._digests.known(module)
        if known is not None:
            return known
        if os.fstat(module).st_size <= _INLINE_BYTES:
            return self._digests.of(module)
        return await asyncio.to_thread(self._digests.of, module)

    async def _once(self, key: str, module: int, program: str, engine: str, *, fuel: bool) -> Entry:
        """A caller that gives up does not take the others' compilation away: it is a task of its own."""
        if key not in self._running:
            work = self._compile(key, os.dup(module), program, engine, fuel=fuel)
            self._running[key] = task = asyncio.ensure_future(work)
            task.add_done_callback(lambda done: self._done(key, done))
        return await asyncio.shield(self._running[key])

    def _done(self, key: str, task: asyncio.Future[Entry]) -> None:
        self._running.pop(key, None)
        if not task.cancelled():
            task.exception()  # whoever waited has seen it

    async def _compile(self, key: str, module: int, program: str, engine: str, *, fuel: bool) -> Entry:
        output = os.memfd_create("code", os.MFD_CLOEXEC)
        try:
            form = await self._in_child(module, output, program, engine, fuel=fuel)
            return await asyncio.to_thread(self.cache.add, key, form, output)
        finally:
            os.close(output)
            os.close(module)

    async def _in_child(self, module: int, output: int, program: str, engine: str, *, fuel: bool) -> str:
        child = await self._zygotes.take(engine)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            child.send(self._job(fuel=fuel), (null, null, null, module, output))
            return _form(await self._report(child, program), program)
        finally:
            os.close(null)
            child.kill()

    def _job(self, *, fuel: bool) -> Job:
        memory, time_s = self._options.compile_memory_bytes, self._options.compile_time_s
        return Job(
            kind="compile",
            fds=("stdin", "stdout", "stderr", "module", "output"),
            name="drupe-compile",
            uid=_NOBODY,
            gid=_NOBODY,
            rlimits=(
                Rlimit(resource.RLIMIT_AS, memory, memory),
                Rlimit(resource.RLIMIT_CPU, time_s, time_s),
                Rlimit(resource.RLIMIT_NOFILE, 64, 64),
            ),
            limits=Limits(fuel=int(fuel)),
        )

    async def _report(self, child: Child, program: str) -> Report:
        time_s = self._options.compile_time_s
        try:
            return await child.report(time_s)
        except TimeoutError:
            raise DeadlineExceeded(f"module {program!r} was not compiled in {time_s} s", stage="compile") from None
        except Unavailable:
            raise ResourceExhausted(
                f"module {program!r} cannot be compiled: the compiler ended",
                stage="compile",
                hint=f"it may use {self._options.compile_memory_bytes >> 20} MiB of memory and {time_s} s",
            ) from None


def _form(report: Report, program: str) -> str:
    """The form that the compiler found. Raises what it had to say."""
    if not report.error:
        return report.form
    raise refusal(report, program)


def refusal(report: Report, program: str) -> DrupeError:
    """A child's report that is not a good one, as an error."""
    if report.stage == "module":
        return InvalidArgument(f"module {program!r} cannot be run", cause=report.error, stage="module", exit_code="126")
    if "memory" in report.error:
        return ResourceExhausted(f"module {program!r}: {report.error}", stage=report.stage)
    kind = InternalError if report.stage.startswith("bug") else HelperFailed
    return kind(f"module {program!r} could not be made ready", cause=report.error, stage=report.stage)
