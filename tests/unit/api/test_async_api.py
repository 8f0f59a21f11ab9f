"""The asyncio API over a socket and embedded: what only an event loop can show, and the same flow once."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import drupe
from drupe.rpc.aio import AsyncClient
from drupe.rpc.inprocess import AsyncInProcessClient
from drupe.rpc.server import Handler
from framework.fake_runtime import FakeRuntime
from framework.serving import serving

Flow = Callable[[drupe.AsyncRuntime], Awaitable[None]]


@pytest.fixture
def fake(tmp_path: Path) -> FakeRuntime:
    (tmp_path / "pods").mkdir()
    return FakeRuntime(tmp_path / "pods")


@pytest.fixture(params=["socket", "embedded"])
def play(request: pytest.FixtureRequest, tmp_path: Path, fake: FakeRuntime) -> Callable[[Flow], None]:
    """Runs a coroutine function on a runtime, on an event loop of its own; no task may be left."""

    @asynccontextmanager
    async def hosted() -> AsyncIterator[Handler]:
        yield fake.handle

    async def main(flow: Flow, path: str) -> None:
        client = await (AsyncClient.connect(path) if path else AsyncInProcessClient.open(hosted()))
        async with drupe.AsyncRuntime.over(client) as rt:
            await flow(rt)
        left = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert left == []

    def run(flow: Flow) -> None:
        if request.param == "embedded":
            asyncio.run(main(flow, ""))
            return
        with serving(tmp_path / "s", fake.handle) as path:
            asyncio.run(main(flow, path))

    return run


def test_the_whole_flow(play: Callable[[Flow], None], fake: FakeRuntime, tmp_path: Path) -> None:
    async def flow(rt: drupe.AsyncRuntime) -> None:
        async with rt.sandbox("busybox", env={"A": "1"}) as sb:
            assert (await sb.run(["echo", "hello"], check=True)).text == "hello\n"
            assert (await sb.run(["printenv", "A"], text=True)).stdout == "1\n"
            with pytest.raises(drupe.CommandFailed, match="no") as failed:
                await sb.run(["complain", "no"], check=True)
            assert failed.value.result.stderr == b"no\n"
            with pytest.raises(drupe.NotFound):
                await sb.run(["nope"])
            await sb.files.write("/a/b", b"data")
            assert await sb.files.read("/a/b") == b"data" and not await sb.files.exists("/nope")
            await sb.files.upload(tmp_path / "pods", "/tree")
            await sb.files.download("/a", tmp_path / "a")
            assert (tmp_path / "a/b").read_bytes() == b"data"
            assert [line.data async for line in sb.logs()] == [b"line 0\n", b"line 1\n", b"line 2\n"]
            assert (await sb.pause()).state == "paused" and (await sb.resume()).state == "running"
            assert (await sb.stats()).pids == 1
            assert [p.command for p in await sb.processes()] == ["patient"]
            assert [pod.id for pod in await drupe.AsyncSandbox.list(runtime=rt)] == [sb.id]
        assert fake.pods == {}

    play(flow)


def test_many_commands_at_once(play: Callable[[Flow], None]) -> None:
    async def flow(rt: drupe.AsyncRuntime) -> None:
        async with rt.sandbox("busybox") as sb:
            done = await asyncio.gather(*(sb.run(["echo", str(n)]) for n in range(40)))
            assert [result.text for result in done] == [f"{n}\n" for n in range(40)]

    play(flow)


def test_much_input_and_output_at_once(play: Callable[[Flow], None]) -> None:
    async def flow(rt: drupe.AsyncRuntime) -> None:
        data = os.urandom(1 << 20)
        async with rt.sandbox("busybox") as sb:
            assert (await sb.run(["cat"], input=data)).stdout == data

    play(flow)


def test_timeout_keeps_output(play: Callable[[Flow], None]) -> None:
    async def flow(rt: drupe.AsyncRuntime) -> None:
        async with rt.sandbox("busybox") as sb:
            with pytest.raises(drupe.CommandTimeout) as caught:
                await sb.run(["linger"], timeout=0.1)
            assert caught.value.result.stdout == b"so far\n"

    play(flow)


def test_a_background_child_does_not_hold_up_run(play: Callable[[Flow], None]) -> None:
    async def flow(rt: drupe.AsyncRuntime) -> None:
        async with rt.sandbox("busybox") as sb:
            began = time.monotonic()
            assert (await sb.run(["holder"])).stdout == b"parent\nchild\n"
            assert 0.5 < time.monotonic() - began < 10  # the child never lets go

    play(flow)


def test_cancelling_run_kills_the_command(play: Callable[[Flow], None], fake: FakeRuntime) -> None:
    async def flow(rt: drupe.AsyncRuntime) -> None:
        async with rt.sandbox("busybox") as sb:
            started = asyncio.Event()
            task = asyncio.create_task(sb.run(["linger"], on_stdout=lambda _: started.set()))
            await asyncio.wait_for(started.wait(), 5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert [p.command for p in await sb.processes()] == ["patient"]

    play(flow)


def test_cancelling_the_start_leaves_nothing(play: Callable[[Flow], None], fake: FakeRuntime) -> None:
    original = fake.pod_run

    async def slow(call: object) -> None:
        call.detach()  # type: ignore[attr-defined]
        await original(call)  # type: ignore[arg-type]
        made.set()
        await asyncio.sleep(0.05)

    async def flow(rt: drupe.AsyncRuntime) -> None:
        task = asyncio.create_task(rt.sandbox("busybox").start())
        await asyncio.to_thread(made.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert fake.pods == {}
        await asyncio.sleep(0.1)

    import threading

    made = threading.Event()
    fake.pod_run = slow  # type: ignore[method-assign, assignment]
    play(flow)


def test_a_failing_callback_ends_the_command(play: Callable[[Flow], None]) -> None:
    def refuse(_: bytes) -> None:
        raise RuntimeError("enough")

    async def flow(rt: drupe.AsyncRuntime) -> None:
        async with rt.sandbox("busybox") as sb:
            with pytest.raises(RuntimeError, match="enough"):
                await sb.run(["seq", "100000"], on_stdout=refuse)
            assert [p.command for p in await sb.processes()] == ["patient"]

    play(flow)


def test_popen(play: Callable[[Flow], None]) -> None:
    async def flow(rt: drupe.AsyncRuntime) -> None:
        async with rt.sandbox("busybox") as sb:
            async with await sb.popen(["cat"]) as process:
                assert process.stdin and process.stdout
                await process.stdin.write(b"one\ntwo\nrest")
                assert await process.stdout.readline() == b"one\n"
                assert await process.stdout.read(2) == b"tw"
                await process.stdin.close()
                assert [line async for line in process.stdout] == [b"o\n", b"rest"]
                assert await process.wait(timeout=5) == 0
            async with await sb.popen(["size"], tty=True) as terminal:
                assert terminal.stdin and terminal.stdout and terminal.stderr is None
                await terminal.resize(5, 6)
                await terminal.stdin.write(b"\n")
                assert await terminal.stdout.read() == b"5 6\r\n"
            async with await sb.popen(["stubborn"]) as process:
                with pytest.raises(drupe.DeadlineExceeded):
                    await process.wait(timeout=0.02)
            assert [p.command for p in await sb.processes()] == ["patient"]

    play(flow)


def test_events_stream_and_end(play: Callable[[Flow], None]) -> None:
    async def flow(rt: drupe.AsyncRuntime) -> None:
        async with rt.sandbox("busybox") as sb:
            events = rt.events()
            assert (await anext(events)).id == sb.id
            await events.aclose()  # type: ignore[attr-defined]
        assert [event.action async for event in rt.events(follow=False)] == ["create", "destroy"]

    play(flow)


def test_descriptors_are_closed(play: Callable[[Flow], None]) -> None:
    def count() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    async def flow(rt: drupe.AsyncRuntime) -> None:
        async with rt.sandbox("busybox") as sb:
            await sb.files.write("/a", b"x")  # opens what is kept: the pool's connections, the thread pool
            await asyncio.gather(*(sb.run(["cat"], input=b"x") for _ in range(3)))
            before = count()
            for _ in range(5):
                await sb.run(["cat"], input=b"x")
                await sb.files.write("/a", b"x")
                await sb.files.read("/a")
                async with await sb.popen(["cat"]):
                    pass
                with pytest.raises(drupe.NotFound):
                    await sb.run(["nope"])
            await asyncio.sleep(0.05)
            assert count() <= before

    play(flow)
