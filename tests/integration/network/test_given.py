"""Namespaces that others fill: joined by path, or filled by prestart hooks (CNM)."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from drupe.errors import HelperFailed, InvalidArgument, InvalidState, NotFound, Unsupported
from drupe.spec.container import Hook, Hooks
from drupe.spec.network import NetworkSpec, PortMapping
from drupe.spec.pod import PodSpec
from framework.netlab import OUT4

pytestmark = pytest.mark.root

HOOK = """#!/bin/sh
cat > {out}
pid=$(sed 's/.*"pid":\\([0-9]*\\).*/\\1/' {out})
readlink /proc/$pid/ns/net > {out}.ns
ip link add eth7 type veth peer name far7
ip addr add 10.55.0.2/24 dev eth7
ip addr add fd55::2/64 dev eth7 nodad
ip link set eth7 up; ip link set far7 up
ip route add default via 10.55.0.1
"""


def test_path(lab) -> None:
    """A namespace is joined and scanned, counted, checked, and stays as it was."""

    async def scenario() -> None:
        manager = lab.manager()
        spec = PodSpec(network=NetworkSpec(mode="path", netns_path=lab.world.netns))
        got = await manager.attach("p", "p", spec, "")
        assert [(e.interface, e.ipv4, e.ipv6) for e in got.endpoints] == [("far", OUT4, "2001:db8::1")]
        assert got.dns_servers == [OUT4]
        await manager.check("p")
        assert (await manager.stats("p")).tx_packets >= 0
        await manager.detach("p")
        assert "far" in lab.world.ip("link")
        for bad, error in (
            (PodSpec(network=NetworkSpec(mode="path")), InvalidArgument),
            (PodSpec(network=NetworkSpec(mode="path", netns_path="/proc/self/nothing")), NotFound),
            (PodSpec(network=spec.network, ports=(PortMapping(container_port=80),)), Unsupported),
        ):
            with pytest.raises(error):
                await manager.attach("p", "p", bad, "")
        assert lab.records.all("network.pod") == {}
        await manager.close()

    asyncio.run(scenario())


def test_cnm(lab, tmp_path: Path) -> None:
    """Hooks run inside with the OCI state on stdin, whose pid is in the namespace; what they made is found."""

    async def scenario() -> None:
        manager = lab.manager()
        pod = lab.pod()
        hook = tmp_path / "hook"
        hook.write_text(HOOK.format(out=tmp_path / "state"))
        hook.chmod(0o755)
        network = NetworkSpec(mode="cnm")
        spec = PodSpec(network=network, hooks=Hooks(prestart=(Hook(path=str(hook)),)))
        got = await manager.attach("p", "p", spec, pod.netns)
        end = next(e for e in got.endpoints if e.interface == "eth7")
        assert (end.ipv4, end.ipv6, end.gateway4) == ("10.55.0.2", "fd55::2", "10.55.0.1")
        state = json.loads((tmp_path / "state").read_text())
        assert (state["id"], state["status"]) == ("p", "created")
        assert isinstance(state["pid"], int)
        assert (tmp_path / "state.ns").read_text().strip() == str(Path(pod.netns).readlink())
        await manager.check("p")
        pod.ip("link del eth7")
        with pytest.raises(InvalidState, match="lost eth7"):
            await manager.check("p")
        await manager.detach("p")
        bad = PodSpec(network=network, hooks=Hooks(prestart=(Hook(path="/bin/false"),)))
        with pytest.raises(HelperFailed, match="/bin/false failed"):
            await manager.attach("q", "q", bad, lab.pod().netns)
        assert lab.records.all("network.pod") == {}
        await manager.close()

    asyncio.run(scenario())
