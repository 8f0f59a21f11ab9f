"""How a verb reaches the daemon: one blocking client on the control socket, started on demand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drupe.rpc.client import Client


def connect() -> Client:
    """A client of the daemon, which is started when none runs. Raises Unavailable when it can't be reached,
    InvalidState when it has another state directory than --root says."""
    from drupe.api.daemon import ensure_daemon, wanted_root
    from drupe.rpc.client import Client

    return Client.connect(ensure_daemon(), root=wanted_root())


def connect_running() -> Client:
    """A client of a daemon that runs already. Raises Unavailable when none does."""
    from drupe.api.daemon import socket_path, wanted_root
    from drupe.rpc.client import Client

    return Client.connect(socket_path(), timeout_s=0.5, root=wanted_root())


def call(method: str, params: Any = None, **options: Any) -> Any:
    """One call and its result; options as `Client.call`."""
    with connect() as client:
        return client.call(method, params, **options)
