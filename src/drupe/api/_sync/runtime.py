# Written by scripts/unasync.py from api/_async/runtime.py; change that file, not this one.
"""The complete API: a runtime, behind a daemon or inside this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from drupe.api._sync.connect import LazyConnection, daemon_connection, embedded_connection
from drupe.api._sync.containers import Containers
from drupe.api._sync.images import Images
from drupe.api._sync.networks import Networks
from drupe.api._sync.pods import Pods
from drupe.api._sync.sandbox import Sandbox
from drupe.api._sync.snapshots import Snapshots
from drupe.api._sync.system import System
from drupe.api._sync.volumes import Volumes
from drupe.rpc.connection import Connection
from drupe.spec.status import Event


class Runtime:
    """Pods, containers, images, networks and volumes of one runtime. A context manager.

    Runtime() talks to the daemon of this host and starts it when none runs; Runtime.embedded() needs no
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

    def _bind(self, connection: Connection) -> None:
        self.connection = connection
        self.pods = Pods(connection)
        self.containers = Containers(connection)
        self.images = Images(connection)
        self.networks = Networks(connection)
        self.volumes = Volumes(connection)
        self.snapshots = Snapshots(connection)
        self.system = System(connection)

    @classmethod
    def embedded(cls, root: str | Path | None = None, run: str | Path | None = None) -> Runtime:
        """A runtime inside this process, over directories that no daemon has open (AlreadyExists otherwise).

        root: images, volumes, journal ($DRUPE_ROOT, /var/lib/drupe). run: sockets, bundles ($DRUPE_RUN, /run/drupe).
        Needs the daemon's privileges.
        """
        from drupe.api.daemon import default_root, default_run

        places = (Path(root or default_root()).absolute(), Path(run or default_run()).absolute())
        return cls.over(embedded_connection(*places))

    @classmethod
    def over(cls, connection: Connection) -> Runtime:
        """A runtime over a connection that exists already."""
        runtime = cls.__new__(cls)
        runtime._bind(connection)
        return runtime

    def sandbox(self, image: str = "", argv: Sequence[str] = (), **options: Any) -> Sandbox:
        """A sandbox of this runtime; options as Sandbox."""
        return Sandbox(image, argv, runtime=self, **options)

    def events(self, **filters: Any) -> Iterator[Event]:
        """As `system.events`."""
        return self.system.events(**filters)

    def close(self) -> None:
        """Close the connection; an embedded runtime lets go of its directories. Pods go on."""
        self.connection.close()

    def __enter__(self) -> Runtime:
        if isinstance(self.connection, LazyConnection):
            self.connection.opened()  # a runtime that can't be reached says so here, not in the middle
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
