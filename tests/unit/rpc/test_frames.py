"""The frame codec: every message survives, every split is the same, nonsense is one clear error."""

from __future__ import annotations

import os

import pytest

from drupe.errors import DataLoss, InvalidArgument, ResourceExhausted, Unavailable
from drupe.rpc import frames
from drupe.rpc.frames import Cancel, Decoder, Failure, Frame, Hello, Invoke, Item, Result, check_hello, encode

MESSAGES: list[Frame] = [
    Hello(features=("a", "b")),
    Invoke(7, "pod.status", {"ref": "x"}, ("stdin",), 1.5),
    Item(7, [1, 2.5, b"\x00\xff", "é", None, True]),
    Result(7, {"deep": [{"er": [1]}]}),
    Failure(7, {"type": "NotFound", "message": "no"}),
    Cancel(2**40),
]


def is_closed(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return True
    return False


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_message_survives_the_wire(message: Frame) -> None:
    names = message.fds if isinstance(message, Invoke) else ()
    sent = [os.open("/dev/null", os.O_RDONLY) for _ in names]
    [(got, fds)] = Decoder().feed(encode(message), sent)
    assert got == message
    assert fds == dict(zip(names, sent, strict=True))
    for fd in fds.values():
        os.close(fd)


def test_byte_by_byte_is_the_same_as_at_once() -> None:
    quiet = [message for message in MESSAGES if not isinstance(message, Invoke)]
    stream = b"".join(encode(message) for message in quiet)
    decoder = Decoder()
    got = [frame for i in range(len(stream)) for frame, _ in decoder.feed(stream[i : i + 1])]
    assert got == quiet


def test_descriptors_go_to_the_frames_that_name_them() -> None:
    """Two calls whose bytes and descriptors arrive glued together: matched by order and name."""
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
    data = (
        encode(Invoke(1, "a", None, ("stdin", "stdout"))) + encode(Cancel(1)) + encode(Invoke(2, "b", None, ("data",)))
    )
    got = Decoder().feed(data, fds)
    assert [named for _, named in got] == [{"stdin": fds[0], "stdout": fds[1]}, {}, {"data": fds[2]}]
    for fd in fds:
        os.close(fd)


def test_unclaimed_descriptors_are_closed() -> None:
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(2)]
    decoder = Decoder()
    [(_, named)] = decoder.feed(encode(Invoke(1, "a", None, ("data",))), fds)
    assert named == {"data": fds[0]} and is_closed(fds[1])
    os.close(fds[0])


def test_descriptors_of_a_half_frame_wait_and_are_closed_with_the_decoder() -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    decoder = Decoder()
    assert decoder.feed(encode(Invoke(1, "a", None, ("data",)))[:5], [fd]) == []
    assert not is_closed(fd)
    decoder.close()
    assert is_closed(fd)


def test_missing_descriptor_is_an_error_and_closes_the_others() -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    good, bad = encode(Invoke(1, "a", None, ("data",))), encode(Invoke(2, "b", None, ("data",)))
    with pytest.raises(DataLoss, match="names 1 descriptors, 0 came"):
        Decoder().feed(good + bad, [fd])
    assert is_closed(fd)


def test_the_same_name_twice_is_an_error() -> None:
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(2)]
    with pytest.raises(DataLoss):
        Decoder().feed(encode(Invoke(1, "a", None, ("data", "data"))), fds)
    assert all(is_closed(fd) for fd in fds)


def test_a_frame_over_the_limit_is_refused_by_its_header_alone() -> None:
    header = (frames.MAX_FRAME_BYTES + 1).to_bytes(4, "big")
    with pytest.raises(ResourceExhausted, match="over the limit of 67108864"):
        Decoder().feed(header)


def test_a_frame_over_the_limit_is_not_sent() -> None:
    with pytest.raises(ResourceExhausted):
        encode(Item(1, bytes(frames.MAX_FRAME_BYTES)))


def test_a_foreign_type_is_not_sent() -> None:
    with pytest.raises(InvalidArgument, match="cannot be sent"):
        encode(Item(1, object()))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc0",
        b"\x93",
        b"\xa2\xff\xfe",
        b"\x92\xa4item",
        b"\x91" * 100_000,
        b"\x92\xa4nope\x01",
        b"\xdd\xff\xff\xff\xff",
    ],
)
def test_nonsense_is_data_loss(body: bytes) -> None:
    with pytest.raises(DataLoss, match="not a frame"):
        Decoder().feed(len(body).to_bytes(4, "big") + body)


def test_hello_of_another_protocol_names_both() -> None:
    with pytest.raises(Unavailable, match="protocol 9, this side speaks 1"):
        check_hello(Hello(9))


def test_anything_but_hello_is_refused() -> None:
    with pytest.raises(DataLoss, match="did not say hello"):
        check_hello(Cancel(1))


def test_a_refusal_instead_of_hello_is_raised() -> None:
    with pytest.raises(Unavailable, match="later"):
        check_hello(Failure(0, Unavailable("later").to_wire()))
