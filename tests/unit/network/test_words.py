"""Addresses, ports, firewall elements and configurations, without a kernel."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path

import pytest

from drupe.errors import InvalidArgument, NotFound, ResourceExhausted, Unsupported
from drupe.linux import netlink, rtnetlink
from drupe.resources.network import cniconf, ipam
from drupe.resources.network.bridge import link_local
from drupe.resources.network.firewall import port_elements
from drupe.resources.network.policy import chain_commands, port_range
from drupe.resources.network.ports import check
from drupe.resources.network.resolvconf import read_resolv_conf
from drupe.spec.network import EgressPolicy, EgressRule, PortMapping
from drupe.spec.status import PublishedPort


def test_free_addresses_go_round() -> None:
    subnet = IPv4Network("10.0.0.0/29")
    assert str(ipam.next_address(subnet, {"10.0.0.1"}, after=0)) == "10.0.0.2"
    assert str(ipam.next_address(subnet, set(), after=4)) == "10.0.0.5"
    assert str(ipam.next_address(subnet, {"10.0.0.6"}, after=5)) == "10.0.0.1"
    with pytest.raises(ResourceExhausted, match=r"no free address in 10\.0\.0\.0/29"):
        ipam.next_address(subnet, {f"10.0.0.{n}" for n in range(8)}, after=3)


def test_subnets() -> None:
    first = ipam.free_subnet4([])
    assert first.prefixlen == 22
    assert ipam.free_subnet4([first, IPv4Network("0.0.0.0/0")]) != first
    assert not ipam.free_subnet4([IPv4Network("10.208.0.0/13")]).overlaps(IPv4Network("10.208.0.0/13"))
    with pytest.raises(ResourceExhausted):
        ipam.free_subnet4([IPv4Network("10.0.0.0/8")])
    six = ipam.random_subnet6()
    assert six.is_private
    assert six.prefixlen == 64
    assert six != ipam.random_subnet6()
    twin = ipam.twin6(IPv4Network("10.0.0.0/22"), IPv4Address("10.0.1.2"), IPv6Network("fd00::/64"))
    assert str(twin) == "fd00::102"
    for bad in ("10.0.0.0/31", "10.0.0.1/24", "fd00::/64", "x", "0.0.0.0/0"):
        with pytest.raises(InvalidArgument):
            ipam.parse_subnet(bad, IPv4Network)


def test_macs_and_link_local() -> None:
    assert ipam.mac_of(IPv4Address("10.208.0.2")) == "0a:64:0a:d0:00:02"
    assert str(link_local("02:00:00:00:00:01")) == "fe80::ff:fe00:1/64"


@pytest.mark.parametrize(
    "mapping",
    [
        PortMapping(container_port=0),
        PortMapping(container_port=65536),
        PortMapping(container_port=80, host_port=-1),
        PortMapping(container_port=80, host_ip="localhost"),
        PortMapping(container_port=80, protocol="sctp"),
    ],
)
def test_bad_ports(mapping: PortMapping) -> None:
    with pytest.raises(InvalidArgument):
        check(mapping)


def test_port_elements_by_family() -> None:
    def elements(host_ip: str, ipv6: str = "fd00::2") -> set[str]:
        port = PublishedPort(host_ip=host_ip, host_port=8080, container_port=80, protocol="tcp")
        return {f"{e.set} {e}" for e in port_elements([port], "10.0.0.2", ipv6) if not e.set.startswith("self")}

    four, six = "ports4 tcp . 8080 : 10.0.0.2 . 80", "ports6 tcp . 8080 : fd00::2 . 80"
    assert elements("") == {four, six}
    assert elements("", "") == {four}
    assert elements("0.0.0.0") == {four}
    assert elements("::") == {six}
    assert elements("192.0.2.1") == {"addressed4 192.0.2.1 . tcp . 8080 : 10.0.0.2 . 80"}
    assert elements("2001:db8::1") == {"addressed6 2001:db8::1 . tcp . 8080 : fd00::2 . 80"}


def test_policy_as_rules() -> None:
    rules = (
        EgressRule(cidr="10.0.0.0/8", ports=("80", "8000-8100")),
        EgressRule(action="deny", protocol="udp"),
        EgressRule(dns="a.test", protocol="tcp", ports=("443",)),
    )
    lines = chain_commands("t", "c", EgressPolicy(default="deny", rules=rules)).splitlines()
    assert lines == [
        "add chain inet t c",
        "add rule inet t c ip daddr 10.0.0.0/8 meta l4proto { tcp, udp } th dport { 80, 8000-8100 } return",
        "add rule inet t c meta l4proto udp goto denied",
        "add set inet t c_2_4 { type ipv4_addr; flags timeout; }",
        "add set inet t c_2_6 { type ipv6_addr; flags timeout; }",
        "add rule inet t c ip daddr @c_2_4 meta l4proto { tcp } th dport { 443 } return",
        "add rule inet t c ip6 daddr @c_2_6 meta l4proto { tcp } th dport { 443 } return",
        "add rule inet t c goto denied",
    ]
    for bad in ("", "x", "1-", "-1", "70000", "2-1", "٣"):
        with pytest.raises(InvalidArgument):
            port_range(bad)


def test_resolv_conf(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    assert read_resolv_conf(path).servers == ()
    path.write_text(
        "# c\nnameserver 1.1.1.1 # x\nnameserver fe80::1%eth0\nnameserver bad\nsearch a b\noptions ndots:2\n"
    )
    assert read_resolv_conf(path) == (("1.1.1.1", "fe80::1%eth0"), ("a", "b"), ("ndots:2",))


def test_cni_configurations_are_found(tmp_path: Path) -> None:
    (tmp_path / "20-b.conf").write_text(json.dumps({"cniVersion": "0.4.0", "name": "b", "type": "ptp"}))
    (tmp_path / "10-a.conflist").write_text(
        json.dumps({"cniVersion": "1.0.0", "name": "a", "plugins": [{"type": "x"}]})
    )
    (tmp_path / "00-readme.txt").write_text("no")
    directory = str(tmp_path)
    assert cniconf.load("", directory)["name"] == "a"
    for name in ("b", "20-b", "20-b.conf", str(tmp_path / "20-b.conf")):
        assert cniconf.load(name, directory)["plugins"][0]["type"] == "ptp"
    with pytest.raises(NotFound):
        cniconf.load("c", directory)
    (tmp_path / "c.json").write_text(json.dumps({"cniVersion": "2.0.0", "name": "c", "type": "x"}))
    with pytest.raises(Unsupported, match="version"):
        cniconf.load("c", directory)


def test_netlink_attributes() -> None:
    data = netlink.text(3, "eth0") + netlink.nested(18, netlink.u32(1, 7), netlink.u8(2, 9))
    assert len(data) % 4 == 0
    found = dict(netlink.attributes(data))
    assert found[3] == b"eth0\0"
    assert dict(netlink.attributes(found[18])) == {1: b"\7\0\0\0", 2: b"\x09"}
    for broken in (b"\0", b"\2\0\1\0", b"\xff\0\1\0abcd"):
        assert list(netlink.attributes(broken)) == []


def test_netlink_tells_what_the_kernel_said() -> None:
    with netlink.Netlink() as own:
        assert rtnetlink.link(own, "no-such-link") is None
        loopback = rtnetlink.link(own, "lo")
        assert loopback is not None
        assert loopback.loopback
        assert loopback.name in {found.name for found in rtnetlink.links(own)}
        with pytest.raises(netlink.NetlinkError) as caught:
            own.batch([rtnetlink.delete_link(0x7FFFFFF0)])
        assert caught.value.errno in (1, 19)
