"""Connections that open at their first use (blocking; the asyncio twin is `api._async.connect`)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from drupe.errors import Unavailable
from drupe.rpc.connection import Connection, RunningCall


class LazyConnection:
    """A connection that `opener` makes when it is first needed. Safe to use from several threads."""

    def __init__(self, opener: Callable[[], Connection]) -> None:
        self._opener = opener
        self._open: Connection | None = None
        self._closed = False
        self._lock = threading.Lock()

    def call(
        self,
        method: str,
        params: Any = None,
        *,
        fds: Mapping[str, int] | None = None,
        timeout_s: float | None = None,
        on_item: Callable[[Any], None] | None = None,
    ) -> Any:
        """As `Connection.call`."""
        return self.opened().call(method, params, fds=fds, timeout_s=timeout_s, on_item=on_item)

    def stream(
        self,
        method: str,
        params: Any = None,
        *,
        fds: Mapping[str, int] | None = None,
        timeout_s: float | None = None,
    ) -> RunningCall:
        """As `Connection.stream`."""
        return self.opened().stream(method, params, fds=fds, timeout_s=timeout_s)

    def opened(self) -> Connection:
        """The connection itself, opened now if need be. Raises Unavailable once closed, or what opening raises."""
        if self._open is not None:
            return self._open
        with self._lock:
            if self._closed:
                raise Unavailable("the connection was closed by this program")
            if self._open is None:
                self._open = self._opener()
            return self._open

    def close(self) -> None:
        """Close it if it was opened; calls raise Unavailable from now on."""
        with self._lock:
            self._closed = True
            connection, self._open = self._open, None
        if connection is not None:
            connection.close()


def daemon_connection(socket: str | None, root: Path | None, run: Path | None) -> LazyConnection:
    """To the daemon, which is started on demand."""

    def open_daemon() -> Connection:
        from drupe.api.daemon import ensure_daemon
        from drupe.rpc.client import Client

        return Client(ensure_daemon(socket, root=root, run=run))

    return LazyConnection(open_daemon)


def embedded_connection(root: Path, run: Path) -> LazyConnection:
    """To a runtime inside this process, on an event loop in a private thread."""

    def open_inside() -> Connection:
        from drupe.rpc.inprocess import InProcessClient
        from drupe.services.embedded import open_embedded

        return InProcessClient.open(lambda: open_embedded(root, run))

    return LazyConnection(open_inside)
