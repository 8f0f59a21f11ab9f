"""Egress policies, with real traffic that must pass and real traffic that must not."""

from __future__ import annotations

import asyncio

import pytest

from drupe.errors import InvalidArgument, Unsupported
from drupe.resources.network import dnsmessage as dns
from drupe.resources.network import fabric
from drupe.spec.network import Attachment, EgressPolicy, EgressRule, NetworkSpec, PortMapping
from drupe.spec.pod import PodSpec
from framework.netlab import HOST4, OUT4, OUT6, Peer, nft, resolve

pytestmark = pytest.mark.root
NONE = EgressPolicy(default="deny")


def spec(policy: EgressPolicy | None, *ports: PortMapping) -> PodSpec:
    return PodSpec(network=NetworkSpec(attachments=(Attachment(),), policy=policy), ports=ports)


def allow(**words) -> EgressPolicy:
    return EgressPolicy(default="deny", rules=(EgressRule(**words),))


def serve_world(world: Peer) -> None:
    for address in (OUT4, OUT6):
        for port in (7000, 7001):
            world("serve_tcp", address=address, port=port)
        world("serve_udp", address=address, port=7000)


def test_by_address_port_and_protocol(both_labs) -> None:
    """What is allowed passes, the rest is refused at once; rules in order; changed while the pod runs."""
    lab = both_labs

    async def scenario() -> None:
        manager = lab.manager()
        pod = lab.pod()
        serve_world(lab.world)
        await manager.attach("p", "p", spec(NONE), pod.netns)

        def passes(address: str, port: int, call: str = "tcp") -> bool:
            return pod.reaches(address, port, call, **({"timeout_s": 0.4} if call == "udp" else {}))

        async def under(policy: EgressPolicy | None) -> tuple[bool, ...]:
            await manager.update_policy("p", policy)
            tcp = [passes(a, p) for a in (OUT4, OUT6) for p in (7000, 7001)]
            return (*tcp, *(passes(a, 7000, "udp") for a in (OUT4, OUT6)))

        yes, no = True, False
        assert await under(NONE) == (no, no, no, no, no, no)
        assert await under(None) == (yes, yes, yes, yes, yes, yes)
        assert await under(allow(cidr="192.0.2.0/24")) == (yes, yes, no, no, yes, no)
        assert await under(allow(cidr="2001:db8::/32", ports=("7001",))) == (no, no, no, yes, no, no)
        assert await under(allow(ports=("6000-7000",))) == (yes, no, yes, no, yes, yes)
        assert await under(allow(protocol="udp")) == (no, no, no, no, yes, yes)
        assert await under(allow(protocol="tcp", ports=("7001", "80"))) == (no, yes, no, yes, no, no)
        ordered = (EgressRule(action="deny", ports=("7001",)), EgressRule(cidr="192.0.2.0/24"))
        assert await under(EgressPolicy(default="deny", rules=ordered)) == (yes, no, no, no, yes, no)
        denied = EgressPolicy(rules=(EgressRule(action="deny", cidr="192.0.2.1/32"),))
        assert await under(denied) == (no, no, yes, yes, no, yes)
        await manager.detach("p")
        text = nft("list ruleset")
        assert "pod_" not in text
        await manager.close()

    asyncio.run(scenario())


def test_neighbours_replies_and_the_host(both_labs) -> None:
    """A policy holds inside the network too, against the host, and lets answers of the pod's own services out."""
    lab = both_labs

    async def scenario() -> None:
        manager = lab.manager()
        shut, free = lab.pod(), lab.pod()
        at_shut = (
            await manager.attach("s", "shut", spec(NONE, PortMapping(container_port=80, host_port=8080)), shut.netns)
        ).endpoints[0]
        at_free = (await manager.attach("f", "free", spec(None), free.netns)).endpoints[0]
        for pod, end in ((shut, at_shut), (free, at_free)):
            for address in (end.ipv4, end.ipv6):
                pod("serve_tcp", address=address, port=80)
                pod("serve_udp", address=address, port=80)
        for address in (at_free.ipv4, at_free.ipv6):
            assert not shut.reaches(address, 80)
            assert not shut.reaches(address, 80, "udp", timeout_s=0.4)
        assert not shut.reaches(HOST4, 22)
        with pytest.raises(OSError, match="refused"):  # told so, not left hanging
            shut("tcp", address=at_free.ipv4, port=80)
        # who calls it gets answers
        for address in (at_shut.ipv4, at_shut.ipv6):
            assert free.reaches(address, 80)
            assert free.reaches(address, 80, "udp")
        assert lab.world("tcp", address=HOST4, port=8080) == OUT4
        await manager.update_policy("s", allow(cidr=f"{at_free.ipv4}/32", ports=("80",)))
        assert shut("tcp", address=at_free.ipv4, port=80) == at_shut.ipv4
        # it cannot slip out under a neighbour's name
        shut.ip(f"addr add {at_free.ipv4.rsplit('.', 1)[0]}.9/22 dev eth0")
        assert not shut.reaches(OUT4, 7000, source=at_free.ipv4.rsplit(".", 1)[0] + ".9")
        await manager.close()

    asyncio.run(scenario())


