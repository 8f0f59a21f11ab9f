"""A guest's agent that lies, in a real guest: it stands between the line to the host and the agent that is honest.

It runs in the machine, on Python's own library, and is told what to do by the guest's kernel.core_pattern, which
a privileged container may write: `lie HOW ARGUMENT`; or by the pod's host name, `lie-HOW` or `lie-HOW-METHOD`, which is
there from the answer to Setup on. It says `held METHOD` on the console when it has come to that method.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

HEADER = struct.Struct(">IIBB")
REQUEST, RESPONSE, DATA = 1, 2, 3
MARK = b"\xff" + bytes(byte ^ 0x80 for byte in b"drupe agent sync")
TOKEN_BYTES = 16
LATE_S, HOLD_S = 1.5, 10.0
SAID = "\x1b]0;owned\x07\x1b[2J\r\n\u202e" * 5000


def told() -> list[str]:
    """How to lie, and about what; nothing for an honest agent."""
    words = Path("/proc/sys/kernel/core_pattern").read_text().split()
    if words[:1] == ["lie"]:
        return words[1:]
    name = Path("/proc/sys/kernel/hostname").read_text().strip()
    how, _, method = name[4:].partition("-")
    return [] if not name.startswith("lie-") else [how, method] if how in AT_A_METHOD else [name[4:]]


def frame(stream: int, kind: int, data: bytes, flags: int = 0) -> bytes:
    return HEADER.pack(len(data), stream, kind, flags) + data


# -- protobuf, as far as it takes -----------------------------------------------------------------------------------


def varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out, number = out + bytes([number & 0x7F | 0x80]), number >> 7
    return out + bytes([number])


def field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def fields(data: bytes) -> dict[int, bytes | int]:
    """The last value of each; nothing of what is not understood."""
    found: dict[int, bytes | int] = {}
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at, value, shift = at + 1, value | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = number()
        if key & 7 == 2:
            size = number()
            found[key >> 3], at = data[at : at + size], at + size
        else:
            found[key >> 3] = number()
    return found


# -- lies -------------------------------------------------------------------------------------------------------------

Endless = Iterator[bytes]


class Line:
    """asked: method and request of each stream that is open. held: answers for later."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.asked: dict[int, tuple[str, bytes]] = {}
        self.held: list[tuple[float, bytes]] = []
        self.events = 0

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self.port, view[: 1 << 16]) :]

    def flood(self, data: bytes) -> None:
        while told():
            self.send(data)

    def answer(self, stream: int, kind: int, flags: int, data: bytes) -> None:
        """What the honest agent says, or something else."""
        method, request = self.asked.get(stream, ("", b""))
        if kind == RESPONSE:
            self.asked.pop(stream, None)
        words = told()
        honest = frame(stream, kind, data, flags)
        if not words or (method == "Ping" and words[0] in PINGS):
            self.send(honest)
            return
        LIES[words[0]](self, stream, kind, data, method, request, honest)

    def due(self) -> None:
        while self.held and self.held[0][0] < time.monotonic():
            self.send(self.held.pop(0)[1])


AT_A_METHOD = ("hold", "freeze", "die")
PINGS = (*AT_A_METHOD[:1], "only-pings", "late", "errors", "rubbish", "empty", "output", "events")
Lie = Callable[[Line, int, int, bytes, str, bytes, bytes], None]


def wrong_ids(line: Line, stream: int, kind: int, data: bytes, *_: object) -> None:
    line.send(frame(stream + 1, kind, data))


def ids_to_come(line: Line, stream: int, kind: int, data: bytes, *_: object) -> None:
    line.send(frame(stream + 1000, kind, data))


def ids_of_before(line: Line, stream: int, kind: int, data: bytes, *_: object) -> None:
    line.send(frame(1, kind, data))


def silent(*_: object) -> None:
    pass


def late(line: Line, stream: int, kind: int, data: bytes, method: str, request: bytes, honest: bytes) -> None:
    line.held.append((time.monotonic() + LATE_S, honest))


def errors(line: Line, stream: int, kind: int, data: bytes, method: str, request: bytes, honest: bytes) -> None:
    if kind != RESPONSE or method == "ReadOutput":
        line.send(honest)
        return
    status = field(1, 13) + field(2, SAID.encode())
    line.send(frame(stream, RESPONSE, field(1, status)))


def rubbish(line: Line, stream: int, kind: int, data: bytes, *_: object) -> None:
    line.send(frame(stream, kind, field(2, os.urandom(200))))


def empty(line: Line, stream: int, kind: int, data: bytes, *_: object) -> None:
    line.send(frame(stream, kind, b""))


def output(line: Line, stream: int, kind: int, data: bytes, method: str, request: bytes, honest: bytes) -> None:
    """It never ends."""
    if method != "ReadOutput":
        line.send(honest)
        return
    offset = fields(request).get(5, 0)
    more = field(1, b"more and more of it\n" * 10000) + field(3, offset)
    line.send(frame(stream, RESPONSE, field(2, more)))


