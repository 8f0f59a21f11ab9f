"""The client's side of the control socket, against a scripted keeper."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from drupe import errors
from drupe.keeper.connection import MAX_PACKET, Connection, to_error
from drupe.keeper.records import Answer


class Peer:
    """The keeper's end of a connection, and what the client was told."""

    def __init__(self) -> None:
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        self.events: list[dict[str, Any]] = []
        self.lost = 0
        self.connection = Connection(theirs, self.events.append, self._lose)

    def _lose(self) -> None:
        self.lost += 1

    def call(self, op: str = "x", timeout_s: float | None = 5, **rest: Any) -> asyncio.Task[Answer]:
        return asyncio.ensure_future(self.connection.call(op, {}, rest.pop("fds", {}), timeout_s, **rest))

    async def request(self) -> dict[str, Any]:
        await asyncio.sleep(0)
        return json.loads(self.sock.recv(MAX_PACKET))

    def answer(self, packet: dict[str, Any], fds: list[int] | None = None) -> None:
        socket.send_fds(self.sock, [json.dumps(packet).encode()], fds or [])


def play(scenario: Callable[[Peer], Awaitable[None]]) -> None:
    async def run() -> None:
        peer = Peer()
        try:
            await scenario(peer)
        finally:
            peer.connection.close()
            peer.sock.close()

    before = open_fds()
    asyncio.run(run())
    assert open_fds() == before


def open_fds() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_answers_come_in_any_order() -> None:
    async def scenario(peer: Peer) -> None:
        calls = [peer.call(), peer.call()]
        first, second = await peer.request(), await peer.request()
        peer.answer({"id": second["id"], "ok": {"n": 2}})
        peer.answer({"id": first["id"], "ok": {"n": 1}})
        assert [(await call).ok["n"] for call in calls] == [1, 2]

    play(scenario)


def test_descriptors_travel_by_name() -> None:
    async def scenario(peer: Peer) -> None:
        reader, writer = os.pipe()
        call = peer.call(fds={"stdout": writer})
        await asyncio.sleep(0)
        data, fds, _, _ = socket.recv_fds(peer.sock, MAX_PACKET, 4)
        assert json.loads(data)["fds"] == ["stdout"] and len(fds) == 1
        peer.answer({"id": 1, "ok": {}, "fds": ["a", "b"]}, [reader, writer])
        answer = await call
        assert sorted(answer.fds) == ["a", "b"] and not os.get_inheritable(answer.fds["a"])
        for fd in (reader, writer, *fds, *answer.fds.values()):
            os.close(fd)

    play(scenario)


def test_nobody_owns_the_descriptors_of_a_late_answer() -> None:
    async def scenario(peer: Peer) -> None:
        null = os.open("/dev/null", os.O_RDONLY)
        late = peer.call(timeout_s=0)
        with pytest.raises(errors.DeadlineExceeded, match="did not answer x within 0 s"):
            await late
        peer.answer({"id": 1, "ok": {}, "fds": ["a"]}, [null])
        cancelled = peer.call()
        await asyncio.sleep(0)
        peer.answer({"id": 2, "ok": {}, "fds": ["a"]}, [null])
        peer.connection._readable()
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        os.close(null)

    play(scenario)


def test_on_answer_precedes_the_next_event() -> None:
    async def scenario(peer: Peer) -> None:
        order: list[str] = []
        peer.connection._on_event = lambda event: order.append(event["event"])
        call = peer.call(on_answer=lambda answer: order.append("answer"))
        await asyncio.sleep(0)
        peer.answer({"id": 1, "ok": {}})
        peer.answer({"event": "exit"})
        await call
        assert order == ["answer", "exit"]

    play(scenario)


def test_requests_fail_when_the_keeper_goes() -> None:
    async def scenario(peer: Peer) -> None:
        call = peer.call()
        await asyncio.sleep(0)
        peer.sock.close()
        with pytest.raises(errors.Unavailable, match="the keeper has gone"):
            await call
        assert peer.lost == 1 and peer.connection.closed
        with pytest.raises(errors.Unavailable, match="closed"):
            await peer.call()

    play(scenario)


def test_a_full_socket_delays_requests_and_keeps_their_descriptors() -> None:
    async def scenario(peer: Peer) -> None:
        null = os.open("/dev/null", os.O_RDONLY)
        calls = [
            asyncio.ensure_future(peer.connection.call("x", {"pad": "p" * 100_000}, {"n": null}, 5)) for _ in range(8)
        ]
        await asyncio.sleep(0)
        os.close(null)
        peer.sock.setblocking(False)
        for number in range(1, 9):
            while True:
                try:
                    data, fds, _, _ = socket.recv_fds(peer.sock, MAX_PACKET, 4)
                    break
                except BlockingIOError:
                    await asyncio.sleep(0)
            assert json.loads(data)["id"] == number
            os.close(fds[0])
            peer.answer({"id": number, "ok": {}})
        await asyncio.gather(*calls)

    play(scenario)


def test_a_request_that_is_too_long_is_refused() -> None:
    async def scenario(peer: Peer) -> None:
        with pytest.raises(errors.InvalidArgument, match="bytes"):
            await peer.connection.call("x", {"pad": "p" * MAX_PACKET}, {}, 5)

    play(scenario)


@pytest.mark.parametrize(
    ("errno", "kind"),
    [
        ("ENOENT", errors.NotFound),
        ("ESRCH", errors.NotFound),
        ("EEXIST", errors.AlreadyExists),
        ("EBUSY", errors.InvalidState),
        ("ENOSPC", errors.ResourceExhausted),
        ("ETIMEDOUT", errors.DeadlineExceeded),
        ("EHELPER", errors.HelperFailed),
        ("E4095", errors.HelperFailed),
    ],
)
def test_errors_by_errno(errno: str, kind: type[errors.DrupeError]) -> None:
    error = to_error({"errno": errno, "message": "what", "stderr": "why\n"})
    assert type(error) is kind and str(error) == "what: why" and error.details["errno"] == errno
