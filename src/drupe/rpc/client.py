"""The blocking client of the control socket. Imports no asyncio: the command line pays for this on every start.

Each call has a connection of its own while it runs; finished connections are kept for the next call. So threads never
wait for one another, a slow reader of a stream holds up nobody else, and hanging up is how a call is cancelled.
"""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from drupe.errors import DeadlineExceeded, DrupeError, PermissionDenied, Unavailable
from drupe.linux.unix_sockets import send_fds
from drupe.rpc.frames import Decoder, Frame, Hello, Invoke, check_hello, encode
from drupe.rpc.methods import check_fds, check_params, lookup
from drupe.rpc.progress import Progress
from drupe.rpc.wakeup import wait_readable
from drupe.spec.control import Method

CONNECT_TIMEOUT_S = 10.0
ANSWER_GRACE_S = 2.0  # how much longer than its deadline we wait for the daemon to say so itself
_READ_BYTES = 256 * 1024
_KEEP_IDLE = 4


class Client:
    """Calls the daemon behind the socket at `path`. Safe to use from several threads at once. root: the state
    directory that it must have, "" for any."""

    def __init__(self, path: str, root: str = "") -> None:
        """No I/O: the first call connects. `connect` does it at once."""
        self.path = path
        self.root = root
        self._idle: list[Link] = []
        self._lock = threading.Lock()
        self._closed = False

    @classmethod
    def connect(cls, path: str, timeout_s: float = CONNECT_TIMEOUT_S, *, root: str = "") -> Client:
        """A client that has shaken hands. Raises Unavailable (nobody there, wrong protocol), PermissionDenied, or
        InvalidState (another root)."""
        client = cls(path, root)
        client._idle.append(Link.open(path, timeout_s, root))
        return client

    def call(
        self,
        method: str,
        params: Any = None,
        *,
        fds: Mapping[str, int] | None = None,
        timeout_s: float | None = None,
        on_item: Callable[[Any], None] | None = None,
    ) -> Any:
        """Call and wait for the result record; streamed items go to `on_item`.

        fds stay the caller's. Raises the DrupeError that the daemon answered, DeadlineExceeded after `timeout_s`,
        Unavailable (`may_have_run` True) when the daemon went away meanwhile.
        """
        with self.stream(method, params, fds=fds, timeout_s=timeout_s) as stream:
            for item in stream:
                if on_item is not None:
                    on_item(item)
            return stream.result

    def stream(
        self,
        method: str,
        params: Any = None,
        *,
        fds: Mapping[str, int] | None = None,
        timeout_s: float | None = None,
    ) -> Stream:
        """Start a call whose items are iterated over; closing the stream before its end cancels the call."""
        entry, fds = lookup(method), fds or {}
        check_fds(entry, fds)
        invoke = Invoke(1, method, check_params(entry, params), tuple(fds), timeout_s)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s + ANSWER_GRACE_S
        data = encode(invoke)
        link = self._checkout()
        try:
            link.send(data, tuple(fds.values()), deadline)
        except BaseException:
            link.close()
            raise
        return Stream(self, link, entry, deadline)

    def close(self) -> None:
        """Close idle connections; running calls end as they would."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for link in idle:
            link.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _checkout(self) -> Link:
        while True:
            with self._lock:
                if self._closed:
                    raise Unavailable("the connection to the daemon was closed by this program")
                link = self._idle.pop() if self._idle else None
            if link is None:
                return Link.open(self.path, CONNECT_TIMEOUT_S, self.root)
            if link.is_fresh():
                return link
            link.close()  # the daemon was restarted since

    def checkin(self, link: Link) -> None:
        """Take back the connection of a call that has ended."""
        with self._lock:
            if not self._closed and len(self._idle) < _KEEP_IDLE:
                self._idle.append(link)
                return
        link.close()


class Stream(Iterator[Any]):
    """A running call: iterate over its items, then read `result`. A context manager; closing early cancels."""

    def __init__(self, client: Client, link: Link, method: Method, deadline: float | None) -> None:
        self._client = client
        self._link: Link | None = link
        self._progress = Progress(method)
        self._deadline = deadline

    def __next__(self) -> Any:
        while not self._progress.items:
            if self.advance() and not self._progress.items:
                self._progress.raise_error()
                raise StopIteration
        return self._progress.items.popleft()

    @property
    def result(self) -> Any:
        """What the call answered, once it has ended. Raises its error; Unavailable when it was closed before."""
        return self._progress.result

    def wait(self) -> Any:
        """Wait for the end and return the result; items are kept for iteration."""
        while not self.advance():
            pass
        return self.result

    def advance(self, timeout_s: float | None = None) -> bool:
        """Wait at most `timeout_s` for news (0: take what is there); True once the call has ended."""
        if self._link is None:
            return True
        limit = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            self._progress.take(self._link.receive(_earlier(limit, self._deadline)))
        except TimeoutError:
            if self._deadline is not None and time.monotonic() >= self._deadline:
                name = self._progress.method.name
                self._progress.break_off(DeadlineExceeded(f"{name} took too long", may_have_run=True))
        except DrupeError as error:
            self._progress.break_off(error)
        self._release_when_ended()
        return self._progress.ended

    def fileno(self) -> int:
        """Readable when `advance(0)` may have news (for select); -1 once ended."""
        return -1 if self._link is None else self._link.sock.fileno()

    def close(self) -> None:
        """Cancel the call unless it has ended."""
        self._progress.cancel()
        self._release_when_ended()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _release_when_ended(self) -> None:
        link = self._link
        if link is None or not self._progress.ended:
            return
        self._link = None
        if self._progress.broken:
            link.close()
        else:
            self._client.checkin(link)


class Link:
    """One connected socket, used by one call at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._decoder = Decoder()
        self._inbox: deque[Frame] = deque()

    @classmethod
    def open(cls, path: str, timeout_s: float, root: str = "") -> Link:
        """Connect and shake hands. root: as `Client`."""
        link = cls(_connect(path, timeout_s))
        try:
            deadline = time.monotonic() + timeout_s
            with suppress(Unavailable):  # a peer that hung up has said why
                link.send(encode(Hello()), (), deadline)
            check_hello(link.receive(deadline), root)
        except TimeoutError:
            link.close()
            raise Unavailable(f"the daemon at {path} did not answer within {timeout_s:g} s") from None
        except BaseException:
            link.close()
            raise
        return link

    def is_fresh(self) -> bool:
        """Whether an idle connection can still be used: open, and nothing unasked has arrived."""
        try:
            self.sock.setblocking(False)
            self.sock.recv(1, socket.MSG_PEEK)
        except OSError as error:
            return isinstance(error, BlockingIOError)
        return False

    def send(self, data: bytes, fds: tuple[int, ...], deadline: float | None) -> None:
        """Send all of `data`, the descriptors with its first byte. Raises Unavailable, TimeoutError."""
        self._set_timeout(deadline)
        try:
            sent = send_fds(self.sock, data, fds) if fds else self.sock.send(data)
            if sent < len(data):
                self.sock.sendall(memoryview(data)[sent:])
        except TimeoutError:
            raise
        except OSError as error:
            raise gone(error) from None

    def receive(self, deadline: float | None) -> Frame:
        """The next frame. Raises TimeoutError after `deadline`, Unavailable when the peer hung up, DataLoss."""
        while not self._inbox:
            wait_readable(self.sock, deadline)
            self._set_timeout(deadline)
            try:
                data = self.sock.recv(_READ_BYTES)
            except BlockingIOError:
                raise TimeoutError from None
            except TimeoutError:
                raise
            except OSError as error:
                raise gone(error) from None
            if not data:
                raise gone(None)
            self._inbox.extend(frame for frame, _ in self._decoder.feed(data))
        return self._inbox.popleft()

    def close(self) -> None:
        """Hang up."""
        self.sock.close()

    def _set_timeout(self, deadline: float | None) -> None:
        self.sock.settimeout(None if deadline is None else max(0.0, deadline - time.monotonic()))


def gone(error: OSError | None) -> Unavailable:
    """The daemon went away in the middle of a call."""
    cause = "" if error is None else error.strerror or str(error)
    return Unavailable(
        "lost the connection to the daemon",
        cause=cause,
        may_have_run=True,
        hint="running pods are not affected; look with `drupe ps`",
    )


def connect_error(path: str, error: OSError) -> DrupeError:
    """What a failed connect(2) means to the user."""
    if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
        return Unavailable(f"no daemon answers at {path}", hint="start it with `drupe serve`")
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionDenied(f"may not connect to {path}", hint="run as root or as the daemon's user")
    return Unavailable(f"cannot connect to {path}", cause=error.strerror or str(error))


def _connect(path: str, timeout_s: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout_s)
    try:
        sock.connect(path)
    except OSError as error:
        sock.close()
        raise connect_error(path, error) from None
    return sock


def _earlier(a: float | None, b: float | None) -> float | None:
    if a is None or b is None:
        return b if a is None else a
    return min(a, b)
