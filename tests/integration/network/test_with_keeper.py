"""One pod spec through the built-in bridge, CNI and an outside namespace, with the real keeper in between."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from drupe.errors import NotFound
from drupe.keeper.client import Keeper
from drupe.keeper.start import ensure_keeper
from drupe.resources.network.manager import NetworkManager
from drupe.resources.network.records import HostNet
from drupe.spec.network import NetworkSpec, PortMapping
from drupe.spec.pod import PodSpec
from framework import probes
from framework.netlab import HOST4, OUT4, MemoryRecords, ip, nft

pytestmark = pytest.mark.root

SERVE = """
import socket
server = socket.create_server(("", 80))
server.settimeout(5)
connection, peer = server.accept()
connection.sendall(peer[0].encode())
connection.close()
"""
CALL = 'import socket; print(socket.create_connection(("{}", 7000), 3).recv(99).decode())'
CHAIN = [
    {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": True,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.66.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]},
    },
    {"type": "portmap", "capabilities": {"portMappings": True}},
    {"type": "firewall"},
]


async def python(keeper: Keeper, netns: str, code: str) -> str:
    done = await keeper.run([sys.executable, "-I", "-S", "-c", code], netns=netns, timeout_s=10)
    assert done.exit == 0, done.stderr
    return done.stdout.strip()


async def ask(lab, address: str, port: int) -> str:
    """As the world, until the server listens."""
    for _ in range(100):
        if answer := await asyncio.to_thread(try_once, lab, address, port):
            return answer
        await asyncio.sleep(0.02)
    raise AssertionError("no answer")


def try_once(lab, address: str, port: int) -> str:
    try:
        return str(lab.world("tcp", address=address, port=port))
    except OSError:
        return ""


@pytest.mark.parametrize("mode", ["bridge", "cni", "path"])
def test_one_spec_three_ways(lab, tmp_path: Path, mode: str) -> None:
    """Out (masqueraded) and, where ports can be published, in; then everything is undone, twice."""
    probes.needs_keeper()
    lab.world("serve_tcp", address=OUT4, port=7000)
    chain = [dict(plugin) for plugin in CHAIN]
    chain[0]["ipam"] = {**CHAIN[0]["ipam"], "dataDir": str(tmp_path / "leases")}  # type: ignore[dict-item]
    (tmp_path / "lab.conflist").write_text(json.dumps({"cniVersion": "1.0.0", "name": "lab", "plugins": chain}))

    async def scenario() -> None:
        keeper = await ensure_keeper(tmp_path / "run")
        try:
            await through(keeper)
        finally:
            await keeper.shutdown(force=True)

    async def through(keeper: Keeper) -> None:
        records = MemoryRecords()
        host = HostNet(resolv_conf=lab.resolv_conf)
        manager = NetworkManager(run=tmp_path / "run", records=records, keeper=keeper, host=host)
        ports = (PortMapping(container_port=80, host_port=8080),)
        directory = tmp_path / "run" / "pod"
        if mode == "path":
            netns, ports = lab.pod().netns, ()
            outfit(lab)
        else:
            await keeper.create_namespaces(directory, ["net"])
            netns = str(directory / "net")
        network = NetworkSpec(
            mode=mode, netns_path=netns, cni_config=str(tmp_path / "lab.conflist"), cni_bin_dirs=("/usr/lib/cni",)
        )
        got = await manager.attach("pod", "pod", PodSpec(network=network, ports=ports), netns)
        assert got.endpoints[0].ipv4
        assert await python(keeper, netns, CALL.format(OUT4)) == HOST4
        if ports:
            serving = asyncio.ensure_future(python(keeper, netns, SERVE))
            assert await ask(lab, HOST4, 8080) == OUT4
            await serving
        if mode != "cni":  # portmap 1.1's CHECK of a published port wants it in ip6tables too
            await manager.check("pod")
        assert (await manager.stats("pod")).tx_packets
        if mode != "path":
            await keeper.release(directory)
            with pytest.raises(NotFound):
                await manager.scan("pod")
        await manager.detach("pod")
        await manager.detach("pod")
        assert records.all("network.pod") == {}
        assert not lab.world.reaches(HOST4, 8080)
        await manager.close()

    asyncio.run(scenario())


def outfit(lab) -> None:
    """Somebody else's network for the pod: a cable to the host, masqueraded by nobody but routed from the world."""
    pod = lab.peers[-1]
    ip(f"link add outside type veth peer name inside netns {pod.pid}")
    ip("addr add 10.44.0.1/24 dev outside")
    ip("link set outside up")
    pod.ip("addr add 10.44.0.2/24 dev inside")
    pod.ip("link set inside up")
    pod.ip("route add default via 10.44.0.1")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    rules = 'table ip others { chain c { type nat hook postrouting priority 100; oifname "uplink" masquerade; }; }'
    nft("-f -", rules)
