"""The clients' interface over a handler of this very process (embedded use): no socket, no copies, same meaning.

`AsyncInProcessClient` runs calls on the caller's event loop, `InProcessClient` on a loop in a private thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from drupe.errors import DrupeError, Unavailable
from drupe.rpc.call import Call, Handler, serve_call
from drupe.rpc.progress import Progress
from drupe.rpc.timeouts import timeout

T = TypeVar("T")
_MAX_WAITING = 64  # items that a handler may be ahead of its consumer


class AsyncInProcessClient:
    """Calls `handler` directly. Get one from `open`, or with a handler that somebody else keeps alive."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._jobs: set[_Job] = set()
        self._stop: asyncio.Event | None = None
        self._holder: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, context: AbstractAsyncContextManager[Handler]) -> AsyncInProcessClient:
        """A client of the handler that `context` yields; `close` leaves the context, in the task that entered it."""
        entered: asyncio.Future[Handler] = asyncio.get_running_loop().create_future()
        stop = asyncio.Event()
        holder = asyncio.create_task(_hold(context, entered, stop), name="embedded runtime")
        try:
            client = cls(await asyncio.shield(entered))
        except BaseException:
            holder.cancel()
            await asyncio.gather(holder, return_exceptions=True)
            raise
        client._stop, client._holder = stop, holder
        return client

    async def call(
        self,
        method: str,
        params: Any = None,
        *,
        fds: Mapping[str, int] | None = None,
        timeout_s: float | None = None,
        on_item: Callable[[Any], None] | None = None,
    ) -> Any:
        """As `rpc.aio.AsyncClient.call`."""
        async with await self.stream(method, params, fds=fds, timeout_s=timeout_s) as stream:
            async for item in stream:
                if on_item is not None:
                    on_item(item)
            return stream.result

    async def stream(
        self,
        method: str,
        params: Any = None,
        *,
        fds: Mapping[str, int] | None = None,
        timeout_s: float | None = None,
    ) -> AsyncInProcessStream:
        """As `rpc.aio.AsyncClient.stream`."""
        news = asyncio.Event()
        job = _make_job(method, params, fds, timeout_s, wake=news.set)
        job.start(self._handler, self._jobs)
        return AsyncInProcessStream(job, news)

    async def close(self) -> None:
        """Cancel running calls, wait for them, and leave the handler's context."""
        await _end_jobs(self._jobs)
        if self._holder is not None and self._stop is not None:
            self._stop.set()
            await self._holder

    async def __aenter__(self) -> AsyncInProcessClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


class AsyncInProcessStream(AsyncIterator[Any]):
    """As `rpc.aio.AsyncStream`."""

    def __init__(self, job: _Job, news: asyncio.Event) -> None:
        self._job = job
        self._news = news
        self._progress = Progress(job.call.entry)

    async def __anext__(self) -> Any:
        while not self._progress.items:
            if await self.advance() and not self._progress.items:
                self._progress.raise_error()
                raise StopAsyncIteration
        return self._progress.items.popleft()

    @property
    def result(self) -> Any:
        """What the call answered, once it has ended. Raises its error; Unavailable when it was closed before."""
        return self._progress.result

    async def wait(self) -> Any:
        """Wait for the end and return the result; items are kept for iteration."""
        while not await self.advance():
            pass
        return self.result

    async def advance(self, timeout_s: float | None = None) -> bool:
        """Wait at most `timeout_s` for news; True once the call has ended."""
        if self._progress.ended:
            return True
        with contextlib.suppress(TimeoutError):
            async with timeout(timeout_s):
                await self._news.wait()
        self._news.clear()
        self._job.collect(self._progress)
        self._job.make_room()
        return self._progress.ended

    async def close(self) -> None:
        """Cancel the call unless it has ended."""
        self._progress.cancel()
        self._job.abandon()

    async def __aenter__(self) -> AsyncInProcessStream:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


