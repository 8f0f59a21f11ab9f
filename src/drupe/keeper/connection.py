"""A control socket (the keeper's, or that of a kernel it runs): packets, descriptors, requests that wait for their
answers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from drupe import errors
from drupe.keeper.records import Answer
from drupe.linux.unix_sockets import recv_fds, send_fds
from drupe.rpc.timeouts import timeout

MAX_PACKET = 192 * 1024
SOCKET_NAME = "keeper.sock"

_ERRORS: dict[str, type[errors.DrupeError]] = {
    "ENOENT": errors.NotFound,
    "ESRCH": errors.NotFound,
    "ENXIO": errors.NotFound,
    "ENODEV": errors.NotFound,
    "EEXIST": errors.AlreadyExists,
    "EBUSY": errors.InvalidState,
    "ENOTTY": errors.InvalidState,
    "ENOTEMPTY": errors.InvalidState,
    "EPERM": errors.PermissionDenied,
    "EACCES": errors.PermissionDenied,
    "EROFS": errors.PermissionDenied,
    "ENOSPC": errors.ResourceExhausted,
    "EDQUOT": errors.ResourceExhausted,
    "EMFILE": errors.ResourceExhausted,
    "ENFILE": errors.ResourceExhausted,
    "ENOMEM": errors.ResourceExhausted,
    "EUSERS": errors.ResourceExhausted,
    "EAGAIN": errors.ResourceExhausted,
    "ETIMEDOUT": errors.DeadlineExceeded,
    "EINVAL": errors.InvalidArgument,
    "EBADF": errors.InvalidArgument,
    "EMSGSIZE": errors.InvalidArgument,
    "ENAMETOOLONG": errors.InvalidArgument,
    "ELOOP": errors.InvalidArgument,
    "ENOTDIR": errors.InvalidArgument,
    "EISDIR": errors.InvalidArgument,
    "EPROTONOSUPPORT": errors.Unavailable,
    "ENOSYS": errors.Unavailable,
}


def to_error(data: Mapping[str, Any]) -> errors.DrupeError:
    """The drupe error for the `error` of an answer; its errno is in ``details["errno"]``, stderr in `cause`."""
    name = str(data.get("errno", ""))
    kind = _ERRORS.get(name, errors.HelperFailed)
    may_have_run = name in ("EHELPER", "ETIMEDOUT")
    cause = str(data.get("stderr", "")).strip()
    return kind(str(data.get("message", "")), cause=cause, may_have_run=may_have_run, errno=name)


def open_socket(run_dir: Path, name: str = SOCKET_NAME) -> socket.socket:
    """A connected, not blocking socket. The name goes through /proc/self/fd: a socket's path is short (unix(7)).

    Raises OSError: FileNotFoundError or ConnectionRefusedError when nobody serves it.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        handle = os.open(run_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sock.connect(f"/proc/self/fd/{handle}/{name}")
        finally:
            os.close(handle)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


class Connection:
    """Requests and answers over one socket. peer: who is at its other end, in words. `on_event` gets each event,
    `on_lost` is called once when it closes."""

    def __init__(
        self,
        sock: socket.socket,
        on_event: Callable[[dict[str, Any]], None],
        on_lost: Callable[[], None],
        *,
        peer: str = "the keeper",
    ) -> None:
        self._sock = sock
        self._on_event = on_event
        self._on_lost = on_lost
        self._peer = peer
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, tuple[asyncio.Future[Answer], Callable[[Answer], None] | None]] = {}
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._last_id = 0
        self.closed = False
        self._loop.add_reader(sock, self._readable)

    async def call(
        self,
        op: str,
        fields: Mapping[str, Any],
        fds: Mapping[str, int],
        timeout_s: float | None,
        on_answer: Callable[[Answer], None] | None = None,
    ) -> Answer:
        """Sends one request and waits for its answer.

        on_answer: takes the answer, and owns its descriptors, before any later event is handled; the caller gets the
        fields only.

        Raises the drupe error that the answer carries, DeadlineExceeded, Unavailable when the keeper has gone.
        """
        if self.closed:
            raise errors.Unavailable(f"the connection to {self._peer} is closed")
        self._last_id += 1
        number = self._last_id
        packet: dict[str, Any] = {"id": number, "op": op, **fields}
        if fds:
            packet["fds"] = list(fds)
        data = msgspec.json.encode(packet)
        if len(data) > MAX_PACKET:
            raise errors.InvalidArgument(
                f"the request {op} to {self._peer} has {len(data)} bytes, {MAX_PACKET} at most"
            )
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._waiting[number] = (future, on_answer)
        try:
            self._send(data, list(fds.values()))
            async with timeout(timeout_s):
                return await future
        except BaseException as error:
            # An answer that came just before we were cancelled has nobody to own its descriptors.
            if future.done() and not future.cancelled() and future.exception() is None:
                _close_all(future.result().fds.values())
            if isinstance(error, TimeoutError):
                text = f"{self._peer} did not answer {op} within {timeout_s} s"
                raise errors.DeadlineExceeded(text, may_have_run=True) from None
            raise
        finally:
            self._waiting.pop(number, None)

    def close(self) -> None:
        """Closes the socket; waiting requests fail with Unavailable. Does not call `on_lost`."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        for _, fds in self._queue:
            _close_all(fds)
        self._queue.clear()
        for future, _ in self._waiting.values():
            if not future.done():
                future.set_exception(errors.Unavailable(f"{self._peer} has gone", may_have_run=True))

    # ── the socket ──

    def _send(self, data: bytes, fds: list[int]) -> None:
        if not self._queue and self._try_send(data, fds):
            return
        if not self._queue:
            self._loop.add_writer(self._sock, self._writable)
        # The caller may close its own before these are sent.
        self._queue.append((data, [os.dup(fd) for fd in fds]))

    def _try_send(self, data: bytes, fds: list[int]) -> bool:
        try:
            send_fds(self._sock, data, fds)
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionError):
            raise errors.Unavailable(f"{self._peer} has gone") from None
        return True

    def _writable(self) -> None:
        while self._queue:
            data, fds = self._queue[0]
            try:
                if not self._try_send(data, fds):
                    return
            except errors.Unavailable:
                self._lost()
                return
            self._queue.popleft()
            _close_all(fds)
        self._loop.remove_writer(self._sock)

    def _readable(self) -> None:
        for _ in range(64):
            try:
                data, fds = recv_fds(self._sock, MAX_PACKET)
            except BlockingIOError:
                return
            except OSError:
                data, fds = b"", []
            if not data:
                self._lost()
                return
            self._handle(msgspec.json.decode(data), fds)
            if self.closed:
                return

    def _lost(self) -> None:
        if not self.closed:
            self.close()
            self._on_lost()

    def _handle(self, packet: dict[str, Any], fds: list[int]) -> None:
        if "event" in packet:
            self._on_event(packet)
            return
        future, on_answer = self._waiting.pop(packet.get("id") or 0, (None, None))
        if future is None or future.done():
            _close_all(fds)
        elif "error" in packet:
            future.set_exception(to_error(packet["error"]))
        else:
            answer = Answer(packet["ok"], dict(zip(packet.get("fds", []), fds, strict=True)))
            if on_answer is not None:
                on_answer(answer)
                answer = Answer(answer.ok, {})
            future.set_result(answer)


def _close_all(fds: Any) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
