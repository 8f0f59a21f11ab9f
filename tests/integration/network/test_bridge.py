"""Built-in networks with real traffic: pods among each other, out, and in through published ports."""

from __future__ import annotations

import asyncio
import json
import socket
import time

import pytest

from drupe.errors import AlreadyExists, InvalidArgument, InvalidState
from drupe.resources.network.manager import NetworkManager
from drupe.resources.network.records import PodNetwork
from drupe.spec.control import NetworkCreate
from drupe.spec.network import Attachment, NetworkSpec, PortMapping
from drupe.spec.pod import PodSpec
from framework.netlab import HOST4, HOST6, OUT4, OUT6, Peer, ask_tcp, ask_udp, ip, nft

pytestmark = pytest.mark.root


def bridged(*networks: str, ports: tuple[PortMapping, ...] = ()) -> PodSpec:
    attachments = tuple(Attachment(network=name) for name in networks or ("default",))
    return PodSpec(network=NetworkSpec(attachments=attachments), ports=ports)


async def join(manager: NetworkManager, pod: Peer, name: str, spec: PodSpec) -> PodNetwork:
    return await manager.attach(f"id-{name}", name, spec, pod.netns)


def interfaces() -> set[str]:
    return {link["ifname"] for link in json.loads(ip("-j link"))}


def tables() -> str:
    return nft("list tables")


def test_pods_reach_each_other_and_the_world_but_not_the_reverse(lab) -> None:
    """v4 and v6; the world sees the host's address; the world has no way to a pod."""

    async def scenario() -> None:
        manager = lab.manager()
        one, two = lab.pod(), lab.pod()
        first = (await join(manager, one, "one", bridged())).endpoints[0]
        second = (await join(manager, two, "two", bridged())).endpoints[0]
        for address in (second.ipv4, second.ipv6):
            two("serve_tcp", address=address, port=80)
        assert one("tcp", address=second.ipv4, port=80) == first.ipv4
        assert one("tcp", address=second.ipv6, port=80) == first.ipv6
        for address, seen in ((OUT4, HOST4), (OUT6, HOST6)):
            lab.world("serve_tcp", address=address, port=7000)
            assert one("tcp", address=address, port=7000) == seen
        lab.world.ip(f"route add {second.ipv4} via {HOST4}")
        assert not lab.world.reaches(second.ipv4, 80)
        assert ask_tcp(second.ipv4, 80) == first.gateway4
        await manager.check("id-one")
        counters = await manager.stats("id-one")
        assert counters.rx_packets > 5
        assert counters.tx_bytes > 300
        await manager.detach("id-one")
        await manager.detach("id-two")
        await manager.close()

    asyncio.run(scenario())


def test_published_ports(both_labs) -> None:
    """TCP and UDP, from the host (127.0.0.1 and ::1 too), from outside, from a neighbour and from the pod itself."""
    lab = both_labs

    async def scenario() -> None:
        manager = lab.manager()
        web, other = lab.pod(), lab.pod()
        ports = (
            PortMapping(container_port=80, host_port=8080),
            PortMapping(container_port=53, host_port=5353, protocol="udp"),
            PortMapping(container_port=81, host_port=0),
            PortMapping(container_port=82, host_port=8082, host_ip=HOST4),
            PortMapping(container_port=83, host_port=8083, host_ip="127.0.0.1"),
        )
        network = await join(manager, web, "web", bridged(ports=ports))
        await join(manager, other, "other", bridged())
        mine = network.endpoints[0]
        for address in ("0.0.0.0", "::"):
            if address == "::":
                web("serve_tcp", address=mine.ipv6, port=80)
                web("serve_udp", address=mine.ipv6, port=53)
            else:
                for port in (80, 81, 82, 83):
                    web("serve_tcp", address=mine.ipv4, port=port)
                web("serve_udp", address=mine.ipv4, port=53)
        free = network.ports[2].host_port
        assert 1024 < free < 65536
        # the host
        assert ask_tcp("127.0.0.1", 8080) == mine.gateway4
        assert ask_tcp(HOST4, 8080)
        assert ask_tcp(HOST6, 8080)
        assert ask_tcp("::1", 8080)
        assert ask_tcp("127.0.0.1", free)
        assert ask_tcp("127.0.0.1", 8083)
        assert ask_udp("127.0.0.1", 5353)
        assert ask_udp("::1", 5353)
        with pytest.raises(OSError):
            ask_tcp("127.0.0.1", 8082)
        # outside: the pod sees who calls
        assert lab.world("tcp", address=HOST4, port=8080) == OUT4
        assert lab.world("tcp", address=HOST6, port=8080) == OUT6
        assert lab.world("udp", address=HOST4, port=5353) == OUT4
        assert lab.world("udp", address=HOST6, port=5353) == OUT6
        assert lab.world("tcp", address=HOST4, port=8082) == OUT4
        assert not lab.world.reaches(HOST4, 8083)
        # a neighbour, and the pod itself (hairpin)
        for pod in (other, web):
            for address in (HOST4, mine.gateway4, HOST6, mine.gateway6):
                assert pod("tcp", address=address, port=8080), address
        # taken ports
        with pytest.raises(AlreadyExists, match="8080/tcp is in use by pod web"):
            await join(manager, lab.pod(), "late", bridged(ports=(PortMapping(container_port=1, host_port=8080),)))
        with pytest.raises(OSError, match="in use"):
            socket.create_server(("127.0.0.1", 8080))
        with (
            socket.create_server(("127.0.0.1", 9999)),
            pytest.raises(AlreadyExists, match=r"9999/tcp is in use by .*pid"),
        ):
            await join(manager, lab.pod(), "late", bridged(ports=(PortMapping(container_port=1, host_port=9999),)))
        await manager.detach("id-web")
        assert not lab.world.reaches(HOST4, 8080)
        socket.create_server(("127.0.0.1", 8080)).close()
        await manager.close()

    asyncio.run(scenario())


