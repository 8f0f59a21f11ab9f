"""From a module to code that can be run: out of the cache, or compiled in a child of the zygote that can do nothing
else and has bounds on memory and time. Those who want the same module at once wait for one compilation."""

from __future__ import annotations

import asyncio
import os
import resource
from pathlib import Path

from drupe.errors import DeadlineExceeded, DrupeError, InvalidArgument, InternalError, ResourceExhausted, Unavailable
from drupe.sandboxers.wasm.cache import CodeCache, Entry, key_of
from drupe.sandboxers.wasm.job import Job, Limits, Report, Rlimit
from drupe.sandboxers.wasm.known import version
from drupe.sandboxers.wasm.modules import Digests
from drupe.sandboxers.wasm.zygotes import Child, Zygotes

TIME_S = 300
MEMORY_BYTES = 4 << 30
_INLINE_BYTES = 1 << 20  # what is hashed at once, without a thread
_NOBODY = 65534


class Compiler:
    """One for each runtime root."""

    def __init__(self, root: Path, zygotes: Zygotes) -> None:
        self.cache = CodeCache(root)
        self._zygotes = zygotes
        self._digests = Digests()
        self._versions: dict[str, str] = {}
        self._running: dict[str, asyncio.Future[Entry]] = {}

    async def code(self, module: int, program: str, *, engine: str, fuel: bool) -> Entry:
        """Code of the module in the descriptor `module`. program: its name in errors.

        Unsupported: the engine is not installed. InvalidArgument: the module is refused. ResourceExhausted,
        DeadlineExceeded: it cannot be compiled within bounds.
        """
        if engine not in self._versions:
            self._versions[engine] = version(engine)
        key = key_of(await self._digest(module), engine, self._versions[engine], fuel=fuel)
        found = self.cache.find(key)
        if found is not None:
            return found
        return await self._once(key, module, program, engine, fuel=fuel)

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
            child.send(_job(fuel=fuel), (null, null, null, module, output))
            return _form(await _report(child, program), program)
        finally:
            os.close(null)
            child.kill()


def _job(*, fuel: bool) -> Job:
    return Job(
        kind="compile",
        fds=("stdin", "stdout", "stderr", "module", "output"),
        name="drupe-compile",
        uid=_NOBODY,
        gid=_NOBODY,
        rlimits=(
            Rlimit(resource.RLIMIT_AS, MEMORY_BYTES, MEMORY_BYTES),
            Rlimit(resource.RLIMIT_CPU, TIME_S, TIME_S),
            Rlimit(resource.RLIMIT_NOFILE, 64, 64),
        ),
        limits=Limits(fuel=int(fuel)),
    )


async def _report(child: Child, program: str) -> Report:
    try:
        return await child.report(TIME_S)
    except TimeoutError:
        raise DeadlineExceeded(f"module {program!r} was not compiled in {TIME_S} s", stage="compile") from None
    except Unavailable:
        raise ResourceExhausted(
            f"module {program!r} cannot be compiled: the compiler ended",
            stage="compile",
            hint=f"it may use {MEMORY_BYTES >> 30} GiB of memory and {TIME_S} s of processor time",
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
    return InternalError(f"module {program!r} could not be made ready", cause=report.error, stage=report.stage)
