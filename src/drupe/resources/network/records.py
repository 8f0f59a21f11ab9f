"""What the network keeps about pods, what it hands out, and what it needs from the rest of drupe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from drupe.spec.base import Record
from drupe.spec.network import EgressPolicy, Mode
from drupe.spec.status import Endpoint, PublishedPort

NETWORKS = "network"  # kinds of records
PODS = "network.pod"
MACHINE_LINKS = 0x64726D  # the link group of what joins a pod's interfaces to its machine: not part of its network


class Records(Protocol):
    """Durable plain data by kind and key; a put is durable when it returns."""

    def put(self, kind: str, key: str, data: dict[str, Any]) -> None: ...
    def get(self, kind: str, key: str) -> dict[str, Any] | None: ...
    def delete(self, kind: str, key: str) -> None: ...
    def all(self, kind: str) -> dict[str, dict[str, Any]]: ...


class Finished(Protocol):
    """How a helper program ended."""

    exit: int
    signal: int
    stdout: str
    stderr: str
    timed_out: bool


class Keeper(Protocol):
    """The keeper's calls that the network uses (docs/keeper.md)."""

    async def netns_socket(self, netns: Path | str, family: int, type: int, protocol: int = 0) -> int: ...

    async def netns_open(self, netns: Path | str, path: str) -> int: ...

    async def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        netns: Path | str | None = None,
        stdin: str | None = None,
        timeout_s: float = 30.0,
    ) -> Finished: ...


class HostNet(NamedTuple):
    """Where the host's network is configured. dns_port: where the resolver of each bridge listens."""

    resolv_conf: Path = Path("/etc/resolv.conf")
    sysctl: Path = Path("/proc/sys/net")
    dns_port: int = 53


class PodNetwork(Record):
    """What a pod got. dns_*: for its resolv.conf, the pod's own wishes already weighed in."""

    mode: Mode
    endpoints: list[Endpoint] = []
    ports: list[PublishedPort] = []
    dns_servers: list[str] = []
    dns_searches: list[str] = []


class Counters(NamedTuple):
    """What a pod's interfaces (without loopback) have carried, as the pod sees it."""

    rx_bytes: int = 0
    tx_bytes: int = 0
    rx_packets: int = 0
    tx_packets: int = 0


class Wire(Record):
    """One veth pair of a pod: a member of a built-in network. Addresses without prefix; "" is none."""

    network: str
    interface: str
    host_interface: str
    mac: str
    ipv4: str
    ipv6: str = ""
    names: list[str] = []


class Attached(Record):
    """The network of one pod as journalled: written before anything is made, removed after everything is undone.

    names: what other pods of a network may look up. servers: where the pod's questions are forwarded ([]: as the host
    does). cni: the configuration and results that a later DEL needs.
    """

    pod_id: str
    pod_name: str
    mode: Mode
    netns: str
    result: PodNetwork
    names: list[str] = []
    wires: list[Wire] = []
    ports: list[PublishedPort] = []
    policy: EgressPolicy | None = None
    servers: list[str] = []
    cni: dict[str, Any] = {}
