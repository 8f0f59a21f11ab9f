"""What comes from a guest, or from a monitor that it has taken over: arbitrary bytes, answers and numbers. Calls end
with an error of drupe's, nothing grows, and what was read can be told on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from drupe.errors import DrupeError, Unavailable
from drupe.hypervisors.contract import Disk, MachineConfig
from drupe.hypervisors.lines import Line
from drupe.hypervisors.qemu.machine import QemuMachine
from drupe.hypervisors.qmp import Qmp
from drupe.rpc.containerd import task_v3_pb2 as tasks_pb
from drupe.rpc.guest import guest_pb2 as pb
from drupe.rpc.ttrpc.envelope import success
from drupe.rpc.ttrpc.frames import Frame, Kind, encode
from drupe.sandboxers.vm import counters, ends
from drupe.sandboxers.vm.agent import FRAMES_AT_ONCE, FRAMES_PER_S, MARK, Agent
from drupe.sandboxers.vm.console import named_logs, why
from drupe.sandboxers.vm.streams import Streams

TOKEN_BYTES = 16
ANSWERS_WITHIN_S = 60.0
BATCH = 4000  # events that are read at once
octets = st.integers(0, 255)
likely = st.builds(Frame, st.integers(0, 9), st.integers(1, 3), st.integers(0, 7), st.binary(max_size=60))
Serving = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Hostile:
    """An agent of anybody's making at the other end of a machine's line."""

    def __init__(self, serve: Serving) -> None:
        self._serve = serve
        self._serving: list[asyncio.Task[None]] = []

    async def line(self) -> Line:
        ours, theirs = socket.socketpair()
        self._serving.append(asyncio.create_task(self._talk(*await asyncio.open_connection(sock=theirs))))
        return await asyncio.open_connection(sock=ours)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await self._serve(reader, writer)
        writer.close()

    @contextlib.asynccontextmanager
    async def agent(self) -> AsyncIterator[Agent]:
        """Ours, which gives up on nonsense, as a pod does."""
        agent = Agent(self.line, lambda said: agent.gone(said))
        try:
            yield agent
        finally:
            await agent.close()
            for serving in self._serving:
                serving.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As an agent does: the mark and its token come back."""
    writer.write(await reader.readexactly(len(MARK) + TOKEN_BYTES))


def answer(stream: int, message: Message) -> bytes:
    return encode(Frame(stream, Kind.RESPONSE, 0, success(message)))


async def check(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Up to the first call's answer, which is well."""
    await greet(reader, writer)
    await reader.read(4096)
    writer.write(answer(1, pb.CheckResponse(protocol=1)))


def test_a_line_without_an_end(tmp_path: Path) -> None:
    """Garbage at full speed where a mark should be: it is given up, not kept."""

    async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"\xff" * 65536)
            await writer.drain()

    async def test() -> None:
        async with Hostile(flood).agent() as agent:
            with pytest.raises(Unavailable):
                await agent.connect(timeout_s=ANSWERS_WITHIN_S)

    asyncio.run(test())


