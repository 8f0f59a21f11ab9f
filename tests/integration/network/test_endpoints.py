"""Interfaces of a pod's namespace joined to taps: real frames go through, and undoing leaves nothing."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drupe.linux import rtnetlink, tuntap
from drupe.linux.netlink import Netlink
from drupe.resources.network.endpoints import joining, late
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


def frame_from(fd: int, wanted: bytes, again: Callable[[], object]) -> bytes:
    """The first frame at the tap that has `wanted` in it. again: sends it once more: an interface that has just got its
    carrier drops what comes before the kernel has seen to that."""
    for _ in range(50):
        again()
        while select.select([fd], [], [], 0.1)[0]:
            frame = os.read(fd, 65536)
            if wanted in frame:
                return frame
    raise AssertionError(f"no frame with {wanted!r} came out of the tap")


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
        frame = frame_from(fd, b"from the host", lambda: host.sendto(b"from the host", (POD, 1234)))
        assert frame[:6].hex(":") == cable.pod_mac
        os.write(fd, datagram(cable.pod_mac, cable.host_mac, b"from the guest"))
        assert host.recvfrom(100) == (b"from the guest", (POD, 1234))


def tap_of(pod: Peer, name: str) -> rtnetlink.Link:
    with inside(pod.netns), Netlink() as netlink:
        found = rtnetlink.link(netlink, name)
    assert found
    return found


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


@pytest.mark.parametrize("model", ["tc-filter", "bridged"])
def test_each_model_that_has_a_tap(lab, model: str) -> None:
    """Frames pass, twice joined is once joined, and all is as before in the end."""

    async def scenario() -> None:
        pod = lab.pod()
        cable = Cable(pod)
        before = everything(pod)
        joined = await join_eth0(lab, pod, Wanted(model=model))
        again = await join_eth0(lab, pod, Wanted(model=model))
        assert (joined.how, joined.endpoint.link.mac) == (model, cable.pod_mac)
        assert (again.tap, again.endpoint.link.mac) == (joined.tap, cable.pod_mac)
        with open_in(pod, joined.tap) as fd:
            prove(cable, fd)
        await joining.part(lab.keeper, pod.netns)
        assert everything(pod) == before

    asyncio.run(scenario())


def test_macvtap(lab, tmp_path: Path) -> None:
    """Through the character device that the kernel named; the node goes with it."""

    async def scenario() -> None:
        pod = lab.pod()
        cable = Cable(pod)
        joined = await join_eth0(lab, pod, Wanted(model="macvtap", dir=tmp_path))
        assert joined.node
        fd = os.open(joined.node, os.O_RDWR | os.O_NONBLOCK)
        with inside(pod.netns):
            tuntap.attach_tap(fd, f"drupe-tap{joined.endpoint.link.index}", offload=False)
        try:
            prove(cable, fd)
        finally:
            os.close(fd)
        await joining.part(lab.keeper, pod.netns, directory=tmp_path)
        assert list(tmp_path.glob("drupe-*")) == []
        assert "drupe-" not in pod.ip("link")

    asyncio.run(scenario())


def test_none_and_owner_and_queues(lab) -> None:
    """A tap that is joined to nothing; its owner needs no right to open it, and only with the queues that it has."""

    async def scenario() -> None:
        pod = lab.pod()
        Cable(pod)
        joined = await join_eth0(lab, pod, Wanted(model="none", queues=2, owner=4711))
        details = dict(tap_of(pod, joined.tap).details)
        assert int.from_bytes(details[1], "little") == 4711  # IFLA_TUN_OWNER
        with open_in(pod, joined.tap, queues=2), open_in(pod, joined.tap, queues=2):
            pass
        with pytest.raises(OSError, match="Invalid argument"), open_in(pod, joined.tap):
            pass
        await joining.part(lab.keeper, pod.netns, "eth0")
        assert "drupe-" not in pod.ip("link")

    asyncio.run(scenario())


def test_kinds(lab, tmp_path: Path) -> None:
    """Each kind of interface that this kernel has, and what becomes of it."""

    async def scenario() -> None:
        pod = lab.pod()
        Cable(pod)
        pod.ip("link add vx0 type vxlan id 5 dstport 4789")
        pod.ip("tuntap add free0 mode tap")
        pod.ip("tuntap add layer0 mode tun")
        netlab.ip("link add far1 type veth peer name low0")
        netlab.ip("link set low0 up")
        netlab.ip(f"link add link low0 name mv0 netns {pod.pid} type macvlan mode bridge")
        for name in ("vx0", "free0", "layer0", "mv0"):
            pod.ip(f"link set {name} up")
        pod.ip("addr add 10.9.0.1/24 dev vx0")
        kinds = {e.name: e for e in await joining.find(lab.keeper, pod.netns)}
        assert {name: e.kind for name, e in kinds.items()} == {
            "eth0": "veth", "vx0": "other", "free0": "tap", "layer0": "layer 3", "mv0": "macvlan",
        }  # fmt: skip
        unknown = await joining.join(lab.keeper, pod.netns, kinds["vx0"], Wanted())
        assert (unknown.how, "'vxlan'" in unknown.note) == ("tc-filter", True)
        assert (await joining.join(lab.keeper, pod.netns, kinds["free0"], Wanted())).tap == "free0"
        left = await joining.join(lab.keeper, pod.netns, kinds["layer0"], Wanted())
        assert (left.how, "no Ethernet frames" in left.note) == ("left out", True)
        other = await joining.join(lab.keeper, pod.netns, kinds["mv0"], Wanted(model="macvtap"))
        assert (other.how, "cannot be joined by macvtap" in other.note) == ("tc-filter", True)
        with open_in(pod, "free0"):
            (held,) = [e for e in await joining.find(lab.keeper, pod.netns) if e.name == "free0"]
            assert held.kind == "tuntap"
        (tmp_path / POD).mkdir()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(tmp_path / POD / "vhu.sock"))
            found = await joining.find(lab.keeper, pod.netns, vhost_user=tmp_path)
            joined = await joining.join(lab.keeper, pod.netns, found[0], Wanted())
            assert (joined.how, joined.socket) == ("vhost-user", tmp_path / POD / "vhu.sock")
        await joining.part(lab.keeper, pod.netns)
        assert "drupe-" not in pod.ip("link")

    asyncio.run(scenario())


def test_a_late_namespace_and_a_late_interface(lab) -> None:
    """Waited for by events: the first as soon as it is complete, another one while the pod lives."""

    async def scenario() -> None:
        pod = lab.pod()
        assert await late.await_endpoints(lab.keeper, pod.netns, timeout_s=0.1) == []
        waiting = asyncio.ensure_future(late.await_endpoints(lab.keeper, pod.netns, timeout_s=10))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(Cable, pod)
        (endpoint,) = await waiting
        assert (endpoint.addresses[0], endpoint.routes[0].gateway) == (f"{POD}/24", HOST)
        watch = await late.LinkWatch.open(lab.keeper, pod.netns)
        await asyncio.to_thread(pod.ip, "link add vx0 up type vxlan id 5 dstport 4789")
        await asyncio.wait_for(watch.changed(), 10)
        watch.close()
        assert {e.name for e in await joining.find(lab.keeper, pod.netns)} == {"eth0", "vx0"}

    asyncio.run(scenario())


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
