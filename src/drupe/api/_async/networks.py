"""Built-in networks."""

from __future__ import annotations

from collections.abc import Sequence

from drupe.rpc.connection import AsyncConnection
from drupe.spec.control import ListFilter, NetworkCreate, NetworkInfo, NetworkList, Prune, Pruned, Ref


class AsyncNetworks:
    """All built-in bridge networks of a runtime."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def create(
        self,
        name: str,
        *,
        subnet4: str = "",
        subnet6: str = "",
        gateway4: str = "",
        ipv6: bool = True,
        internal: bool = False,
        mtu: int = 1500,
        dns: bool = True,
        labels: dict[str, str] | None = None,
    ) -> NetworkInfo:
        """Make a network. Empty subnets: free ones are chosen. internal: no way out."""
        params = NetworkCreate(
            name=name,
            subnet4=subnet4,
            subnet6=subnet6,
            gateway4=gateway4,
            ipv6=ipv6,
            internal=internal,
            mtu=mtu,
            dns=dns,
            labels=labels or {},
        )
        info: NetworkInfo = await self._connection.call("network.create", params)
        return info

    async def get(self, name: str) -> NetworkInfo:
        """One network. Raises NotFound."""
        info: NetworkInfo = await self._connection.call("network.inspect", Ref(ref=name))
        return info

    async def delete(self, name: str) -> None:
        """Remove a network. Raises InvalidState while a pod is on it."""
        await self._connection.call("network.delete", Ref(ref=name))

    async def prune(self, *, labels: Sequence[str] = ()) -> Pruned:
        """Remove networks that no pod is on."""
        gone: Pruned = await self._connection.call("network.prune", Prune(labels=tuple(labels)))
        return gone

    async def list(self, *, labels: Sequence[str] = ()) -> list[NetworkInfo]:
        """All networks, or those with all of `labels`."""
        found: NetworkList = await self._connection.call("network.list", ListFilter(labels=tuple(labels)))
        return found.networks
