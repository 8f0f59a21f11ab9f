"""Who is who on the built-in networks: names to addresses and back, as one pod may see them."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address

from drupe.resources.network.records import Attached


class Directory:
    """Looks names up among pods. pods: the manager's table; call `changed` when it has."""

    def __init__(self, pods: Mapping[str, Attached]) -> None:
        self._pods = pods
        self._by_address: dict[str, Attached] | None = None
        self._by_name: dict[tuple[str, str], list[str]] = {}

    def changed(self) -> None:
        self._by_address = None

    def pod_at(self, address: str) -> Attached | None:
        """The pod that has the address."""
        return self._index().get(address)

    def addresses(self, asking: Attached, name: str) -> list[str] | None:
        """The addresses of a name on the networks that the asking pod is in; None when nobody there has it.

        name: a pod's, host's or container's name or an alias; or one of them with ".network".
        """
        self._index()
        found: list[str] = []
        known = False
        for wire in asking.wires:
            short = name.removesuffix(f".{wire.network.lower()}")
            for key in dict.fromkeys((name, short)):
                at = self._by_name.get((wire.network, key))
                known = known or at is not None
                found += at or []
        return list(dict.fromkeys(found)) if known else None

    def name_at(self, asking: Attached, address: str) -> str | None:
        """The name of the pod at an address, if it shares a network with the asking one; "" for an unnamed one."""
        pod = self.pod_at(address)
        mine = {wire.network for wire in asking.wires}
        shared = pod and any(address in (w.ipv4, w.ipv6) and w.network in mine for w in pod.wires)
        return pod.pod_name.lower() if pod and shared else None

    def _index(self) -> dict[str, Attached]:
        if self._by_address is None:
            self._by_address, self._by_name = {}, {}
            for pod in self._pods.values():
                self._enter(pod, self._by_address)
        return self._by_address

    def _enter(self, pod: Attached, by_address: dict[str, Attached]) -> None:
        for wire in pod.wires:
            for address in filter(None, (wire.ipv4, wire.ipv6)):
                by_address[str(ip_address(address))] = pod
                for name in dict.fromkeys([*pod.names, *wire.names]):
                    self._by_name.setdefault((wire.network, name), []).append(address)
