"""ttrpc's decoder, client and server on arbitrary bytes: every split the same, no crash, and calls go on or fail."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from google.protobuf.wrappers_pb2 import StringValue
from hypothesis import given, settings
from hypothesis import strategies as st

from drupe.errors import DrupeError
from drupe.rpc.ttrpc import Call, Client, Server, ServerStream, streaming, unary
from drupe.rpc.ttrpc.envelope import error_of, metadata_of, parse_answer, parse_request, request, status_of
from drupe.rpc.ttrpc.envelope_pb2 import Status
from drupe.rpc.ttrpc.frames import MAX_DATA_BYTES, Decoder, Frame, Kind, Oversized, encode

streams = st.integers(0, 2**32 - 1)
octets = st.integers(0, 255)
frames = st.builds(Frame, streams, octets, octets, st.binary(max_size=200))
# ids and kinds that the other end takes seriously
likely = st.builds(Frame, st.integers(0, 9), st.integers(1, 3), st.integers(0, 7), st.binary(max_size=40))


@settings(max_examples=300, deadline=None)
@given(st.lists(frames, max_size=6), st.lists(st.integers(1, 60), max_size=30))
def test_any_split_gives_the_same_frames(sent: list[Frame], cuts: list[int]) -> None:
    stream = b"".join(encode(frame) for frame in sent)
    decoder, got, at = Decoder(), [], 0
    for size in [*cuts, len(stream)]:
        got += decoder.feed(stream[at : at + size])
        at += size
    assert got == sent


@settings(max_examples=100, deadline=None)
@given(
    st.integers(MAX_DATA_BYTES + 1, MAX_DATA_BYTES + 5000), streams, st.lists(st.integers(1, 3000), max_size=9), frames
)
def test_what_follows_an_oversized_frame_is_found(size: int, stream: int, cuts: list[int], after: Frame) -> None:
    head = size.to_bytes(4, "big") + stream.to_bytes(4, "big") + b"\x03\x00"
    data = head + bytes(size) + encode(after)
    decoder, got, at = Decoder(), [], 0
    for step in [*cuts, len(data)]:
        got += decoder.feed(data[at : at + step])
        at += step
    assert got == [Oversized(stream, 3, size), after]
    assert not decoder._buffer


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_envelopes_of_nonsense_are_one_error(data: bytes) -> None:
    for parse in (parse_request, parse_answer):
        with contextlib.suppress(DrupeError):
            parse(data)


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=20),
    st.binary(max_size=50),
    st.none() | st.floats(0.001, 1e12),
    st.dictionaries(st.text(max_size=8), st.lists(st.text(max_size=8), min_size=1, max_size=3), max_size=4),
)
def test_requests_survive(name: str, payload: bytes, timeout_s: float | None, metadata: dict[str, list[str]]) -> None:
    metadata = {key.lower(): values for key, values in metadata.items()}
    got = parse_request(request(name, name, payload, timeout_s=timeout_s, metadata=metadata))
    assert (got.service, got.method, got.payload) == (name, name, payload)
    assert (got.timeout_nano > 0) == (timeout_s is not None)
    assert metadata_of(got.metadata) == {key.lower(): tuple(values) for key, values in metadata.items()}


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 2**31 - 1), st.text(max_size=50))
def test_every_status_is_an_error_with_words(code: int, message: str) -> None:
    error = error_of(Status(code=code, message=message))
    assert str(error)
    if code <= 16:
        assert status_of(error).code in range(1, 17)


async def say(_: Call, message: StringValue) -> StringValue:
    return message


async def talk(_: Call, stream: ServerStream[StringValue, StringValue]) -> None:
    async for message in stream:
        await stream.send(message)


def talking(stream: int) -> Frame:
    return Frame(stream, Kind.REQUEST, 2, request("s", "Talk", b"", timeout_s=None, metadata={}))


@settings(max_examples=150, deadline=None)
@given(st.lists(likely | st.builds(talking, st.integers(1, 9)), max_size=8), st.binary(max_size=20))
def test_a_server_survives_any_frames_and_leaves_no_task(sent: list[Frame], tail: bytes) -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        methods = {"Say": unary(StringValue, say), "Talk": streaming(StringValue, talk, requests=True, answers=True)}
        serving = asyncio.create_task(Server({"s": methods}).serve(theirs))
        good = Frame(2**32 - 1, Kind.REQUEST, 0, request("s", "Say", b"", timeout_s=None, metadata={}))
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(ours, b"".join(encode(frame) for frame in sent) + encode(good) + tail)
        decoder, answered = Decoder(), False
        while not answered:
            data = await asyncio.wait_for(loop.sock_recv(ours, 65536), 10)
            assert data
            answered = any(frame.stream == 2**32 - 1 for frame in decoder.feed(data))
        ours.close()
        await asyncio.wait_for(serving, 10)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())


@settings(max_examples=150, deadline=None)
@given(st.lists(likely, max_size=8), st.binary(max_size=20))
def test_a_client_survives_any_frames(answers: list[Frame], tail: bytes) -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        async with await Client.over(ours) as client:
            calls = [asyncio.create_task(client.call("s", "Say", StringValue(), StringValue)) for _ in range(3)]
            await asyncio.sleep(0)
            theirs.sendall(b"".join(encode(frame) for frame in answers) + tail)
            theirs.close()
            done = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10)
            assert all(isinstance(one, StringValue | DrupeError) for one in done)

    asyncio.run(scenario())
