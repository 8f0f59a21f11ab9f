"""The daemon's side of zygotes: starts them when they are needed and takes children from them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from drupe.errors import HelperFailed, Unavailable
from drupe.keeper.client import Keeper
from drupe.linux.unix_sockets import recv_fds, send_fds
from drupe.rpc.timeouts import timeout
from drupe.sandboxers.wasm.job import PACKET_BYTES, Job, Report

SPARES = 2  # children that wait, so that a fork is not on a caller's way
REFILL_AFTER_S = 0.02
START_TIMEOUT_S = 30.0
_CHILD_FD = "3"  # where the keeper puts the first descriptor that it hands on


@dataclass(slots=True)
class Child:
    """A process that waits for its job. pidfd and sock are owned by whoever has it."""

    pid: int
    pidfd: int
    sock: socket.socket

    def send(self, job: Job, fds: Sequence[int]) -> None:
        """Tell it what to be. BrokenPipeError: it has ended."""
        send_fds(self.sock, msgspec.json.encode(job), fds)

    def begin(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Tell one that is ready to go on. Unavailable: it has ended."""
        try:
            send_fds(self.sock, data, fds)
        except OSError:
            raise Unavailable("the process of the engine has ended before it began", stage="start") from None

    async def report(self, timeout_s: float) -> Report:
        """Its answer. Unavailable when it ended without one; TimeoutError."""
        loop = asyncio.get_running_loop()
        async with timeout(timeout_s):
            data = await loop.sock_recv(self.sock, PACKET_BYTES)
        if not data:
            raise Unavailable("the process of the engine ended while it was made ready", stage="create")
        return msgspec.json.decode(data, type=Report)

    def kill(self) -> None:
        """End it, and let go of it."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        self.close()

    def close(self) -> None:
        """Let go of it; one that still waits for a job ends. Idempotent."""
        self.sock.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class Zygote:
    """One that runs. Lost: it has ended (killed, or its keeper died); what it has forked lives on."""

    def __init__(self, control: socket.socket, pidfd: int) -> None:
        self._control = control
        self._pidfd = pidfd
        self._waiting: deque[asyncio.Future[Child]] = deque()
        self._spares: deque[Child] = deque()
        self._refill: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.lost = False
        self._loop.add_reader(control, self._readable)
        self._refill_later()

    async def take(self) -> Child:
        """A child to be told its job. Unavailable when the zygote has ended."""
        self._refill_later()
        while self._spares:
            child = self._spares.popleft()
            if not _has_ended(child.pidfd):
                return child
            child.close()
        future: asyncio.Future[Child] = self._loop.create_future()
        self._ask(future)
        return await future

    def _ask(self, future: asyncio.Future[Child]) -> None:
        if self.lost:
            raise Unavailable("the zygote has ended")
        self._waiting.append(future)
        try:
            self._control.send(b"f")
        except OSError:
            self._lose()

    def _readable(self) -> None:
        try:
            data, fds = recv_fds(self._control, 64)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self._lose()
            return
        fds_pidfd, fd = fds
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        child = Child(int(data), fds_pidfd, sock)
        future = self._waiting.popleft()
        if future.done():  # cancelled meanwhile
            self._spares.append(child)
        else:
            future.set_result(child)

    def _refill_later(self) -> None:
        if self._refill is not None:
            self._refill.cancel()
        self._refill = self._loop.call_later(REFILL_AFTER_S, self._fill)

    def _fill(self) -> None:
        for _ in range(SPARES - len(self._spares) - len(self._waiting)):
            if self.lost:
                return
            future: asyncio.Future[Child] = self._loop.create_future()
            future.add_done_callback(self._keep)
            self._ask(future)

    def _keep(self, future: asyncio.Future[Child]) -> None:
        if future.cancelled() or future.exception() is not None:
            return
        if self.lost:  # it came just before the end
            future.result().kill()
        else:
            self._spares.append(future.result())

    def _lose(self) -> None:
        if self.lost:
            return
        self.lost = True
        self._loop.remove_reader(self._control)
        self._control.close()
        if self._refill is not None:
            self._refill.cancel()
        for future in self._waiting:
            if not future.done():
                future.set_exception(Unavailable("the zygote has ended"))
                future.exception()
        self._waiting.clear()

    def close(self) -> None:
        """End it and its waiting children, and see them gone."""
        self._lose()
        ending = [self._pidfd, *(child.pidfd for child in self._spares)]
        for child in self._spares:
            child.sock.close()
        for pidfd in ending:
            select.select([pidfd], [], [], 1.0)
            os.close(pidfd)
        self._spares.clear()


def _has_ended(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], 0)[0])


class Zygotes:
    """One for each engine, started at the first need."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._zygotes: dict[str, Zygote] = {}
        self._starting: dict[str, asyncio.Lock] = {}
        keeper.on_lost(self.close)  # its children would be no children of the next keeper

    async def take(self, engine: str) -> Child:
        """A child of the engine's zygote. NotFound: the engine is not installed; HelperFailed: it does not start."""
        for _ in range(2):
            try:
                return await (await self._zygote(engine)).take()
            except Unavailable:
                continue
        raise Unavailable(f"the zygote of {engine} ends again and again", stage="create")

    async def _zygote(self, engine: str) -> Zygote:
        found = self._zygotes.get(engine)
        if found is not None and not found.lost:
            return found
        async with self._starting.setdefault(engine, asyncio.Lock()):
            found = self._zygotes.get(engine)
            if found is not None:
                if not found.lost:
                    return found
                found.close()
            self._zygotes[engine] = made = await self._start(engine)
            return made

    async def _start(self, engine: str) -> Zygote:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                await self._run(engine, theirs.fileno())
            ours.setblocking(False)
            pid = int(await asyncio.get_running_loop().sock_recv(ours, 64))
            return Zygote(ours, os.pidfd_open(pid))
        except BaseException:
            ours.close()
            raise

    async def _run(self, engine: str, descriptor: int) -> None:
        argv = [sys.executable, "-P", "-m", "drupe.sandboxers.wasm.zygote", engine, _CHILD_FD]
        try:
            await self._keeper.run(
                argv, env=_environment(), fds={"control": descriptor}, timeout_s=START_TIMEOUT_S, check=True
            )
        except HelperFailed as error:
            last = error.cause.strip().splitlines()[-1:] or ["no message"]
            raise HelperFailed(f"the zygote of {engine} does not start", stage="create", cause=last[0]) from None

    def close(self) -> None:
        """End all."""
        zygotes, self._zygotes = list(self._zygotes.values()), {}
        for zygote in zygotes:
            zygote.close()


def _environment() -> dict[str, str]:
    """TOKIO_WORKER_THREADS: what wasmtime's WASI runs on makes a thread for each processor, for one guest."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "HOME") if name in os.environ}
    return kept | {"TOKIO_WORKER_THREADS": "1", "RAYON_NUM_THREADS": str(os.cpu_count() or 1)}
