"""What the API needs of a connection, whatever lies behind it: a socket or the handler in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Protocol


class RunningCall(Protocol):
    """A call under way; see `rpc.client.Stream`."""

    def __iter__(self) -> Iterator[Any]: ...
    def __next__(self) -> Any: ...
    @property
    def result(self) -> Any: ...
    def wait(self) -> Any: ...
    def advance(self, timeout_s: float | None = None) -> bool: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...
    def __enter__(self) -> Any: ...
    def __exit__(self, *exc: object) -> None: ...


class Connection(Protocol):
    """Where calls go; see `rpc.client.Client`."""

    def call(
        self,
        method: str,
        params: Any = None,
        *,
        fds: Mapping[str, int] | None = None,
        timeout_s: float | None = None,
        on_item: Callable[[Any], None] | None = None,
    ) -> Any: ...

    def stream(
        self,
        method: str,
        params: Any = None,
        *,
        fds: Mapping[str, int] | None = None,
        timeout_s: float | None = None,
    ) -> RunningCall: ...

    def close(self) -> None: ...


class AsyncRunningCall(Protocol):
    """The asyncio twin of `RunningCall`; see `rpc.aio.AsyncStream`."""

    def __aiter__(self) -> AsyncIterator[Any]: ...
    async def __anext__(self) -> Any: ...
    @property
    def result(self) -> Any: ...
    async def wait(self) -> Any: ...
    async def advance(self, timeout_s: float | None = None) -> bool: ...
    async def close(self) -> None: ...
    async def __aenter__(self) -> Any: ...
    async def __aexit__(self, *exc: object) -> None: ...


class AsyncConnection(Protocol):
    """The asyncio twin of `Connection`; see `rpc.aio.AsyncClient`."""

    async def call(
        self,
        method: str,
        params: Any = None,
        *,
        fds: Mapping[str, int] | None = None,
        timeout_s: float | None = None,
        on_item: Callable[[Any], None] | None = None,
    ) -> Any: ...

    async def stream(
        self,
        method: str,
        params: Any = None,
        *,
        fds: Mapping[str, int] | None = None,
        timeout_s: float | None = None,
    ) -> AsyncRunningCall: ...

    async def close(self) -> None: ...
