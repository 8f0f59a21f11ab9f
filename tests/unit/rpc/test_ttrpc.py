"""ttrpc's client against its server over a socket pair, and each against raw frames."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import BytesValue, StringValue

from drupe.errors import (
    DataLoss,
    DeadlineExceeded,
    InvalidArgument,
    InvalidState,
    NotFound,
    ResourceExhausted,
    Unavailable,
    Unsupported,
)
from drupe.rpc.ttrpc import Call, Client, Server, ServerStream, streaming, unary
from drupe.rpc.ttrpc.client import MAX_DROPPED
from drupe.rpc.ttrpc.envelope import Code, request
from drupe.rpc.ttrpc.envelope_pb2 import Response
from drupe.rpc.ttrpc.frames import MAX_DATA_BYTES, Decoder, Flag, Frame, Kind, encode
from drupe.rpc.ttrpc.inbox import CAPACITY_BYTES
from framework.aio import until

Test = Callable[[], Coroutine[Any, Any, None]]


class Echo:
    """The service under test, and what it saw."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.cancelled = asyncio.Event()
        self.gate = asyncio.Event()
        self.served = Server({"t.Echo": self.methods()}, max_calls=4)

    def methods(self) -> dict[str, Any]:
        return {
            "Say": unary(StringValue, self.say),
            "Fail": unary(StringValue, self.fail),
            "Bug": unary(StringValue, self.bug),
            "Hang": unary(Empty, self.hang),
            "Big": unary(Empty, self.big),
            "Gather": streaming(StringValue, self.gather, requests=True, answers=False),
            "Split": streaming(StringValue, self.split, requests=False, answers=True),
            "Talk": streaming(StringValue, self.talk, requests=True, answers=True),
            "Deaf": streaming(StringValue, self.deaf, requests=True, answers=True),
            "Flood": streaming(Empty, self.flood, requests=False, answers=True),
        }

    async def say(self, call: Call, message: StringValue) -> StringValue:
        self.calls.append(call)
        return message

    async def fail(self, call: Call, message: StringValue) -> StringValue:
        raise NotFound(f"no {message.value}", hint="make one")

    async def bug(self, call: Call, message: StringValue) -> StringValue:
        raise ZeroDivisionError

    async def hang(self, call: Call, message: Empty) -> Empty:
        self.calls.append(call)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return Empty()

    async def big(self, call: Call, message: Empty) -> BytesValue:
        return BytesValue(value=bytes(MAX_DATA_BYTES))

    async def gather(self, call: Call, stream: ServerStream[StringValue, Any]) -> StringValue:
        return StringValue(value="".join([part.value async for part in stream]))

    async def split(self, call: Call, stream: ServerStream[StringValue, StringValue]) -> None:
        async for text in stream:
            for part in text.value.split():
                await stream.send(StringValue(value=part))

    async def talk(self, call: Call, stream: ServerStream[StringValue, StringValue]) -> None:
        async for text in stream:
            if text.value == "enough":
                raise ResourceExhausted("enough")
            await stream.send(text)

    async def deaf(self, call: Call, stream: ServerStream[StringValue, StringValue]) -> None:
        await self.gate.wait()

    async def flood(self, call: Call, stream: ServerStream[Empty, BytesValue]) -> None:
        sent = 0
        try:
            while sent < 64:
                await stream.send(BytesValue(value=bytes(1024 * 1024)))
                sent += 1
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


@contextlib.asynccontextmanager
async def pair() -> AsyncIterator[tuple[Client, Echo]]:
    async with raw() as (sock, echo), await Client.over(sock) as client:
        yield client, echo


