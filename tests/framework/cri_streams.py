"""The streams of the Container Runtime Interface, as a WebSocket client (RFC 6455) of the URL that Exec, Attach and
PortForward answer. Subprotocol v4.channel.k8s.io: each message begins with the number of its channel."""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
from types import TracebackType
from urllib.parse import urlsplit

STDIN, STDOUT, STDERR, ERROR, RESIZE = range(5)
TIMEOUT_S = 30.0
_CLOSE, _PING = 8, 9


class Channels:
    """One connection. It is in the network namespace of whoever makes the socket: `connect` is given that."""

    def __init__(self, url: str, connect: socket.socket) -> None:
        self._socket = connect
        self._socket.settimeout(TIMEOUT_S)
        self._rest = b""
        self._left: dict[int, bytes] = {}  # by channel: what came after what was waited for
        self._upgrade(url)

    def __enter__(self) -> Channels:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def _upgrade(self, url: str) -> None:
        parts = urlsplit(url)
        lines = [
            f"GET {parts.path}?{parts.query} HTTP/1.1", f"Host: {parts.netloc}", "Upgrade: websocket",
            "Connection: Upgrade", f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
            "Sec-WebSocket-Version: 13", "Sec-WebSocket-Protocol: v4.channel.k8s.io", "", "",
        ]  # fmt: skip
        self._socket.sendall("\r\n".join(lines).encode())
        while b"\r\n\r\n" not in self._rest:
            data = self._socket.recv(65536)
            assert data, f"closed: {self._rest!r}"
            self._rest += data
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head + self._rest

    def send(self, channel: int, data: bytes) -> None:
        """One message on a channel."""
        self._frame(2, bytes([channel]) + data)

    def resize(self, rows: int, cols: int) -> None:
        """Tell the terminal's size."""
        self.send(RESIZE, json.dumps({"Width": cols, "Height": rows}).encode())

    def _frame(self, kind: int, data: bytes) -> None:
        mask = os.urandom(4)
        size = len(data)
        head = (
            struct.pack("!BB", 0x80 | kind, 0x80 | size) if size < 126 else struct.pack("!BBH", 0x80 | kind, 0xFE, size)
        )
        assert size < 65536
        self._socket.sendall(head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(data)))

    def receive(self) -> tuple[int, bytes] | None:
        """The next message with its channel; None at the end."""
        whole = b""
        while True:
            try:
                first, second = self._take(2)
            except EOFError:
                return None
            size = second & 0x7F
            if size >= 126:
                size = int.from_bytes(self._take(2 if size == 126 else 8), "big")
            data = self._take(size)
            match first & 15:
                case 8:
                    return None
                case 9:
                    self._frame(10, data)
                    continue
                case 10:
                    continue
            whole += data
            if first & 0x80:
                return whole[0], whole[1:]

    def read_until(self, text: bytes, channel: int = STDOUT) -> bytes:
        """What comes on a channel, up to and with `text`."""
        got = self._left.pop(channel, b"")
        while text not in got:
            message = self.receive()
            assert message is not None, f"the end, after {got!r}"
            if message[0] == channel:
                got += message[1]
        end = got.index(text) + len(text)
        self._left[channel] = got[end:]
        return got[:end]

    def read_all(self) -> dict[int, bytes]:
        """Everything that comes on each channel until the end."""
        got = {channel: data for channel, data in self._left.items() if data}
        while (message := self.receive()) is not None:
            got[message[0]] = got.get(message[0], b"") + message[1]
        return got

    def _take(self, count: int) -> bytes:
        while len(self._rest) < count:
            data = self._socket.recv(65536)
            if not data:
                raise EOFError
            self._rest += data
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken


def exit_code(error: bytes) -> int:
    """The exit code that the message on channel ERROR says (meta/v1 Status)."""
    status = json.loads(error)
    if status["status"] == "Success":
        return 0
    causes = status["details"]["causes"]
    return int(next(cause["message"] for cause in causes if cause["reason"] == "ExitCode"))
