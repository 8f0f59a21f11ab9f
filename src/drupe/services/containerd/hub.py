"""What the daemon serves to containerds: a socket for each of their namespaces and each kind that shims were
called by. (containerd 1.6 does not say in a call whose namespace it means.) The relay listens there, and goes on doing
so while the daemon is restarted."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from drupe.errors import InvalidArgument
from drupe.keeper.client import Keeper
from drupe.rpc.ttrpc import Server, Services
from drupe.runtime.core import Core
from drupe.sandboxers.kinds import kind_of
from drupe.services.containerd import leftovers
from drupe.services.containerd.doors import Doors
from drupe.services.containerd.peers import Door, Peer
from drupe.services.containerd.relay import Relay
from drupe.services.containerd.sandboxes import Sandboxes
from drupe.services.containerd.service import TaskService
from drupe.services.containerd.shimsandboxes import SandboxService
from drupe.services.containerd.streams import StreamService
from drupe.services.containerd.tasks import Tasks


class Hub:
    """One per daemon. `open` serves those that are known from before. relay: open."""

    def __init__(self, core: Core, keeper: Keeper, relay: Relay) -> None:
        self.core = core
        self.tasks = Tasks(core, keeper)
        self._relay = relay
        self._servers: dict[str, Server] = {}
        self.sandboxes = Sandboxes(core)
        self._doors = Doors(core, keeper)

    async def open(self) -> None:
        """Serve all containerds that have used this daemon before. Raises Unavailable without a relay."""
        await self.tasks.remove_strays()
        self.core.node.spawn(self.tasks.tell_memory(), "OOM events for containerd")
        self.core.node.spawn(self.sandboxes.watch(), "ends of containerd's sandboxes")
        self.core.node.spawn(leftovers.watch(self.tasks, self.sandboxes), "sandboxes that containerd does not know")
        self.core.node.spawn(self._doors.watch(), "ports of containerd's pods")
        for peer in self.tasks.peers:
            self.tasks.outbox(peer)
            for door in peer.doors:
                await self._serve(peer, door)

    async def close(self) -> None:
        """Let go. The relay is needed until the last task is gone."""
        await self.tasks.settle()
        self._doors.close()
        for server in self._servers.values():
            await server.close()
        self._relay.close(end=not self.tasks.needed)
        await self.tasks.close()

    async def address(self, peer: Peer, door: Door) -> str:
        """Where tasks of a containerd are served."""
        if door.kind:
            kind_of(door.kind)
        if not peer.grpc or not door.namespace:
            raise InvalidArgument("containerd's address or its namespace is missing")
        known = self.tasks.peers.meet(msgspec.structs.replace(peer, doors=(door,)))
        return f"unix://{await self._serve(known, door)}"

    def _services(self, peer: Peer, door: Door) -> Services:
        each = (
            TaskService(self.tasks, peer, door),
            SandboxService(self.sandboxes, peer, door),
            StreamService(self.tasks.streams, peer, door),
        )
        return {name: methods for service in each for name, methods in service.services().items()}

    async def _serve(self, peer: Peer, door: Door) -> Path:
        name = hashlib.sha256(f"{peer.key}\0{door.namespace}\0{door.kind}".encode()).hexdigest()[:16] + ".sock"
        if name not in self._servers:
            self._servers[name] = Server(self._services(peer, door))
            try:
                await self._relay.listen(name, self._servers[name].serve)
            except BaseException:
                del self._servers[name]
                raise
        return self._relay.directory / name
