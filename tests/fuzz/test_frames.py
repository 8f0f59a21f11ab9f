"""The control socket's decoder on arbitrary bytes: only DrupeError, no descriptor lost, every split the same."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from drupe.errors import DrupeError
from drupe.rpc.frames import Cancel, Decoder, Failure, Hello, Invoke, Item, Result, encode


def open_count() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
ids = st.integers(0, 2**63)
messages = st.one_of(
    st.builds(Hello, st.integers(0, 99), st.tuples(st.text())),
    st.builds(Invoke, ids, st.text(), plain),
    st.builds(Item, ids, plain),
    st.builds(Result, ids, plain),
    st.builds(Failure, ids, st.dictionaries(st.text(), plain, max_size=4)),
    st.builds(Cancel, ids),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(messages, max_size=6), st.lists(st.integers(1, 50), max_size=30))
def test_any_split_gives_the_same_messages(sent: list[object], cuts: list[int]) -> None:
    stream = b"".join(encode(message) for message in sent)  # type: ignore[arg-type]
    decoder, got, at = Decoder(), [], 0
    for size in [*cuts, len(stream)]:
        got += [frame for frame, _ in decoder.feed(stream[at : at + size])]
        at += size
    assert got == sent


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=64), st.integers(0, 2), st.booleans()), max_size=8))
def test_nonsense_never_crashes_nor_leaks(chunks: list[tuple[bytes, int, bool]]) -> None:
    """framed: the bytes are given a right header, so that the fuzz reaches the msgpack layer."""
    before = open_count()
    decoder = Decoder()
    try:
        for body, fd_count, framed in chunks:
            data = len(body).to_bytes(4, "big") + body if framed else body
            for _, named in decoder.feed(data, [os.open("/dev/null", os.O_RDONLY) for _ in range(fd_count)]):
                for fd in named.values():
                    os.close(fd)
    except DrupeError:
        pass
    decoder.close()
    assert open_count() == before


@settings(max_examples=300, deadline=None)
@given(messages, st.data())
def test_a_flipped_byte_is_an_error_or_another_message(message: object, data: st.DataObject) -> None:
    stream = bytearray(encode(message))  # type: ignore[arg-type]
    at = data.draw(st.integers(4, len(stream) - 1))
    stream[at] ^= data.draw(st.integers(1, 255))
    try:
        Decoder().feed(bytes(stream))
    except DrupeError as error:
        assert str(error)