@contextlib.asynccontextmanager
async def raw() -> AsyncIterator[tuple[socket.socket, Echo]]:
    """The client's end as a socket."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    echo = Echo()
    serving = asyncio.create_task(echo.served.serve(theirs))
    try:
        yield ours, echo
    finally:
        ours.close()
        await asyncio.wait_for(serving, 5)


async def say(client: Client, text: str, method: str = "Say", **rest: Any) -> str:
    return (await client.call("t.Echo", method, StringValue(value=text), StringValue, **rest)).value


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


def test_many_calls_side_by_side() -> None:
    async def test() -> None:
        async with pair() as (client, _):
            assert await asyncio.gather(*(say(client, str(n)) for n in range(4))) == ["0", "1", "2", "3"]
            for n in range(20):
                assert await say(client, str(n)) == str(n)

    run(test)


def test_metadata_and_deadline_arrive() -> None:
    async def test() -> None:
        async with pair() as (client, echo):
            await say(client, "x", timeout_s=50, metadata={"Containerd-Namespace-TTRPC": "k8s", "b": ["1", "2"]})
            [call] = echo.calls
            assert call.metadata == {"containerd-namespace-ttrpc": ("k8s",), "b": ("1", "2")}
            assert call.deadline is not None
            assert 40 < call.deadline - asyncio.get_running_loop().time() <= 50
            assert (call.service, call.method) == ("t.Echo", "Say")
            assert call.peer is not None and call.peer.uid == 0

    run(test)


@pytest.mark.parametrize(
    ("service", "method", "kind", "words"),
    [
        ("t.Echo", "Fail", NotFound, r"no x \(make one\)"),
        ("t.Echo", "Nope", Unsupported, "service t.Echo has no method 'Nope'"),
        ("t.Nope", "Say", Unsupported, "no service 't.Nope'"),
        ("t.Echo", "Bug", Exception, "t.Echo/Bug failed"),
        ("t.Echo", "Big", ResourceExhausted, "over the limit"),
    ],
)
def test_failures_are_errors_with_words(service: str, method: str, kind: type[Exception], words: str) -> None:
    async def test() -> None:
        async with pair() as (client, _):
            with pytest.raises(kind, match=words):
                await client.call(service, method, StringValue(value="x"), StringValue)
            assert await say(client, "still") == "still"

    run(test)


def test_a_request_over_the_limit_is_not_sent() -> None:
    async def test() -> None:
        async with pair() as (client, _):
            with pytest.raises(ResourceExhausted):
                await say(client, "x" * MAX_DATA_BYTES)
            assert await say(client, "still") == "still"

    run(test)


def test_streams_of_all_forms() -> None:
    async def test() -> None:
        async with pair() as (client, _):
            async with client.stream("t.Echo", "Gather", StringValue) as stream:
                for part in ("a", "", "b"):
                    await stream.send(StringValue(value=part))
                assert (await stream.result()).value == "ab"
            async with client.stream("t.Echo", "Split", StringValue, StringValue(value="a b c")) as stream:
                assert [part.value async for part in stream] == ["a", "b", "c"]
            async with client.stream("t.Echo", "Talk", StringValue) as stream:
                for part in ("x", "", "y"):  # an empty message has no bytes, and is one
                    await stream.send(StringValue(value=part))
                    answer = await stream.receive()
                    assert answer is not None and answer.value == part
                await stream.end()
                assert await stream.receive() is None
                with pytest.raises(InvalidState):
                    await stream.send(StringValue())

    run(test)


def test_a_stream_ends_with_the_error_of_its_handler() -> None:
    async def test() -> None:
        async with pair() as (client, _), client.stream("t.Echo", "Talk", StringValue) as stream:
            await stream.send(StringValue(value="a"))
            await stream.send(StringValue(value="enough"))
            answer = await stream.receive()
            assert answer is not None and answer.value == "a"  # what came before the end is not lost
            with pytest.raises(ResourceExhausted, match="enough"):
                await stream.receive()

    run(test)


def test_the_deadline_holds_on_both_ends() -> None:
    async def test() -> None:
        async with pair() as (client, echo):
            with pytest.raises(DeadlineExceeded) as caught:
                await client.call("t.Echo", "Hang", Empty(), Empty, timeout_s=0.05)
            assert caught.value.may_have_run
            await asyncio.wait_for(echo.cancelled.wait(), 5)

    run(test)


def test_hanging_up_cancels_at_the_server_and_fails_at_the_client() -> None:
    async def test() -> None:
        async with pair() as (client, echo):
            waiting = asyncio.create_task(client.call("t.Echo", "Hang", Empty(), Empty))
            await until(lambda: echo.calls)
            await client.close()
            with pytest.raises(Unavailable) as caught:
                await waiting
            assert caught.value.may_have_run
            await asyncio.wait_for(echo.cancelled.wait(), 5)
            with pytest.raises(Unavailable) as caught:
                await say(client, "x")
            assert not caught.value.may_have_run

    run(test)


def test_a_call_that_was_cancelled_disturbs_no_other() -> None:
    async def test() -> None:
        async with pair() as (client, echo):
            waiting = asyncio.create_task(client.call("t.Echo", "Hang", Empty(), Empty))
            await until(lambda: echo.calls)
            waiting.cancel()
            await asyncio.wait([waiting])
            echo.gate.set()  # its answer comes now, and nobody waits for it
            assert await say(client, "x") == "x"

    run(test)


def test_leaving_a_stream_ends_its_handler() -> None:
    async def test() -> None:
        async with pair() as (client, _):
            for _ in range(10):  # more than the server's limit of open calls
                async with client.stream("t.Echo", "Talk", StringValue):
                    pass
                assert await say(client, "x") == "x"

    run(test)


def test_too_many_open_calls_are_refused() -> None:
    async def test() -> None:
        async with pair() as (client, echo):
            open_calls = [asyncio.create_task(client.call("t.Echo", "Hang", Empty(), Empty)) for _ in range(4)]
            await until(lambda: len(echo.calls) == 4)
            with pytest.raises(ResourceExhausted, match="4 calls are open"):
                await say(client, "x")
            echo.gate.set()
            await asyncio.gather(*open_calls)
            assert await say(client, "x") == "x"

    run(test)


def test_who_does_not_read_is_waited_for_in_bounded_memory() -> None:
    """The server's sending stops; the client's receiving holds no more than an inbox."""

    async def test() -> None:
        async with pair() as (client, echo):
            async with client.stream("t.Echo", "Flood", BytesValue, Empty()) as stream:
                assert await stream.receive() is not None
                for _ in range(20):
                    await asyncio.sleep(0.001)
                assert stream._inbox._bytes <= CAPACITY_BYTES + 64
                assert not echo.cancelled.is_set()
                assert len([1 async for _ in stream]) == 63  # nothing was lost
            assert await say(client, "x") == "x"

    run(test)


def test_a_server_that_does_not_read_a_stream_stops_its_sender() -> None:
    async def test() -> None:
        async with pair() as (client, echo):
            async with client.stream("t.Echo", "Deaf", StringValue) as stream:
                text = StringValue(value="x" * 1024 * 1024)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.2):
                        for _ in range(64):
                            await stream.send(text)
                        pytest.fail("64 MiB went into nothing")
                echo.gate.set()
                assert await stream.receive() is None
            assert await say(client, "x") == "x"

    run(test)


async def exchange(sock: socket.socket, *frames: bytes, answers: int = 1) -> list[tuple[int, int, str]]:
    """Send bytes, and return (stream, status code, message) of so many answers."""
    loop = asyncio.get_running_loop()
    decoder, found = Decoder(), []
    await loop.sock_sendall(sock, b"".join(frames))
    while len(found) < answers:
        data = await asyncio.wait_for(loop.sock_recv(sock, 65536), 5)
        assert data, "the server hung up"
        for frame in decoder.feed(data):
            assert isinstance(frame, Frame) and frame.kind == Kind.RESPONSE
            status = Response.FromString(frame.data).status
            found.append((frame.stream, status.code, status.message))
    return found


def saying(stream: int, method: str = "Say") -> bytes:
    payload = StringValue(value="x").SerializeToString()
    return encode(Frame(stream, Kind.REQUEST, 0, request("t.Echo", method, payload, timeout_s=None, metadata={})))


def test_bad_frames_are_answered_on_their_stream_and_the_connection_goes_on() -> None:
    async def test() -> None:
        async with raw() as (sock, _):
            huge = (MAX_DATA_BYTES + 1).to_bytes(4, "big") + (1).to_bytes(4, "big") + bytes([Kind.REQUEST, 0])
            [(stream, code, _)] = await exchange(sock, huge, bytes(MAX_DATA_BYTES + 1))
            assert (stream, code) == (1, Code.RESOURCE_EXHAUSTED)
            [(stream, code, words)] = await exchange(sock, saying(2))
            assert (stream, code) == (2, Code.INVALID_ARGUMENT) and "even" in words
            [(_, code, words)] = await exchange(sock, saying(1))
            assert code == Code.INVALID_ARGUMENT and "not above" in words
            [(_, code, _)] = await exchange(sock, encode(Frame(3, Kind.REQUEST, 0, b"\xff\xff")))
            assert code == Code.INVALID_ARGUMENT
            bad_payload = request("t.Echo", "Say", b"\xff", timeout_s=None, metadata={})
            [(_, code, words)] = await exchange(sock, encode(Frame(5, Kind.REQUEST, 0, bad_payload)))
            assert code == Code.INVALID_ARGUMENT and "StringValue" in words
            [(_, code, words)] = await exchange(sock, encode(Frame(99, Kind.DATA, 0, b"")))
            assert code == Code.INVALID_ARGUMENT and "never opened" in words
            unknown = encode(Frame(1, 77, 0, b"?")) + encode(Frame(5, Kind.DATA, 0, b"late"))  # both are ignored
            assert await exchange(sock, unknown, saying(7)) == [(7, Code.OK, "")]

    run(test)


def test_a_deadline_that_has_passed_is_answered_so() -> None:
    async def test() -> None:
        async with raw() as (sock, _):
            late = (
                request("t.Echo", "Hang", b"", timeout_s=None, metadata={}) + b"\x20" + b"\xff" * 9 + b"\x01"
            )  # -1 ns
            [(_, code, _)] = await exchange(sock, encode(Frame(1, Kind.REQUEST, 0, late)))
            assert code == Code.DEADLINE_EXCEEDED

    run(test)


def test_a_client_that_never_reads_answers_costs_bounded_memory() -> None:
    """Thousands of requests and no reading: the server stops reading too."""

    async def test() -> None:
        async with raw() as (sock, _):
            loop = asyncio.get_running_loop()
            sent = 0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    for n in range(200_000):
                        await loop.sock_sendall(sock, saying(2 * n + 1, "Nope"))
                        sent = n
            assert sent < 199_999
            assert len(asyncio.all_tasks()) < 20

    run(test)


def test_a_peer_that_answers_nonsense_is_data_loss() -> None:
    async def test() -> None:
        ours, theirs = socket.socketpair()
        async with await Client.over(ours) as client:
            theirs.sendall(
                encode(Frame(1, Kind.RESPONSE, 0, b"\xff")) + encode(Frame(3, Kind.DATA, Flag.REMOTE_CLOSED))
            )
            with pytest.raises(DataLoss):
                async with asyncio.timeout(5):
                    waiting = asyncio.create_task(say(client, "x"))
                    await asyncio.sleep(0)
                    theirs.sendall(encode(Frame(1, Kind.RESPONSE, 0, b"\xff")))
                    await waiting
            theirs.close()

    run(test)


@pytest.mark.parametrize(
    "sent",
    [
        encode(Frame(2, Kind.DATA, 0, b"")),
        encode(Frame(99, Kind.DATA, 0, b"")),
        encode(Frame(1, Kind.DATA, 0, b"x")) * (MAX_DROPPED + 1),
    ],
    ids=["a stream of the server's", "a call never made", "one given up, for ever"],
)
def test_a_peer_that_sends_what_nobody_asked_for_is_given_up(sent: bytes) -> None:
    async def test() -> None:
        ours, theirs = socket.socketpair()
        client = await Client.over(ours)
        _, writer = await asyncio.open_connection(sock=theirs)
        first = asyncio.ensure_future(client.call("t.Echo", "Say", Empty(), Empty))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        waiting = asyncio.ensure_future(client.call("t.Echo", "Hang", Empty(), Empty))
        await asyncio.sleep(0)
        writer.write(sent)
        with pytest.raises(DataLoss, match="nobody has asked for"):
            await waiting
        with pytest.raises(Unavailable):
            await client.call("t.Echo", "Say", Empty(), Empty)
        writer.close()
        await client.close()

    asyncio.run(test())


def test_listens_for_its_owner_only_and_leaves_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        server = Echo().served
        path = tmp_path / "t.sock"
        await server.listen(path)
        assert path.stat().st_mode & 0o777 == 0o600
        async with await Client.connect(path) as client:
            assert await say(client, "x") == "x"
            await server.close()
            with pytest.raises(Unavailable):
                await say(client, "x")
        assert not path.exists()
        with pytest.raises(Unavailable):
            await Client.connect(path)

    run(test)


def test_wrong_types_are_told_apart() -> None:
    async def test() -> None:
        async with pair() as (client, _):
            with pytest.raises(InvalidArgument, match=r"not a google.protobuf.StringValue"):
                await client.call("t.Echo", "Say", BytesValue(value=b"\xff\xfe"), StringValue)

    run(test)
