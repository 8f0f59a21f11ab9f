"""A caller of the Task service that keeps to no rules: what it sends is what the test says."""

from __future__ import annotations

import socket
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from google.protobuf.message import Message

from drupe.rpc.containerd import task_v2_pb2 as task
from drupe.rpc.ttrpc.envelope import Code, request
from drupe.rpc.ttrpc.envelope_pb2 import Response
from drupe.rpc.ttrpc.frames import Decoder, Frame, Kind, Oversized, encode

SERVICE = "containerd.task.v2.Task"
TIMEOUT_S = 20.0
M = TypeVar("M", bound=Message)


class Raw:
    """A connection. A call that is not answered within TIMEOUT_S is a TimeoutError."""

    def __init__(self, path: Path | str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))  # before there is a time limit: with one, a full backlog is an error
        self.socket.settimeout(TIMEOUT_S)
        self._decoder = Decoder()
        self._got: list[Frame] = []
        self._next = 1

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.socket.close()

    def post(
        self, method: str, message: Message | bytes, *, service: str = SERVICE, timeout_s: float | None = None
    ) -> int:
        """Send a request; the stream that its answer comes on."""
        payload = message if isinstance(message, bytes) else message.SerializeToString()
        data = request(service, method, payload, timeout_s=timeout_s, metadata={})
        return self.post_data(data)

    def post_data(self, data: bytes, *, stream: int | None = None) -> int:
        """Send a request frame with any data."""
        if stream is None:
            stream, self._next = self._next, self._next + 2
        self.socket.sendall(encode(Frame(stream, Kind.REQUEST, 0, data)))
        return stream

    def answer(self, stream: int | None = None) -> Response:
        """The answer on a stream, or the next one. ConnectionError when the server hangs up."""
        while not (found := [frame for frame in self._got if stream in (None, frame.stream)]):
            data = self.socket.recv(1 << 16)
            if not data:
                raise ConnectionError("the server hung up")
            self._got += [frame for frame in self._decoder.feed(data) if not isinstance(frame, Oversized)]
        self._got.remove(found[0])
        return Response.FromString(found[0].data)

    def call(self, method: str, message: Message | bytes, *, service: str = SERVICE) -> tuple[Code, str, bytes]:
        """Status, its text, and the answer's bytes."""
        answer = self.answer(self.post(method, message, service=service))
        return Code(answer.status.code), answer.status.message, answer.payload

    def ask(self, method: str, message: Message, answer: type[M]) -> M:
        """A call that must succeed."""
        code, text, payload = self.call(method, message)
        assert code == Code.OK, f"{method}: {code.name} {text}"
        return answer.FromString(payload)

    def create(self, bundle: Path | str, name: str, **fields: object) -> tuple[Code, str]:
        """Create a task; status and text."""
        asked = task.CreateTaskRequest(id=name, bundle=str(bundle), **fields)  # type: ignore[arg-type]
        return self.call("Create", asked)[:2]