class InProcessClient:
    """The blocking twin: the handler runs on an event loop in a private thread. Safe to use from several threads."""

    def __init__(self, thread: LoopThread, handler: Handler, on_close: Callable[[], None] | None = None) -> None:
        self._thread = thread
        self._handler = handler
        self._on_close = on_close
        self._jobs: set[_Job] = set()
        self._closed = False

    @classmethod
    def open(cls, context: Callable[[], AbstractAsyncContextManager[Handler]]) -> InProcessClient:
        """A client of the handler that `context()` yields on a new loop thread; `close` ends both."""
        thread = LoopThread()
        entered: asyncio.Future[Handler] = thread.loop.create_future()
        stop = asyncio.Event()

        async def enter() -> tuple[Handler, asyncio.Task[None]]:
            holder = asyncio.create_task(_hold(context(), entered, stop), name="embedded runtime")
            return await entered, holder

        try:
            handler, holder = thread.run(enter())
        except BaseException:
            thread.close()
            raise

        async def leave() -> None:
            stop.set()
            await holder

        return cls(thread, handler, on_close=lambda: thread.run(leave()))

    def call(
        self,
        method: str,
        params: Any = None,
        *,
        fds: Mapping[str, int] | None = None,
        timeout_s: float | None = None,
        on_item: Callable[[Any], None] | None = None,
    ) -> Any:
        """As `rpc.client.Client.call`."""
        with self.stream(method, params, fds=fds, timeout_s=timeout_s) as stream:
            for item in stream:
                if on_item is not None:
                    on_item(item)
            return stream.result

    def stream(
        self,
        method: str,
        params: Any = None,
        *,
        fds: Mapping[str, int] | None = None,
        timeout_s: float | None = None,
    ) -> InProcessStream:
        """As `rpc.client.Client.stream`."""
        if self._closed:
            raise Unavailable("the embedded runtime was closed")
        bell = _Bell()
        try:
            job = _make_job(method, params, fds, timeout_s, wake=bell.ring)
        except BaseException:
            bell.close()
            raise
        loop = self._thread.loop
        loop.call_soon_threadsafe(job.start, self._handler, self._jobs)
        return InProcessStream(job, bell, loop)

    def close(self) -> None:
        """Cancel running calls, wait for them, leave the handler's context and end the thread."""
        if self._closed:
            return
        self._closed = True
        try:
            self._thread.run(_end_jobs(self._jobs))
            if self._on_close is not None:
                self._on_close()
        finally:
            self._thread.close()

    def __enter__(self) -> InProcessClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class InProcessStream(Iterator[Any]):
    """As `rpc.client.Stream`."""

    def __init__(self, job: _Job, bell: _Bell, loop: asyncio.AbstractEventLoop) -> None:
        self._job = job
        self._bell = bell
        self._loop = loop
        self._progress = Progress(job.call.entry)

    def __next__(self) -> Any:
        while not self._progress.items:
            if self.advance() and not self._progress.items:
                self._progress.raise_error()
                raise StopIteration
        return self._progress.items.popleft()

    @property
    def result(self) -> Any:
        """What the call answered, once it has ended. Raises its error; Unavailable when it was closed before."""
        return self._progress.result

    def wait(self) -> Any:
        """Wait for the end and return the result; items are kept for iteration."""
        while not self.advance():
            pass
        return self.result

    def advance(self, timeout_s: float | None = None) -> bool:
        """Wait at most `timeout_s` for news (0: take what is there); True once the call has ended."""
        if self._progress.ended:
            return True
        if self._bell.wait(timeout_s):
            if self._job.collect(self._progress):
                self._loop.call_soon_threadsafe(self._job.make_room)
            if self._progress.ended:
                self._bell.close()
        return self._progress.ended

    def fileno(self) -> int:
        """Readable when `advance(0)` may have news (for select); -1 once ended."""
        return self._bell.fileno()

    def close(self) -> None:
        """Cancel the call unless it has ended."""
        if not self._progress.ended:
            self._progress.cancel()
            with contextlib.suppress(RuntimeError):  # the loop has been closed, and with it every call
                self._loop.call_soon_threadsafe(self._job.abandon)
        self._bell.close()

    def __enter__(self) -> InProcessStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class LoopThread:
    """An event loop in a thread of its own. The thread does not keep the interpreter from ending."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="drupe-loop", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and wait for it; when the wait is interrupted, it is cancelled."""
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Stop the loop and the thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class _Job:
    """One call on the loop. It leaves items and outcome in `_arrived`, from where the consumer's thread collects."""

    def __init__(self, call: Call, wake: Callable[[], None]) -> None:
        self.call = call
        self.task: asyncio.Task[None] | None = None
        self._wake = wake
        self._arrived: deque[Callable[[Progress], None]] = deque()
        self._room: asyncio.Event | None = None
        self._waiting = False

    def start(self, handler: Handler, jobs: set[_Job]) -> None:
        """Begin, on the loop's thread; the job is a member of `jobs` while it runs."""
        self._room = asyncio.Event()
        self.task = asyncio.get_running_loop().create_task(self._run(handler), name=self.call.method)
        jobs.add(self)
        self.task.add_done_callback(lambda _: jobs.discard(self))
        self.task.add_done_callback(lambda _: self.call.close())  # it may never have run its own clean-up
        if self.call.gone:
            self.abandon()

    def collect(self, progress: Progress) -> bool:
        """Move what has arrived to `progress`, in the consumer's thread; True when the handler waits for room."""
        while self._arrived:
            self._arrived.popleft()(progress)
        return self._waiting  # read after the last pop: see emit

    def make_room(self) -> None:
        """Let a waiting handler go on (on the loop's thread)."""
        self._waiting = False
        if self._room is not None:
            self._room.set()

    def abandon(self) -> None:
        """The consumer went away (on the loop's thread)."""
        self.call.gone = True
        self.make_room()
        if self.task is not None and not self.call.detached:
            self.task.cancel()

    async def emit(self, item: Any) -> None:
        """What `Call.send_item` does."""
        self._tell(lambda progress: progress.items.append(item))
        while self._room is not None and not self.call.gone:
            self._waiting = True  # said before looking, so that a consumer who empties the queue meanwhile sees it
            self._room.clear()
            if len(self._arrived) < _MAX_WAITING:
                break
            await self._room.wait()
        self._waiting = False

    async def _run(self, handler: Handler) -> None:
        try:
            result = await serve_call(handler, self.call)
        except DrupeError as error:
            failure = error
            self._tell(lambda progress: progress.fail(failure))
        except asyncio.CancelledError:
            gone = Unavailable(f"{self.call.method} was cancelled", may_have_run=True)
            self._tell(lambda progress: progress.fail(gone))
        else:
            self._tell(lambda progress: progress.succeed(result))

    def _tell(self, news: Callable[[Progress], None]) -> None:
        self._arrived.append(news)
        self._wake()