def test_nothing_is_left_and_detach_is_idempotent(lab) -> None:
    """Links, rules, records and addresses; also when the namespace is gone first."""

    async def scenario() -> None:
        before = interfaces()
        manager = lab.manager()
        ports = (PortMapping(container_port=80, host_port=8080),)
        await join(manager, lab.pod(), "one", bridged(ports=ports))
        elements = ruleset()
        two = lab.pod()
        await join(manager, two, "two", bridged(ports=(PortMapping(container_port=80, host_port=8081),)))
        assert ruleset() != elements
        two.close()
        lab.peers.remove(two)
        await manager.detach("id-two")
        await manager.detach("id-two")
        assert ruleset() == elements
        await manager.detach("id-one")
        assert lab.records.all("network.pod") == {}
        with pytest.raises(InvalidState):
            await join(manager, lab.pod(), "three", bridged())
            await manager.delete("default")
        await manager.detach("id-three")
        await manager.close()
        assert interfaces() == before  # a daemon without pods leaves nothing on the host, but knows its networks
        assert tables() == ""
        manager = lab.manager()
        await manager.recover(set())
        assert [network.name for network in await manager.list()] == ["default"]
        await join(manager, lab.pod(), "four", bridged())
        await manager.detach("id-four")
        await manager.delete("default")
        await manager.close()
        assert interfaces() == before
        assert tables() == ""
        assert lab.records.all("network") == {}

    asyncio.run(scenario())


def ruleset() -> str:
    text = nft("-j list ruleset")
    return json.dumps([item for item in json.loads(text)["nftables"] if "metainfo" not in item], sort_keys=True)


def test_networks_are_apart(both_labs) -> None:
    """Two networks cannot see each other; one pod may be in both; `internal` has no way out."""
    lab = both_labs

    async def scenario() -> None:
        manager = lab.manager()
        await manager.create(NetworkCreate(name="red", subnet4="10.77.1.0/24"))
        await manager.create(NetworkCreate(name="inner", internal=True))
        red, blue, both, inner, inner2 = (lab.pod() for _ in range(5))
        at_red = (await join(manager, red, "red", bridged("red"))).endpoints[0]
        at_blue = (await join(manager, blue, "blue", bridged())).endpoints[0]
        await join(manager, both, "both", bridged("default", "red"))
        at_inner = (await join(manager, inner, "inner", bridged("inner"))).endpoints[0]
        await join(manager, inner2, "inner2", bridged("inner"))
        assert at_red.ipv4 == "10.77.1.2"
        lab.world("serve_tcp", address=OUT4, port=7000)
        for pod, end in ((red, at_red), (blue, at_blue), (inner, at_inner)):
            for address in (end.ipv4, end.ipv6):
                pod("serve_tcp", address=address, port=80)
        for address in (at_red.ipv4, at_red.ipv6):
            assert both.reaches(address, 80)
            assert not blue.reaches(address, 80)
        assert both.reaches(at_blue.ipv4, 80)
        assert not red.reaches(at_inner.ipv4, 80)
        assert not inner.reaches(at_red.ipv4, 80)
        assert inner2.reaches(at_inner.ipv4, 80)
        assert inner2.reaches(at_inner.ipv6, 80)
        assert not inner.reaches(OUT4, 7000)
        assert red.reaches(OUT4, 7000)
        with pytest.raises(InvalidState, match=r"red is used by .*red"):
            await manager.delete("red")
        assert [n.name for n in await manager.list()] == ["default", "inner", "red"]
        assert set((await manager.inspect("red")).pods) == {"id-red", "id-both"}
        for name in ("red", "blue", "both", "inner", "inner2"):
            await manager.detach(f"id-{name}")
        assert await manager.prune() == ["red", "inner"]
        await manager.close()

    asyncio.run(scenario())


