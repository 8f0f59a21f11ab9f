"""Built-in networks."""

from __future__ import annotations

from collections.abc import Sequence

from drupe.rpc.connection import AsyncConnection
from drupe.spec import Attachment
from drupe.spec.control import ListFilter, NetworkCreate, NetworkInfo, NetworkList, Prune, Pruned, Ref
from drupe.spec.membership import NetworkConnect, NetworkDisconnect
from drupe.spec.status import PodStatus


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

    async def connect(
        self,
        name: str,
        pod: str,
        *,
        ipv4: str | None = None,
        ipv6: str | None = None,
        mac: str | None = None,
        interface: str | None = None,
        aliases: Sequence[str] = (),
    ) -> PodStatus:
        """Have a running pod join a network. interface: its name inside, the next free one by default. Raises NotFound,
        AlreadyExists, Unsupported (a kind or a network mode that cannot)."""
        wanted = Attachment(network=name, ipv4=ipv4, ipv6=ipv6, mac=mac, interface=interface, aliases=tuple(aliases))
        answer: PodStatus = await self._connection.call("network.connect", NetworkConnect(ref=pod, attachment=wanted))
        return answer

    async def disconnect(self, name: str, pod: str) -> PodStatus:
        """Have a running pod leave a network. Raises NotFound, InvalidState when it cannot be without it."""
        answer: PodStatus = await self._connection.call("network.disconnect", NetworkDisconnect(ref=pod, network=name))
        return answer

    async def prune(self, *, labels: Sequence[str] = ()) -> Pruned:
        """Remove networks that no pod is on."""
        gone: Pruned = await self._connection.call("network.prune", Prune(labels=tuple(labels)))
        return gone

    async def list(self, *, labels: Sequence[str] = ()) -> list[NetworkInfo]:
        """All networks, or those with all of `labels`."""
        found: NetworkList = await self._connection.call("network.list", ListFilter(labels=tuple(labels)))
        return found.networks
