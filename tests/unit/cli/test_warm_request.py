"""What the native client sends: read exactly, and whatever else comes is refused without losing a descriptor."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drupe.cli import adopt, request
from drupe.linux.unix_sockets import send_fds


def open_descriptors() -> list[str]:
    return sorted(fd.name for fd in Path("/proc/self/fd").iterdir())


TEXTS = [b"0.1.0", b"/opt/drupe/bin", b"run", b"\xff", b"A=1", b"B="]


def body(texts: list[bytes] = TEXTS, *, counts: tuple[int, int, int, int, int] = (2, 2, 2, 0o22, 5)) -> bytes:
    numbers = struct.pack("<2i", 0, 7)
    return struct.pack("<IIIIQ", *counts) + numbers + b"".join(text + b"\0" for text in texts)


def test_a_request() -> None:
    got = request.parse(body(), [10, 11, 12])
    assert got.argv == [b"run", b"\xff"] and got.environment == [b"A=1", b"B="]
    assert (got.version, got.home) == (b"0.1.0", b"/opt/drupe/bin")
    assert (got.umask, got.blocked, got.directory) == (0o22, 5, 10)
    assert got.descriptors == {0: 11, 7: 12}


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        body()[:-1],
        body() + b"x",
        body(TEXTS[:-1]),
        body(counts=(3, 2, 2, 0o22, 5)),
        body(counts=(2, 2, 3, 0o22, 5)),
        body(counts=(2, 2, 2, 0o1000, 5)),
        body(counts=(2**32 - 1, 2, 2, 0o22, 5)),
    ],
)
def test_what_is_wrong_is_refused(wrong: bytes) -> None:
    with pytest.raises(request.BadRequest):
        request.parse(wrong, [10, 11, 12])


@given(st.binary(max_size=200), st.integers(0, 4))
def test_anything_is_a_request_or_refused(data: bytes, count: int) -> None:
    try:
        got = request.parse(data, list(range(count)))
    except request.BadRequest:
        return
    assert len(got.descriptors) == count - 1


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(0.05)
        yield ours, theirs


def send(theirs: socket.socket, length: int, data: bytes, magic: bytes = request.MAGIC) -> None:
    send_fds(theirs, struct.pack("<8sI", magic, length), [0, 0, 0])
    theirs.sendall(data)


def test_over_a_socket(pair: tuple[socket.socket, socket.socket]) -> None:
    send(pair[1], len(body()), body())
    got = request.receive(pair[0])
    assert got.argv == [b"run", b"\xff"]
    for fd in (got.directory, *got.descriptors.values()):
        os.close(fd)


@pytest.mark.parametrize(
    ("length", "data", "magic"),
    [
        (10, body(), request.MAGIC),
        (len(body()) + 1, body(), request.MAGIC),
        (1 << 31, b"", request.MAGIC),
        (len(body()), body(), b"drupe-2\n"),
    ],
    ids=["short", "truncated", "huge", "version"],
)
def test_garbage_costs_no_descriptor(
    pair: tuple[socket.socket, socket.socket], length: int, data: bytes, magic: bytes
) -> None:
    before = open_descriptors()
    send(pair[1], length, data, magic)
    pair[1].shutdown(socket.SHUT_WR)
    with pytest.raises((request.BadRequest, TimeoutError)):
        request.receive(pair[0])
    assert open_descriptors() == before


def test_one_who_says_nothing_is_not_waited_for(pair: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(TimeoutError):
        request.receive(pair[0])


def test_of_a_variable_that_is_there_twice_the_first_counts() -> None:
    assert adopt.environment_of([b"A=1", b"A=2", b"B=x=y"]) == {b"A": b"1", b"B": b"x=y"}