def test_a_pod_cannot_pose_as_another(both_labs) -> None:
    """An address that was not given is dropped at the bridge."""
    lab = both_labs

    async def scenario() -> None:
        manager = lab.manager()
        one, two = lab.pod(), lab.pod()
        await join(manager, one, "one", bridged())
        second = (await join(manager, two, "two", bridged())).endpoints[0]
        two("serve_tcp", address=second.ipv4, port=80)
        stolen = second.ipv4.rsplit(".", 1)[0] + ".77"
        one.ip(f"addr add {stolen}/22 dev eth0")
        assert one.reaches(second.ipv4, 80)
        assert not one.reaches(second.ipv4, 80, source=stolen)
        await manager.close()

    asyncio.run(scenario())


def test_wishes_are_kept_and_bad_ones_refused(lab) -> None:
    """Addresses, MAC and interface name as asked; conflicts and nonsense have one clear line and leave nothing."""

    async def scenario() -> None:
        manager = lab.manager()
        await manager.create(
            NetworkCreate(name="n", subnet4="10.77.0.0/24", subnet6="fd77::/64", gateway4="10.77.0.254")
        )
        pod = lab.pod()
        wish = Attachment(
            network="n", ipv4="10.77.0.9", ipv6="fd77::99", mac="02:00:00:00:00:09", interface="net0", aliases=("Db",)
        )
        end = (await join(manager, pod, "a", PodSpec(network=NetworkSpec(attachments=(wish,))))).endpoints[0]
        assert (end.ipv4, end.ipv6, end.mac, end.interface) == ("10.77.0.9", "fd77::99", "02:00:00:00:00:09", "net0")
        shown = pod.ip("addr show dev net0")
        assert all(text in shown for text in ("10.77.0.9/24", "fd77::99/64", "02:00:00:00:00:09"))
        for bad, error, words in (
            ({"ipv4": "10.77.0.9"}, AlreadyExists, "taken by pod a"),
            ({"ipv4": "10.77.0.254"}, AlreadyExists, "the gateway"),
            ({"ipv4": "10.78.0.9"}, InvalidArgument, "not in 10.77.0.0/24"),
            ({"ipv4": "x"}, InvalidArgument, "bad address"),
            ({"mac": "03:00:00:00:00:09"}, InvalidArgument, "bad MAC"),
            ({"interface": "a/b"}, InvalidArgument, "bad interface name"),
        ):
            spec = PodSpec(network=NetworkSpec(attachments=(Attachment(network="n", **bad),)))
            with pytest.raises(error, match=words):
                await join(manager, lab.pod(), "b", spec)
        for wrong, error in (
            (NetworkCreate(name="n"), AlreadyExists),
            (NetworkCreate(name="m", subnet4="10.77.0.0/25"), AlreadyExists),
            (NetworkCreate(name="m", subnet4="192.0.2.0/25"), AlreadyExists),
            (NetworkCreate(name="m", subnet4="10.77.0.1/24"), InvalidArgument),
            (NetworkCreate(name="../m"), InvalidArgument),
            (NetworkCreate(name="host"), InvalidArgument),
            (NetworkCreate(name="m", mtu=100), InvalidArgument),
        ):
            with pytest.raises(error):
                await manager.create(wrong)
        assert list(lab.records.all("network.pod")) == ["id-a"]
        await manager.close()

    asyncio.run(scenario())


