"""Connections that open at their first use (asyncio; the blocking twin is `api._sync.connect`)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from drupe.errors import Unavailable
from drupe.rpc.connection import AsyncConnection, AsyncRunningCall


class AsyncLazyConnection:
    """A connection that `opener` makes when it is first needed. Belongs to the event loop that uses it first."""

    def __init__(self, opener: Callable[[], Awaitable[AsyncConnection]]) -> None:
        self._opener = opener
        self._open: AsyncConnection | None = None
        self._closed = False
        self._lock = asyncio.Lock()

    async def call(
        self,
        method: str,
        params: Any = None,
        *,
        fds: Mapping[str, int] | None = None,
        timeout_s: float | None = None,
        on_item: Callable[[Any], None] | None = None,
    ) -> Any:
        """As `AsyncConnection.call`."""
        connection = await self.opened()
        return await connection.call(method, params, fds=fds, timeout_s=timeout_s, on_item=on_item)

    async def stream(
        self,
        method: str,
        params: Any = None,
        *,
        fds: Mapping[str, int] | None = None,
        timeout_s: float | None = None,
    ) -> AsyncRunningCall:
        """As `AsyncConnection.stream`."""
        connection = await self.opened()
        return await connection.stream(method, params, fds=fds, timeout_s=timeout_s)

    async def opened(self) -> AsyncConnection:
        """The connection itself, opened now if need be. Raises Unavailable once closed, or what opening raises."""
        if self._open is not None:
            return self._open
        async with self._lock:
            if self._closed:
                raise Unavailable("the connection was closed by this program")
            if self._open is None:
                self._open = await self._opener()
            return self._open

    async def close(self) -> None:
        """Close it if it was opened; calls raise Unavailable from now on."""
        async with self._lock:
            self._closed = True
            connection, self._open = self._open, None
        if connection is not None:
            await connection.close()


def daemon_connection(socket: str | None, root: Path | None, run: Path | None) -> AsyncLazyConnection:
    """To the daemon, which is started on demand."""

    async def open_daemon() -> AsyncConnection:
        from drupe.api.daemon import ensure_daemon, wanted_root
        from drupe.rpc.aio import AsyncClient

        return AsyncClient(await asyncio.to_thread(ensure_daemon, socket, root=root, run=run), wanted_root(root))

    return AsyncLazyConnection(open_daemon)


def embedded_connection(root: Path, run: Path) -> AsyncLazyConnection:
    """To a runtime inside this process, on the caller's event loop."""

    async def open_inside() -> AsyncConnection:
        from drupe.rpc.inprocess import AsyncInProcessClient
        from drupe.services.embedded import open_embedded

        return await AsyncInProcessClient.open(open_embedded(root, run))

    return AsyncLazyConnection(open_inside)