@settings(max_examples=60, deadline=None)
@given(st.lists(likely, max_size=8), st.binary(max_size=40))
def test_frames_instead_of_answers(frames: list[Frame], tail: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await check(reader, writer)
        await reader.read(4096)
        writer.write(b"".join(map(encode, frames)) + tail)

    async def test() -> None:
        hostile = Hostile(serve)
        async with hostile.agent() as agent:
            with contextlib.suppress(DrupeError):
                await agent.connect(timeout_s=ANSWERS_WITHIN_S)
                asyncio.get_running_loop().call_later(0.2, agent.gone, "as its watch says")
                await agent.guest("Metrics", Empty(), pb.MetricsResponse, timeout_s=ANSWERS_WITHIN_S)

    asyncio.run(asyncio.wait_for(test(), 2 * ANSWERS_WITHIN_S))


def test_a_flood_of_events_takes_little_of_our_time() -> None:
    """As many as it may send, and no more; others are served meanwhile."""
    event = encode(Frame(3, Kind.DATA, 0, pb.Event(oom=pb.Oom(id="x")).SerializeToString()))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await check(reader, writer)
        await reader.read(4096)
        while True:
            writer.write(event * 500)
            await writer.drain()

    async def test() -> None:
        taken = 0

        async def take(agent: Agent) -> None:
            nonlocal taken
            async for _ in agent.events(0):
                taken += 1

        async with Hostile(serve).agent() as agent:
            await agent.connect(timeout_s=ANSWERS_WITHIN_S)
            clock = asyncio.get_running_loop().time
            began, taking = clock(), asyncio.create_task(take(agent))
            while taken < FRAMES_AT_ONCE / 2:  # noqa: ASYNC110 also where that takes long
                await asyncio.sleep(0.05)
            await asyncio.sleep(1.0)
            assert taken <= FRAMES_AT_ONCE + FRAMES_PER_S * (clock() - began) + BATCH
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)

    asyncio.run(test())


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=20), st.booleans(), st.integers(0, 2**64 - 1) | st.integers(0, 3))
def test_output_that_is_none(data: bytes, end: bool, offset: int) -> None:
    """A process whose output comes to nothing is not asked for ever."""
    asked = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        await check(reader, writer)
        for stream in range(3, 2000, 2):
            if not await reader.read(65536):
                return
            asked += 1
            writer.write(answer(stream, pb.ReadOutputResponse(data=data, end=end, offset=offset)))

    async def test() -> None:
        async with Hostile(serve).agent() as agent:
            await agent.connect(timeout_s=ANSWERS_WITHIN_S)
            streams = Streams(agent, "g", "", tty=True, log=None, place=None)
            streams.begin()
            await asyncio.wait_for(asyncio.wait(streams._pulling), ANSWERS_WITHIN_S)
            for pulling in streams._pulling:
                assert pulling.exception() is None
            streams.drop()

    asyncio.run(test())
    assert asked <= 2, "the second answer has the wrong offset at the latest"


def parsed(kind: type[Message], data: bytes) -> Message | None:
    with contextlib.suppress(DecodeError):
        return kind.FromString(data)
    return None


huge = st.integers(-(2**63), 2**63 - 1)
wide = st.integers(0, 2**64 - 1)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32 - 1), huge, st.integers(-(2**31), 2**31 - 1), st.booleans())
def test_ends_at_any_time_with_any_code(code: int, number: int, nanos: int, oom: bool) -> None:
    event = pb.Exit(status=code, at_unix_ns=number, oom_killed=oom)
    state = tasks_pb.StateResponse(exit_status=code)
    state.exited_at.seconds, state.exited_at.nanos = number, nanos
    for status in (ends.of_event(event), ends.of_state(state)):
        msgspec.json.encode(status)
        assert 0 <= status.code <= 255
        assert time.localtime(status.at).tm_year < 2200


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_messages_of_any_bytes(data: bytes) -> None:
    with contextlib.suppress(DrupeError):
        msgspec.json.encode(counters.stats_of(AnyMessage(value=data)))
    if (process := parsed(pb.Process, data)) is not None:
        msgspec.json.encode(counters.process_info(process))  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None)
@given(wide, wide, st.text(max_size=9000), huge)
def test_numbers_of_any_size(one: int, other: int, words: str, when: int) -> None:
    from drupe.rpc.containerd import cgroup2_metrics_pb2 as metrics_pb

    told = metrics_pb.Metrics()
    told.cpu.usage_usec, told.memory.usage, told.memory.inactive_file = one, other, one
    for _ in range(2):
        told.io.usage.add(rbytes=one, wbytes=other)
    msgspec.msgpack.encode(counters.stats_of(AnyMessage(value=told.SerializeToString())))
    process = counters.process_info(pb.Process(command=words, cpu_ns=one, rss_bytes=other, started_unix_ns=when))
    msgspec.msgpack.encode(process)
    assert len(process.command) <= 5000 and (process.command.isprintable() or not process.command)


