"""Hostile DNS messages: a clear BadMessage or a sane value, never anything else."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import example, given
from hypothesis import strategies as st

from drupe.resources.network import dnsmessage as dns

LABEL = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=63)
NAME = st.lists(LABEL, min_size=1, max_size=3).map(".".join)


def query(name: str, kind: int = dns.A, number: int = 7) -> bytes:
    return (
        number.to_bytes(2, "big") + b"\1\0\0\1\0\0\0\0\0\0" + dns.encode_name(name) + kind.to_bytes(2, "big") + b"\0\1"
    )


@given(st.binary(max_size=600))
@example(b"\0" * 12)
@example(b"\0\0\1\0\0\1\0\0\0\0\0\0\xc0\x0c\0\1\0\1")  # a pointer to itself
@example(b"\0\0\1\0\0\1\0\0\0\0\0\0" + b"\x3f" + b"a" * 10)
def test_any_bytes(data: bytes) -> None:
    """Nothing but BadMessage comes out of the parsers."""
    with suppress(dns.BadMessage):
        question = dns.parse_question(data)
        assert len(question.name) <= 4 * 255
        dns.reply(data, question, [dns.record(dns.A, b"\1\2\3\4", 5)])
        dns.reverse_address(question.name)
    with suppress(dns.BadMessage):
        list(dns.addresses(data))
    dns.answers(data, data)
    if len(data) >= 12:
        assert len(dns.error(data, dns.FORMERR)) >= 12


@given(NAME, st.binary(max_size=200))
def test_any_tail(name: str, tail: bytes) -> None:
    """A good question with rubbish behind it."""
    data = query(name) + tail
    question = dns.parse_question(data)
    assert question.name == name
    answer = dns.reply(data, question, [dns.record(dns.A, bytes(4), 1)] * 60)
    assert len(answer) <= dns.MAX_UDP_BYTES
    assert dns.answers(data, answer)


@given(NAME, st.integers(0, 400), st.integers(0, 255))
def test_any_flip(name: str, at: int, value: int) -> None:
    """One byte of a good answer changed."""
    data = query(name)
    answer = bytearray(dns.reply(data, dns.parse_question(data), [dns.record(dns.AAAA, bytes(16), 1)] * 3))
    answer[at % len(answer)] = value
    with suppress(dns.BadMessage):
        list(dns.addresses(bytes(answer)))


@given(st.text(max_size=80))
def test_reverse_names(text: str) -> None:
    for suffix in ("", ".in-addr.arpa", ".ip6.arpa"):
        dns.reverse_address(text + suffix)
