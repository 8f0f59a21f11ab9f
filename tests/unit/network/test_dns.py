"""The resolver's answers without sockets: who may ask what, and what is let through first."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address

from drupe.resources.network import dnsmessage as dns
from drupe.resources.network.directory import Directory
from drupe.resources.network.dns import Resolver
from drupe.resources.network.policy import may_ask
from drupe.resources.network.records import Attached, PodNetwork, Wire
from drupe.spec.network import EgressPolicy, EgressRule


def pod(name: str, address: str, *networks: str, policy: EgressPolicy | None = None) -> Attached:
    wires = [
        Wire(network=n, interface="e", host_interface="h", mac="m", ipv4=address.replace("*", str(i)), names=["alias"])
        for i, n in enumerate(networks)
    ]
    return Attached(
        pod_id=name,
        pod_name=name,
        mode="bridge",
        netns="",
        names=[name],
        wires=wires,
        policy=policy,
        result=PodNetwork(mode="bridge"),
    )


def resolver(*pods: Attached, granted: list | None = None) -> Resolver:
    async def grant(attached, name, addresses) -> None:
        if granted is not None:
            granted.append((attached.pod_id, name, list(addresses)))

    directory = Directory({p.pod_id: p for p in pods})
    return Resolver(directory, servers=lambda _: (), grant=grant, port=53)


def ask(served: Resolver, source: str, name: str, kind: int = dns.A) -> tuple[int, list[str]]:
    query = b"\0\7\1\0\0\1\0\0\0\0\0\0" + dns.encode_name(name) + kind.to_bytes(2, "big") + b"\0\1"
    answer = asyncio.run(served.answer(query, source))
    assert answer is not None
    assert answer[:2] == b"\0\7"
    return answer[3] & 15, [str(a.address) for a in dns.addresses(answer)]


def test_only_pods_are_answered_and_only_about_their_networks() -> None:
    served = resolver(pod("a", "10.0.*.1", "x"), pod("b", "10.0.*.2", "x", "y"), pod("c", "10.9.*.3", "y"))
    assert ask(served, "10.0.0.9", "a") == (dns.REFUSED, [])
    assert ask(served, "10.0.0.1", "B") == (0, ["10.0.0.2"])
    assert ask(served, "10.0.0.1", "b.x") == (0, ["10.0.0.2"])
    assert ask(served, "10.0.0.1", "alias") == (0, ["10.0.0.1", "10.0.0.2"])
    assert ask(served, "10.0.0.1", "c") == (dns.SERVFAIL, [])  # not known here, and no server to ask
    assert ask(served, "10.0.0.2", "c") == (0, ["10.9.0.3"])
    assert ask(served, "10.0.0.1", "b", dns.AAAA) == (0, [])


def test_own_names_are_let_through_first() -> None:
    granted: list = []
    policy = EgressPolicy(default="deny", rules=(EgressRule(dns="b"),))
    served = resolver(pod("a", "10.0.*.1", "x", policy=policy), pod("b", "10.0.*.2", "x"), granted=granted)
    assert ask(served, "10.0.0.1", "b") == (0, ["10.0.0.2"])
    assert granted == [("a", "b", [(IPv4Address("10.0.0.2"), 10)])]
    assert ask(served, "10.0.0.2", "a") == (0, ["10.0.0.1"])
    assert len(granted) == 1
    assert ask(served, "10.0.0.1", "elsewhere.test") == (dns.REFUSED, [])


def test_odd_messages() -> None:
    served = resolver(pod("a", "10.0.*.1", "x"))
    for message, code in (
        (b"\0\7\1\0\0\2\0\0\0\0\0\0", dns.FORMERR),
        (b"\0\7\1\0\0\1\0\0\0\0\0\0\xff", dns.FORMERR),
        (b"\0\7\x28\0\0\1\0\0\0\0\0\0\1a\0\0\1\0\1", dns.NOTIMP),
        (b"\0\7\1\0\0\1\0\0\0\0\0\0\1a\0\0\1\0\3", dns.NOTIMP),
    ):
        answer = asyncio.run(served.answer(message, "10.0.0.1"))
        assert answer is not None
        assert answer[3] & 15 == code
    for silent in (b"", b"\0" * 11, b"\0\7\x81\0" + bytes(8)):
        assert asyncio.run(served.answer(silent, "10.0.0.1")) is None


def test_which_names_may_be_asked_for() -> None:
    allow, deny = EgressRule(dns="*.ok.test"), EgressRule(dns="bad.ok.test", action="deny")
    partly = EgressRule(dns="web.test", action="deny", ports=("80",))
    cases = (
        (EgressPolicy(), "x", True),
        (EgressPolicy(default="deny"), "x", True),
        (EgressPolicy(default="deny", rules=(allow,)), "x", False),
        (EgressPolicy(default="deny", rules=(allow,)), "a.ok.test", True),
        (EgressPolicy(default="deny", rules=(allow,)), "ok.test", False),
        (EgressPolicy(default="deny", rules=(deny, allow)), "bad.ok.test", False),
        (EgressPolicy(default="deny", rules=(allow, deny)), "bad.ok.test", True),
        (EgressPolicy(rules=(deny,)), "bad.ok.test", False),
        (EgressPolicy(rules=(deny,)), "x", True),
        (EgressPolicy(rules=(partly,)), "web.test", True),
    )
    for policy, name, expected in cases:
        assert may_ask(policy, name) is expected, (policy, name)


def test_reverse_names() -> None:
    assert dns.reverse_address("1.2.0.10.in-addr.arpa") == "10.0.2.1"
    six = "1." + "0." * 23 + "8.b.d.0.1.0.0.2.ip6.arpa"
    assert dns.reverse_address(six) == "2001:db8::1"
    for bad in ("1.2.3.in-addr.arpa", "x.ip6.arpa", "300.2.0.10.in-addr.arpa", "10.0.0.1"):
        assert dns.reverse_address(bad) == ""
