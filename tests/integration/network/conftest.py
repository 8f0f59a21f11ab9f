"""Each test runs on a private host with an outside world behind its uplink."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from framework import netlab
from framework.netlab import LocalKeeper, MemoryRecords, Peer

from drupe.resources.network.manager import NetworkManager
from drupe.resources.network.records import HostNet


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


Pods = Callable[[], Peer]