def test_a_console_of_any_bytes(tmp_path: Path) -> None:
    console = tmp_path / "console.log"

    @settings(max_examples=100, deadline=None)
    @given(st.binary(max_size=3000), st.binary(max_size=300))
    def try_(data: bytes, older: bytes) -> None:
        console.write_bytes(data)
        console.with_name("console.log.1").write_bytes(older)
        said = why("killed", console)
        assert len(said) < 600 and (said.isprintable() or not said)

    try_()
    console.write_bytes(b"x" * (5 << 20) + b"\nAT stdout F Kernel panic - not syncing: " + b"y" * 10000)
    assert why("killed", console).startswith("Kernel panic")
    assert [name for name, _ in named_logs(tmp_path)] == ["console.1", "console"]


# -- a monitor that was taken over ------------------------------------------------------------------------------------

plain = st.none() | st.booleans() | st.integers(-3, 2**70) | st.text(max_size=5)
words = st.sampled_from(
    (
        "status",
        "return",
        "error",
        "event",
        "data",
        "device",
        "base-memory",
        "qom-path",
        "props",
        "type",
        "fdset-id",
        "size",
    )
)
anything = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
events = st.builds(lambda name, data: {"event": name, "data": data, "timestamp": {}}, plain | words, anything)
answers = st.lists(st.builds(lambda told: {"return": told}, anything) | events | anything, min_size=1, max_size=12)


QUESTIONS: tuple[Callable[[QemuMachine, Path], Awaitable[object]], ...] = (
    lambda machine, _: machine.status(),
    lambda machine, _: machine.places(),
    lambda machine, _: machine.metrics(),
    lambda machine, _: machine.pause(),
    lambda machine, home: machine.add(Disk("d", home / "disk")),
    lambda machine, _: machine.remove("d", timeout_s=0.05),
    lambda machine, _: machine.resize(processors=2, memory_bytes=256 << 20),
    lambda machine, home: machine.save(home),
)


def test_a_monitor_that_says_anything(tmp_path: Path) -> None:
    """Each line that it is asked is answered by what comes next, under the right id."""
    (tmp_path / "disk").touch()

    @settings(max_examples=40, deadline=None)
    @given(answers, st.sampled_from(QUESTIONS))
    def try_(said: list[object], question: Callable[[QemuMachine, Path], Awaitable[object]]) -> None:
        asyncio.run(asyncio.wait_for(ask(tmp_path, said, question), ANSWERS_WITHIN_S))

    try_()


async def ask(home: Path, said: list[Any], question: Callable[[QemuMachine, Path], Awaitable[object]]) -> None:
    left: list[Any] = [{"return": {}}, *said]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(json.dumps({"QMP": {"version": {}, "capabilities": []}}).encode() + b"\n")
        while line := await reader.read(65536):  # a request has no end of line, and no other beside it
            if not line.strip():  # what comes with a descriptor
                continue
            known = {key: value for key, value in json.loads(line).items() if key == "id"}
            told = left.pop(0) if left else {"error": {"class": "x", "desc": "y"}}
            is_answer = isinstance(told, dict) and "event" not in told
            answers = [{**told, **known}] if is_answer else [told, {"return": {}, **known}]
            writer.write(b"".join(json.dumps(one).encode() + b"\n" for one in answers))
        writer.close()

    path = home / "qmp.sock"
    path.unlink(missing_ok=True)
    config = MachineConfig("m", home, home / "kernel", None, memory_max_bytes=1 << 30)
    async with await asyncio.start_unix_server(serve, str(path)):
        with contextlib.suppress(DrupeError):
            machine = QemuMachine(await Qmp.connect(path, timeout_s=1), config, "q35")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(question(machine, home), 0.1)
            await machine.close()
