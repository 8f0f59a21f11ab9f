"""The complete API: a runtime, behind a daemon or inside this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from drupe.api._async.connect import AsyncLazyConnection, daemon_connection, embedded_connection
from drupe.api._async.containers import AsyncContainers
from drupe.api._async.images import AsyncImages
from drupe.api._async.networks import AsyncNetworks
from drupe.api._async.pods import AsyncPods
from drupe.api._async.sandbox import AsyncSandbox
from drupe.api._async.snapshots import AsyncSnapshots
from drupe.api._async.system import AsyncSystem
from drupe.api._async.volumes import AsyncVolumes
from drupe.rpc.connection import AsyncConnection
from drupe.spec.status import Event


class AsyncRuntime:
    """Pods, containers, images, networks and volumes of one runtime. A context manager.

    AsyncRuntime() talks to the daemon of this host and starts it when none runs; AsyncRuntime.embedded() needs no
    daemon. Nothing is opened before the first call. Pods outlive the runtime object and the daemon.
    """

    def __init__(
        self, socket: str | Path | None = None, *, root: str | Path | None = None, run: str | Path | None = None
    ) -> None:
        """socket: $DRUPE_SOCKET, else drupe.sock in `run`. root, run: for a daemon that must be started."""
        self._bind(
            daemon_connection(
                None if socket is None else str(socket),
                None if root is None else Path(root),
                None if run is None else Path(run),
            )
        )

    def _bind(self, connection: AsyncConnection) -> None:
        self.connection = connection
        self.pods = AsyncPods(connection)
        self.containers = AsyncContainers(connection)
        self.images = AsyncImages(connection)
        self.networks = AsyncNetworks(connection)
        self.volumes = AsyncVolumes(connection)
        self.snapshots = AsyncSnapshots(connection)
        self.system = AsyncSystem(connection)

    @classmethod
    def embedded(cls, root: str | Path | None = None, run: str | Path | None = None) -> AsyncRuntime:
        """A runtime inside this process, over directories that no daemon has open (AlreadyExists otherwise).

        root: images, volumes, journal ($DRUPE_ROOT, /var/lib/drupe). run: sockets, bundles ($DRUPE_RUN, /run/drupe).
        Needs the daemon's privileges.
        """
        from drupe.api.daemon import default_root, default_run

        places = (Path(root or default_root()).absolute(), Path(run or default_run()).absolute())
        return cls.over(embedded_connection(*places))

    @classmethod
    def over(cls, connection: AsyncConnection) -> AsyncRuntime:
        """A runtime over a connection that exists already."""
        runtime = cls.__new__(cls)
        runtime._bind(connection)
        return runtime

    def sandbox(self, image: str = "", argv: Sequence[str] = (), **options: Any) -> AsyncSandbox:
        """A sandbox of this runtime; options as AsyncSandbox."""
        return AsyncSandbox(image, argv, runtime=self, **options)

    def events(self, **filters: Any) -> AsyncIterator[Event]:
        """As `system.events`."""
        return self.system.events(**filters)

    async def close(self) -> None:
        """Close the connection; an embedded runtime lets go of its directories. Pods go on."""
        await self.connection.close()

    async def __aenter__(self) -> AsyncRuntime:
        if isinstance(self.connection, AsyncLazyConnection):
            await self.connection.opened()  # a runtime that can't be reached says so here, not in the middle
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
