"""Interfaces of a pod's namespace joined to taps: real frames go through, and undoing leaves nothing."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from drupe.linux import tuntap
from drupe.resources.network.endpoints import joining
from drupe.resources.network.endpoints.contract import Joined, Wanted
from framework import netlab
from framework.netlab import Peer, inside

pytestmark = pytest.mark.root

HOST, POD = "10.66.0.1", "10.66.0.2"
HOST6, POD6 = "fd66::1", "fd66::2"


@contextmanager
def open_in(pod: Peer, tap: str, *, queues: int = 1) -> Iterator[int]:
    """The tap as a VMM opens it."""
    with inside(pod.netns):
        fd = tuntap.open_tap(tap, queues=queues, offload=False)
    try:
        yield fd
    finally:
        os.close(fd)


def frame_from(fd: int, wanted: bytes, timeout_s: float = 5.0) -> bytes:
    """The first frame at the tap that has `wanted` in it."""
    while True:
        ready, _, _ = select.select([fd], [], [], timeout_s)
        assert ready, f"no frame with {wanted!r} came out of the tap"
        frame = os.read(fd, 65536)
        if wanted in frame:
            return frame


def datagram(source_mac: str, target_mac: str, text: bytes) -> bytes:
    """An Ethernet frame with a UDP packet from POD to HOST, port 9999, without a checksum of UDP."""
    udp = struct.pack("!HHHH", 1234, 9999, 8 + len(text), 0) + text
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, *map(socket.inet_aton, (POD, HOST)))
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + head[12:]
    return bytes.fromhex((target_mac + source_mac).replace(":", "")) + b"\x08\0" + head + udp


def link_mac(where: str, name: str) -> str:
    return where.split("link/ether ")[1].split()[0]


class Cable:
    """A veth pair between the host, which has HOST, and a pod, whose eth0 has POD."""

    def __init__(self, pod: Peer) -> None:
        netlab.ip(f"link add host0 type veth peer name eth0 netns {pod.pid}")
        netlab.ip(f"addr add {HOST}/24 dev host0")
        netlab.ip(f"addr add {HOST6}/64 dev host0 nodad")
        netlab.ip("link set host0 up")
        pod.ip(f"addr add {POD}/24 dev eth0")
        pod.ip(f"addr add {POD6}/64 dev eth0 nodad")
        pod.ip("link set eth0 mtu 1400 up")
        pod.ip(f"route add default via {HOST} dev eth0")
        self.host_mac = link_mac(netlab.ip("link show host0"), "host0")
        self.pod_mac = link_mac(pod.ip("link show eth0"), "eth0")
        netlab.ip(f"neigh replace {POD} lladdr {self.pod_mac} dev host0 nud permanent")


def prove(cable: Cable, fd: int) -> None:
    """Frames go both ways between the host's end and the file that a VMM has open."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host:
        host.bind((HOST, 9999))
        host.settimeout(5)
        host.sendto(b"from the host", (POD, 1234))
        frame = frame_from(fd, b"from the host")
        assert frame[:6].hex(":") == cable.pod_mac
        os.write(fd, datagram(cable.pod_mac, cable.host_mac, b"from the guest"))
        assert host.recvfrom(100) == (b"from the guest", (POD, 1234))


async def join_eth0(lab, pod: Peer, wanted: Wanted) -> Joined:
    (endpoint,) = await joining.find(lab.keeper, pod.netns)
    return await joining.join(lab.keeper, pod.netns, endpoint, wanted)


def everything(pod: Peer) -> str:
    """Interfaces, addresses, routes, qdiscs and filters of a namespace, without what counts or ages."""
    with inside(pod.netns):
        shown = netlab.ip("-d addr") + netlab.ip("route")
        for words in (["tc", "qdisc"], ["tc", "filter", "show", "dev", "eth0", "ingress"]):
            shown += subprocess.run(words, capture_output=True, text=True, check=False).stdout
    return shown


def test_veth_by_tc_filter(lab) -> None:
    """What is found, that frames pass with the pod's own MAC, and that nothing is left."""

    async def scenario() -> None:
        pod = lab.pod()
        cable = Cable(pod)
        before = everything(pod)
        (endpoint,) = await joining.find(lab.keeper, pod.netns)
        assert (endpoint.kind, endpoint.name, endpoint.link.mac) == ("veth", "eth0", cable.pod_mac)
        assert endpoint.addresses == (f"{POD}/24", f"{POD6}/64")
        assert [(r.destination, r.gateway) for r in endpoint.routes] == [("", HOST)]
        joined = await joining.join(lab.keeper, pod.netns, endpoint, Wanted())
        assert (joined.how, joined.queues, joined.note) == ("tc-filter", 1, "")
        assert await joining.join(lab.keeper, pod.netns, endpoint, Wanted()) == joined
        assert [found.name for found in await joining.find(lab.keeper, pod.netns)] == ["eth0"]
        assert "mtu 1400" in pod.ip(f"link show {joined.tap}")
        with open_in(pod, joined.tap) as fd:
            prove(cable, fd)
        await joining.part(lab.keeper, pod.netns)
        await joining.part(lab.keeper, pod.netns)
        assert everything(pod) == before

    asyncio.run(scenario())
