"""A process acted out: a program from a small set, signals, pauses, an end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence

from drupe.rpc.timeouts import timeout
from drupe.sandboxers.fake.programs import PROGRAMS, Exit, Program
from drupe.sandboxers.fake.streams import Streams

SIGKILL = 9
IGNORED = frozenset({17, 18, 19, 20, 23, 28})  # CHLD, CONT, STOP, TSTP, URG, WINCH: none of them ends a program here


class FakeProcess:
    """Created by `__init__`, begun by `start`. on_end(code, signal) is called once, after the last byte of output.

    first: it is PID 1 of a container, which dies of no signal it has not asked for, but of SIGKILL
    (pid_namespaces(7)).
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        pid: int,
        env: Mapping[str, str],
        cwd: str,
        streams: Streams,
        first: bool,
        on_end: Callable[[int, int], None],
    ) -> None:
        self.argv = list(argv)
        self.pid = pid
        self.env = env
        self.cwd = cwd
        self.streams = streams
        self.size = (0, 0)
        self.ended = False
        self._first = first
        self._on_end = on_end
        self._act: asyncio.Task[None] | None = None
        self._pending: list[int] = []
        self._running = asyncio.Event()
        self._frozen = asyncio.Event()
        self._running.set()
        self._cpu_s = 0.0
        self._on_cpu_since: float | None = None

    @property
    def program(self) -> Program:
        return PROGRAMS[self.argv[0].rpartition("/")[2]]

    def start(self) -> None:
        """Begin to act."""
        if self.program.busy:
            self._on_cpu_since = time.monotonic()
        self._act = asyncio.get_running_loop().create_task(self._run(), name=f"fake process {self.argv}")

    async def _run(self) -> None:
        code = 255
        try:
            await self.pace()
            code = await self.program.act(self, self.argv[1:])
        except Exit as end:
            code = end.code
        except (ValueError, IndexError) as error:
            await self.streams.write("stderr", f"{self.argv[0]}: {error}\n".encode())
            code = 2
        await self.pace()
        self._end(code, 0)

    def signal(self, number: int) -> None:
        """As kill(2): the process dies of it, acts on it, or ignores it; a paused one once it is resumed."""
        if self._frozen.is_set():
            self._pending.append(number)
        elif number == SIGKILL:
            self._end(128 + number, number)
        elif self._act is not None and number in self.program.handles:
            self._end(self.program.handles[number], 0)
        elif number not in IGNORED and not self._first and number not in self.program.ignores:
            self._end(128 + number, number)

    def freeze(self) -> None:
        self._stop_counting()
        self._running.clear()
        self._frozen.set()

    def thaw(self) -> None:
        """Go on, and take the signals that came meanwhile."""
        self._frozen.clear()
        self._running.set()
        if self._act is not None and self.program.busy:
            self._on_cpu_since = time.monotonic()
        pending, self._pending = self._pending, []
        for number in pending:
            if not self.ended:
                self.signal(number)

    async def pace(self) -> None:
        """Stand still while paused."""
        await self._running.wait()

    async def sleep(self, seconds: float) -> None:
        """Time passes only while the process is not paused."""
        left = seconds
        while left > 0:
            await self.pace()
            began = time.monotonic()
            with contextlib.suppress(TimeoutError):
                async with timeout(min(left, 1e6)):  # wait_for of Python 3.11 can swallow a cancellation
                    await self._frozen.wait()
            left -= time.monotonic() - began

    async def print(self, text: str, *, stream: str = "stdout") -> None:
        await self.pace()
        await self.streams.write(stream, text.encode())

    @property
    def cpu_ns(self) -> int:
        now = 0.0 if self._on_cpu_since is None else time.monotonic() - self._on_cpu_since
        return int((self._cpu_s + now) * 1e9)

    def _stop_counting(self) -> None:
        if self._on_cpu_since is not None:
            self._cpu_s += time.monotonic() - self._on_cpu_since
            self._on_cpu_since = None

    def _end(self, code: int, signal: int) -> None:
        if self.ended:
            return
        self.ended = True
        self._stop_counting()
        if self._act is not None and self._act is not asyncio.current_task():
            self._act.cancel()
        self.streams.close()
        self._on_end(code, signal)
