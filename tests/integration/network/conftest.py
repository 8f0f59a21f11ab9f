"""Each test runs on a private host with an outside world behind its uplink."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from drupe.resources.network.manager import NetworkManager
from drupe.resources.network.records import HostNet
from framework import netlab
from framework.netlab import LocalKeeper, MemoryRecords, Peer


class Lab:
    """A private host. Use `manager()` inside the event loop."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.records = MemoryRecords()
        self.keeper = LocalKeeper()
        self.peers: list[Peer] = []
        self.world = netlab.outside_world()
        self.resolv_conf = directory / "resolv.conf"
        self.resolv_conf.write_text(f"nameserver {netlab.OUT4}\nsearch lab.test\n")

    def manager(self) -> NetworkManager:
        host = HostNet(resolv_conf=self.resolv_conf)
        return NetworkManager(run=self.directory / "run", records=self.records, keeper=self.keeper, host=host)

    def pod(self) -> Peer:
        self.peers.append(Peer())
        return self.peers[-1]

    def bridge_netfilter(self, on: bool) -> None:
        """br_netfilter: whether bridged frames pass the IP hooks too. Hosts come both ways."""
        for kind in ("iptables", "ip6tables"):
            path = Path("/proc/sys/net/bridge") / f"bridge-nf-call-{kind}"
            if path.exists():
                path.write_text("1" if on else "0")
            elif on:
                pytest.skip("no br_netfilter here")

    def close(self) -> None:
        for peer in [*self.peers, self.world]:
            peer.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with netlab.private_host():
        made = Lab(tmp_path)
        try:
            yield made
        finally:
            made.close()


@pytest.fixture(params=[False, True], ids=["plain", "br_netfilter"])
def both_labs(request: pytest.FixtureRequest, lab: Lab) -> Lab:
    lab.bridge_netfilter(request.param)
    return lab