def test_recover(lab) -> None:
    """A new manager with the records alone: dead pods' networks go, live ones work on, lost rules come back."""

    async def scenario() -> None:
        manager = lab.manager()
        live, dead = lab.pod(), lab.pod()
        web = (PortMapping(container_port=80, host_port=8080),)
        end = (await join(manager, live, "live", bridged(ports=web))).endpoints[0]
        await join(manager, dead, "dead", bridged(ports=(PortMapping(container_port=80, host_port=8081),)))
        live("serve_tcp", address=end.ipv4, port=80)
        with_both = interfaces()
        await manager.close()  # what a killed daemon's sockets do
        nft("flush ruleset")
        ip("link add dvorphan type veth peer name orphan2")
        ip(f"link set dvorphan master {(await lab.manager().inspect('default')).bridge}")
        again = lab.manager()
        notes = await again.recover({"id-live"})
        assert any("id-dead" in note for note in notes)
        assert any("dvorphan" in note for note in notes)
        assert len(with_both - interfaces()) == 1
        assert ask_tcp("127.0.0.1", 8080)
        assert lab.world("tcp", address=HOST4, port=8080) == OUT4
        with pytest.raises(AlreadyExists):
            await join(again, dead, "late", bridged(ports=web))
        assert "8081" not in ruleset()
        nft("flush ruleset")  # someone else's accident, later
        await join(again, dead, "more", bridged())
        assert ask_tcp("127.0.0.1", 8080)
        await again.close()
        ip(f"link del {(await again.inspect('default')).bridge}")
        last = lab.manager()
        with pytest.raises(InvalidState, match="not connected"):
            await last.check("id-live")
        assert any("made anew" in note for note in await last.recover({"id-live", "id-more"}))
        await last.check("id-live")
        assert lab.world("tcp", address=HOST4, port=8080) == OUT4
        await last.close()

    asyncio.run(scenario())


def test_attach_is_quick(lab) -> None:
    """The budget is 8 ms on a quiet machine; the bound here is loose because tests share it."""

    async def scenario() -> None:
        manager = lab.manager()
        pods = [lab.pod() for _ in range(12)]
        took = []
        for number, pod in enumerate(pods):
            start = time.perf_counter()
            await join(manager, pod, f"p{number}", bridged(ports=(PortMapping(container_port=80),)))
            took.append((time.perf_counter() - start) * 1000)
        undone = []
        for number in range(len(pods)):
            start = time.perf_counter()
            await manager.detach(f"id-p{number}")
            undone.append((time.perf_counter() - start) * 1000)
        print(f"attach ms: {sorted(took)}, detach ms: {sorted(undone)}")
        assert sorted(took)[len(took) // 2] < 40
        await manager.close()

    asyncio.run(scenario())


def test_modes_without_a_network(lab) -> None:
    """none and host make nothing; what they cannot do is refused."""

    async def scenario() -> None:
        manager = lab.manager()
        before = interfaces()
        none = await manager.attach("a", "a", PodSpec(network=NetworkSpec(mode="none")), "")
        host = await manager.attach("b", "b", PodSpec(network=NetworkSpec(mode="host")), "")
        assert (none.endpoints, none.dns_servers) == ([], [])
        assert host.dns_servers == [OUT4]
        assert host.dns_searches == ["lab.test"]
        for mode, port in (("none", 0), ("host", 81)):
            spec = PodSpec(network=NetworkSpec(mode=mode), ports=(PortMapping(container_port=80, host_port=port),))
            with pytest.raises(InvalidArgument):
                await manager.attach("c", "c", spec, "")
        assert interfaces() == before
        assert await manager.stats("a") is None
        await manager.detach("a")
        await manager.detach("b")
        await manager.close()

    asyncio.run(scenario())


def test_a_steady_udp_caller_finds_the_next_pod(lab) -> None:
    """The same source port, before, with and after the first pod: each time what is there now answers."""

    async def scenario() -> None:
        manager = lab.manager()
        ports = (PortMapping(container_port=53, host_port=5353, protocol="udp"),)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as caller:
            caller.bind((HOST4, 0))
            caller.settimeout(1.5)

            def ask() -> bytes:
                caller.sendto(b"?", (HOST4, 5353))
                return caller.recv(99)

            caller.sendto(b"?", (HOST4, 5353))
            for name in ("one", "two"):
                pod = lab.pod()
                end = (await join(manager, pod, name, bridged(ports=ports))).endpoints[0]
                pod("serve_udp", address=end.ipv4, port=53)
                assert ask()
                await manager.detach(f"id-{name}")
        await manager.close()

    asyncio.run(scenario())


def test_a_pod_may_go_without_ipv6(lab) -> None:
    """Its sysctl turns IPv6 off: it gets no IPv6 address, and no error."""

    async def scenario() -> None:
        manager = lab.manager()
        pod = lab.pod()
        pod.sysctl("net/ipv6/conf/default/disable_ipv6", "1")
        spec = PodSpec(ports=(PortMapping(container_port=80),), sysctls={"net.ipv6.conf.default.disable_ipv6": "1"})
        end = (await join(manager, pod, "p", spec)).endpoints[0]
        assert end.ipv4
        assert end.ipv6 == ""
        await manager.detach("id-p")
        await manager.close()

    asyncio.run(scenario())
