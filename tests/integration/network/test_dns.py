"""Names between pods, and all other names from the host's servers."""

from __future__ import annotations

import asyncio
import socket

import pytest

from drupe.errors import AlreadyExists
from drupe.resources.network import dnsmessage as dns
from drupe.spec.container import ContainerSpec
from drupe.spec.control import NetworkCreate
from drupe.spec.network import Attachment, DnsSpec, NetworkSpec
from drupe.spec.pod import PodSpec
from framework.netlab import OUT4, OUT6, resolve

pytestmark = pytest.mark.root
NO_WISHES = DnsSpec()


def spec(*networks: str, aliases: tuple[str, ...] = (), containers: tuple[str, ...] = (), dns: DnsSpec = NO_WISHES):
    return PodSpec(
        network=NetworkSpec(attachments=tuple(Attachment(network=n, aliases=aliases) for n in networks)),
        containers=tuple(ContainerSpec(name=name) for name in containers),
        dns=dns,
    )


def test_names_of_pods(lab) -> None:
    """Pod, container and alias; A, AAAA and PTR; UDP and TCP, v4 and v6; not from another network; not after detach."""

    async def scenario() -> None:
        manager = lab.manager()
        await manager.create(NetworkCreate(name="red"))
        one, two, alien = lab.pod(), lab.pod(), lab.pod()
        at_one = (await manager.attach("1", "one", spec("default", containers=("app",)), one.netns)).endpoints[0]
        got = await manager.attach("2", "Two", spec("default", "red", aliases=("DB",)), two.netns)
        at_alien = (await manager.attach("3", "alien", spec("red"), alien.netns)).endpoints[0]
        server = got.dns_servers[0]
        assert server == at_one.gateway4
        mine = got.endpoints[0]
        for name in ("two", "TWO", "db", "two.default"):
            assert await resolve(one, server, name) == (0, [mine.ipv4], False)
        assert await resolve(one, server, "two", dns.AAAA) == (0, [mine.ipv6], False)
        assert await resolve(one, at_one.gateway6, "two", dns.AAAA) == (0, [mine.ipv6], False)
        assert await resolve(one, server, "two", tcp=True) == (0, [mine.ipv4], False)
        assert await resolve(one, server, "two", 15) == (0, [], False)
        assert await resolve(two, server, "app") == (0, [at_one.ipv4], False)
        assert await resolve(two, server, "alien") == (0, [at_alien.ipv4], False)
        reverse = ".".join(reversed(mine.ipv4.split("."))) + ".in-addr.arpa"
        answer = await asyncio.to_thread(one, "query", server=server, packet=packet(reverse, dns.PTR).hex())
        assert bytes.fromhex(answer).endswith(b"\3two\0")
        lab.world("serve_dns", address=OUT4, names={})
        assert await resolve(one, server, "alien") == (3, [], False)
        await manager.detach("2")
        assert await resolve(one, server, "two") == (3, [], False)
        await manager.close()

    asyncio.run(scenario())


def packet(name: str, kind: int) -> bytes:
    from framework.netlab import dns_query

    return dns_query(name, kind)


def test_other_names_are_forwarded(lab) -> None:
    """To the host's servers or to the pod's own; truncated answers lead to TCP; no server: SERVFAIL."""

    async def scenario() -> None:
        manager = lab.manager()
        one, two = lab.pod(), lab.pod()
        lab.world("serve_dns", address=OUT4, names={"a.test": [OUT4, 60], "big.test": [OUT4, 60]})
        lab.world("serve_dns", address=OUT6, names={"a.test": ["192.0.2.66", 60]})
        server = (await manager.attach("1", "one", spec("default"), one.netns)).dns_servers[0]
        own = DnsSpec(servers=(OUT6,), searches=("corp",))
        got = await manager.attach("2", "two", spec("default", dns=own), two.netns)
        assert (got.dns_servers, got.dns_searches) == ([server], ["corp"])
        assert await resolve(one, server, "a.test") == (0, [OUT4], False)
        assert await resolve(two, server, "a.test") == (0, ["192.0.2.66"], False)
        assert await resolve(one, server, "none.test") == (3, [], False)
        assert await resolve(one, server, "big.test") == (0, [], True)
        assert await resolve(one, server, "big.test", tcp=True) == (0, [OUT4], False)
        lab.resolv_conf.write_text("nameserver 192.0.2.99\n")  # nobody there
        lab.resolv_conf.write_text("")
        assert await resolve(one, server, "a.test") == (2, [], False)
        assert lab.world.reaches(server, 53) is False
        await manager.close()

    asyncio.run(scenario())


def test_a_taken_port_53_is_named(lab) -> None:
    """Another resolver on the bridge's address: one clear line, and nothing left."""

    async def scenario() -> None:
        manager = lab.manager()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("0.0.0.0", 53))
            with pytest.raises(AlreadyExists, match=r"cannot serve DNS on network n: .*pid \d+"):
                await manager.create(NetworkCreate(name="n"))
        assert await manager.list() == []
        await manager.create(NetworkCreate(name="n", dns=False))
        await manager.close()

    asyncio.run(scenario())