def events(line: Line, stream: int, kind: int, data: bytes, method: str, request: bytes, honest: bytes) -> None:
    """Ends, and kills for memory, of containers that are somebody else's, or nobody's."""
    line.send(honest)
    hears = [one for one, (name, _) in line.asked.items() if name == "Events"]
    for name in (*told()[1:], "nobody", "../../etc", ""):
        for one in hears:
            line.events += 1
            exit_ = field(1, name.encode()) + field(3, 1) + field(4, 99) + field(5, 1 << 62)
            line.send(frame(one, DATA, field(1, 1 << 40 | line.events) + field(2, exit_)))
            line.send(frame(one, DATA, field(3, field(1, name.encode()))))


done: set[str] = set()  # what is done once in a machine's life


def at_a_method(line: Line, stream: int, kind: int, data: bytes, method: str, request: bytes, honest: bytes) -> None:
    """Honest up to the answer to that method: that comes late, or nothing comes any more."""
    how, where = told()
    if "freeze" in done:
        return
    if method != where or where in done:
        line.send(honest)
        return
    done.update({where, how})
    if how == "hold":
        line.held.append((time.monotonic() + HOLD_S, honest))
    print(f"held {where}", flush=True)
    if how == "die":
        os._exit(1)


LIES: dict[str, Lie] = {
    **dict.fromkeys(AT_A_METHOD, at_a_method),
    "wrong-ids": wrong_ids,
    "ids-to-come": ids_to_come,
    "ids-of-before": ids_of_before,
    "silent": silent,
    "only-pings": silent,
    "late": late,
    "errors": errors,
    "rubbish": rubbish,
    "empty": empty,
    "output": output,
    "events": events,
    "garbage": lambda line, *_: line.flood(os.urandom(1 << 16)),
    "huge": lambda line, *_: line.flood(b"\xff" * 8 + bytes(1 << 16)),
    "endless": lambda line, stream, *_: (
        line.send(HEADER.pack(0xFFFFFFFF, stream, RESPONSE, 0)) or line.flood(bytes(65536))
    ),
    "large": lambda line, *_: line.flood(frame(1, DATA, bytes(4 << 20))),
    "unknown": lambda line, *_: line.flood(frame(1, 9, b"") * 4096),
}


# -- the line ---------------------------------------------------------------------------------------------------------


def find_port() -> int:
    while True:
        for port in Path("/sys/class/virtio-ports").glob("*"):
            node = Path("/dev") / port.name
            if (port / "name").read_text().strip() == "drupe.agent" and node.exists():
                return os.open(node, os.O_RDWR)
        time.sleep(0.05)


def reach(path: str) -> socket.socket:
    while True:
        with contextlib.suppress(OSError):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(path)
            return sock
        time.sleep(0.05)


def cut(data: bytes) -> tuple[list[tuple[int, int, int, bytes]], bytes]:
    """Whole frames, and the rest."""
    found = []
    while len(data) >= HEADER.size:
        size, stream, kind, flags = HEADER.unpack_from(data)
        if len(data) < HEADER.size + size:
            break
        found.append((stream, kind, flags, data[HEADER.size : HEADER.size + size]))
        data = data[HEADER.size + size :]
    return found, data


def note(line: Line, asking: bytes) -> bytes:
    """What the host asks."""
    frames, rest = cut(asking)
    for stream, kind, _, data in frames:
        if kind == REQUEST:
            request = fields(data)
            method, payload = request.get(2, b""), request.get(3, b"")
            assert isinstance(method, bytes) and isinstance(payload, bytes)
            line.asked[stream] = (method.decode(), payload)
    return rest


def serve(port: int, path: str) -> None:
    """One host after the other: each begins with a mark."""
    before = b""
    while True:
        while (at := before.find(MARK)) < 0 or len(before) < at + len(MARK) + TOKEN_BYTES:
            before = before[-4096:] + (os.read(port, 65536) or time.sleep(0.01) or b"")
        begin = at + len(MARK) + TOKEN_BYTES
        with reach(path) as agent:
            agent.sendall(before[at:begin])
            answered = b""
            while len(answered) < begin - at:
                answered += agent.recv(begin - at - len(answered))
            line = Line(port)
            line.send(answered)
            before = relay(line, agent, before[begin:])


def relay(line: Line, agent: socket.socket, asking: bytes) -> bytes:
    """Until the next host begins; what it began with."""
    answering = b""
    agent.sendall(asking)
    asking = note(line, asking)
    while True:
        ready, _, _ = select.select([line.port, agent], [], [], 0.1)
        line.due()
        if line.port in ready:
            data = os.read(line.port, 65536)
            if not data:  # nobody has the other end now
                time.sleep(0.02)
            if MARK in asking + data:
                return asking + data
            agent.sendall(data)
            asking = note(line, asking + data)
        if agent in ready:
            if not (data := agent.recv(1 << 20)):
                return b""
            frames, answering = cut(answering + data)
            for one in frames:
                line.answer(*one)


def follow() -> None:
    """To the root that the first process has made for itself."""
    while not Path("/proc/1/root/sys/class/virtio-ports").is_dir():
        time.sleep(0.05)
    os.chroot("/proc/1/root")
    os.chdir("/")


if __name__ == "__main__":
    follow()
    serve(find_port(), sys.argv[1])