SLACK_S = 4  # less than the daemon's: it is waited for


def test_by_name(lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """An allowed name opens its address before the answer arrives and for its time; others are not even asked for."""
    monkeypatch.setattr(fabric, "_SLACK_S", SLACK_S)

    async def scenario() -> None:
        manager = lab.manager()
        pod, peer = lab.pod(), lab.pod()
        serve_world(lab.world)
        lab.world("serve_tcp", address="0.0.0.0", port=7002)
        names = {"ok.test": [OUT4, 1], "six.ok.test": [OUT6, 300], "evil.test": [OUT4, 60], "ok.test.evil": [OUT4, 60]}
        lab.world("serve_dns", address=OUT4, names=names)
        policy = EgressPolicy(
            default="deny",
            rules=(
                EgressRule(dns="ok.test", ports=("7000",)),
                EgressRule(dns="*.OK.test."),
                EgressRule(dns="peer"),
            ),
        )
        server = (await manager.attach("p", "p", spec(policy), pod.netns)).dns_servers[0]
        at_peer = (await manager.attach("q", "peer", spec(None), peer.netns)).endpoints[0]
        peer("serve_tcp", address=at_peer.ipv4, port=80)
        assert not pod.reaches(OUT4, 7000)
        for name in ("evil.test", "ok.test.evil", "notok.test"):
            assert await resolve(pod, server, name) == (5, [], False)
        assert not pod.reaches(OUT4, 7000)
        assert await resolve(pod, server, "ok.test") == (0, [OUT4], False)
        assert pod.reaches(OUT4, 7000)
        assert not pod.reaches(OUT4, 7001)
        assert not pod.reaches(OUT6, 7000)
        assert await resolve(pod, server, "six.ok.test", dns.AAAA) == (0, [OUT6], False)
        assert pod.reaches(OUT6, 7001)
        assert not pod.reaches(at_peer.ipv4, 80)
        assert await resolve(pod, server, "peer") == (0, [at_peer.ipv4], False)
        assert pod.reaches(at_peer.ipv4, 80)
        # a changed policy and a new daemon keep what is granted
        await manager.update_policy("p", EgressPolicy(default="deny", rules=policy.rules[:2]))
        assert pod.reaches(OUT6, 7001)
        assert not pod.reaches(at_peer.ipv4, 80)
        await manager.close()
        again = lab.manager()
        await again.recover({"p", "q"})
        assert pod.reaches(OUT6, 7001)
        assert pod.reaches(OUT4, 7000)
        await asyncio.sleep(SLACK_S + 1.5)  # one second, and the slack
        assert not pod.reaches(OUT4, 7000)
        assert await resolve(pod, server, "ok.test") == (0, [OUT4], False)
        assert pod.reaches(OUT4, 7000)
        await again.detach("p")
        await again.detach("q")
        await again.delete("default")
        await again.close()

    asyncio.run(scenario())


def test_bad_policies_are_refused(lab) -> None:
    """One clear line, before anything is made."""

    async def scenario() -> None:
        manager = lab.manager()
        for rule, words in (
            (EgressRule(cidr="10.0.0.0/33"), "egress rule 1: bad CIDR"),
            (EgressRule(cidr="10.0.0.1/8"), "host bits"),
            (EgressRule(cidr="10.0.0.0/8; flush ruleset"), "bad CIDR"),
            (EgressRule(dns="a b"), "bad DNS name"),
            (EgressRule(dns="*"), "bad DNS name"),
            (EgressRule(ports=("0",)), "bad port"),
            (EgressRule(ports=("9-8",)), "bad port"),
            (EgressRule(ports=("80 }",)), "bad port"),
            (EgressRule(cidr="10.0.0.0/8", dns="a.b"), "together"),
        ):
            with pytest.raises(InvalidArgument, match=words):
                await manager.attach("p", "p", spec(EgressPolicy(rules=(rule,))), "/nowhere")
        for mode in ("host", "none", "path", "cni", "cnm"):
            with pytest.raises(Unsupported):
                await manager.attach("p", "p", PodSpec(network=NetworkSpec(mode=mode, policy=NONE)), "/nowhere")
        assert lab.records.all("network.pod") == {}
        await manager.close()

    asyncio.run(scenario())