class _Bell:
    """An eventfd(2) that one thread rings and another waits for, safe against ringing after it was closed."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()

    def ring(self) -> None:
        with self._lock:
            if self._fd >= 0:
                os.eventfd_write(self._fd, 1)

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until it rings; False when the time is over."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if not poll.poll(None if timeout_s is None else timeout_s * 1000):
            return False
        os.eventfd_read(self._fd)
        return True

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _make_job(
    method: str,
    params: Any,
    fds: Mapping[str, int] | None,
    timeout_s: float | None,
    *,
    wake: Callable[[], None],
) -> _Job:
    """A job whose call owns duplicates of `fds`, as it would behind a socket."""
    copies: dict[str, int] = {}
    try:
        for name, fd in (fds or {}).items():
            copies[name] = os.dup(fd)
    except BaseException:
        for fd in copies.values():
            os.close(fd)
        raise
    call = Call(method, params, fds=copies, deadline_s=timeout_s)
    job = _Job(call, wake)
    call.emit_with(job.emit)
    return job


async def _hold(
    context: AbstractAsyncContextManager[Handler], entered: asyncio.Future[Handler], stop: asyncio.Event
) -> None:
    try:
        async with context as handler:
            entered.set_result(handler)
            await stop.wait()
    except BaseException as error:
        if entered.done():
            raise
        entered.set_exception(error)


async def _end_jobs(jobs: set[_Job]) -> None:
    tasks = [job.task for job in jobs if job.task is not None]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
