"""CNI with Debian's real plug-ins, chained: bridge, portmap, firewall, tuning."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from drupe.errors import DrupeError, HelperFailed, InvalidArgument, NotFound, Unsupported
from drupe.spec.network import Attachment, NetworkSpec, PortMapping
from drupe.spec.pod import PodSpec
from framework.netlab import HOST4, OUT4, Finished, ask_tcp, ip

pytestmark = pytest.mark.root
FIREWALL = ({"type": "firewall"},)
PLUGINS = ("/usr/lib/cni",)


def conflist(directory: Path, version: str = "1.0.0", last: tuple[dict, ...] = FIREWALL) -> str:
    ipam = {
        "type": "host-local",
        "dataDir": str(directory / "leases"),
        "ranges": [[{"subnet": "10.66.0.0/24"}], [{"subnet": "fd66::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    }
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": True, "hairpinMode": True, "ipam": ipam}
    plugins = [
        bridge | {"capabilities": {"ips": True}},
        {"type": "tuning", "capabilities": {"mac": True}},
        {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
        *last,
    ]
    path = directory / "10-lab.conflist"
    path.write_text(json.dumps({"cniVersion": version, "name": "lab", "plugins": plugins}))
    return str(path)


def spec(config: str, *ports: PortMapping, directory: str = "/nowhere", **attachment) -> PodSpec:
    network = NetworkSpec(
        mode="cni",
        cni_config=config,
        cni_config_dir=directory,
        cni_bin_dirs=PLUGINS,
        attachments=(Attachment(**attachment),),
    )
    return PodSpec(network=network, ports=ports)


def leases(directory: Path) -> list[str]:
    return [path.name for path in (directory / "leases" / "lab").glob("*.*.*.*")]


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
def test_the_chain_with_traffic(lab, tmp_path: Path, version: str) -> None:
    """ADD, CHECK and DEL: addresses, a published port from host and outside, the way out, wishes kept."""

    async def scenario() -> None:
        manager = lab.manager()
        pod, other = lab.pod(), lab.pod()
        config = conflist(tmp_path, version, () if version == "0.3.1" else FIREWALL)  # it has no 0.3.1
        wanted = spec(config, PortMapping(container_port=80, host_port=8080), interface="net0", mac="02:00:00:00:00:07")
        got = await manager.attach("pod-1", "one", wanted, pod.netns)
        end = got.endpoints[0]
        assert (end.network, end.interface, end.mac) == ("lab", "net0", "02:00:00:00:00:07")
        assert end.ipv4.startswith("10.66.0.")
        assert end.gateway4 == "10.66.0.1"
        assert end.ipv6.startswith("fd66::")
        pod("serve_tcp", address=end.ipv4, port=80)
        lab.world("serve_tcp", address=OUT4, port=7000)
        assert pod("tcp", address=OUT4, port=7000) == HOST4
        assert ask_tcp("127.0.0.1", 8080)
        assert lab.world("tcp", address=HOST4, port=8080)
        second = (await manager.attach("pod-2", "two", spec(config), other.netns)).endpoints[0]
        assert other("tcp", address=end.ipv4, port=80) == second.ipv4
        await manager.check("pod-2")  # portmap 1.1's CHECK of a published port wants it in ip6tables too
        assert (await manager.stats("pod-1")).rx_packets > 3
        commands = [env["CNI_COMMAND"] for _, env, _ in lab.keeper.runs]
        assert commands.count("CHECK") == (0 if version == "0.3.1" else 4)
        if version != "0.3.1":
            other.ip("link del eth0")
            with pytest.raises(HelperFailed, match="CHECK failed"):
                await manager.check("pod-2")
        again = lab.manager()  # a new daemon has only the records
        await manager.close()
        assert len(leases(tmp_path)) == 2
        await again.detach("pod-1")
        await again.detach("pod-1")
        assert leases(tmp_path) == [second.ipv4]
        assert not lab.world.reaches(HOST4, 8080)
        other.close()
        lab.peers.remove(other)
        await again.detach("pod-2")  # the namespace is gone
        assert leases(tmp_path) == []
        kinds = [Path(argv[0]).name for argv, env, _ in lab.keeper.runs if env["CNI_COMMAND"] == "DEL"]
        assert kinds == ["firewall", "portmap", "tuning", "bridge"][version == "0.3.1" :] * 2
        assert lab.records.all("network.pod") == {}
        assert "cni0" in ip("link")  # the plug-in's own, as always
        await again.close()

    asyncio.run(scenario())


def test_what_a_plugin_is_given(lab, tmp_path: Path) -> None:
    """prevResult down the chain, runtimeConfig by capability, K8S arguments, the cached result for DEL."""

    async def scenario() -> None:
        manager = lab.manager()
        wanted = spec("lab", PortMapping(container_port=80), directory=str(tmp_path), ipv4="10.66.0.77")
        conflist(tmp_path)
        (tmp_path / "99-broken.conf").write_text("{")
        got = await manager.attach("pod-1", "one", wanted, lab.pod().netns)
        assert got.endpoints[0].ipv4 == "10.66.0.77"
        assert got.ports[0].host_port > 1024
        runs = [(env, json.loads(stdin)) for _, env, stdin in lab.keeper.runs]
        assert [config["type"] for _, config in runs] == ["bridge", "tuning", "portmap", "firewall"]
        assert "prevResult" not in runs[0][1]
        assert all("prevResult" in config for _, config in runs[1:])
        assert runs[0][1]["runtimeConfig"] == {"ips": ["10.66.0.77"]}
        assert "runtimeConfig" not in runs[1][1]
        assert runs[2][1]["runtimeConfig"]["portMappings"][0]["hostPort"] == got.ports[0].host_port
        assert all("capabilities" not in config for _, config in runs)
        assert "K8S_POD_NAME=one" in runs[0][0]["CNI_ARGS"].split(";")
        assert "K8S_POD_INFRA_CONTAINER_ID=pod-1" in runs[0][0]["CNI_ARGS"].split(";")
        lab.keeper.runs.clear()
        await manager.detach("pod-1")
        assert all("prevResult" in json.loads(stdin) for _, _, stdin in lab.keeper.runs)
        await manager.close()

    asyncio.run(scenario())


def test_a_failing_plugin_is_undone(lab, tmp_path: Path) -> None:
    """The third of four fails: those before it are deleted, the error has the plug-in's own words, no lease is left."""

    async def scenario() -> None:
        manager = lab.manager()
        config = conflist(tmp_path, last=({"type": "tuning", "sysctl": {"net.core.nonsense": "1"}},))
        with pytest.raises(HelperFailed, match=r"CNI plug-in tuning ADD failed.*nonsense"):
            await manager.attach("pod-1", "one", spec(config), lab.pod().netns)
        old = conflist(tmp_path, "0.3.1")
        with pytest.raises(HelperFailed, match=r"CNI plug-in firewall ADD failed.*incompatible"):
            await manager.attach("pod-1", "one", spec(old), lab.pod().netns)
        assert lab.records.all("network.pod") == {}
        assert leases(tmp_path) == []
        await manager.close()

    asyncio.run(scenario())


def test_bad_configurations(lab, tmp_path: Path) -> None:
    """Each with its own error and one clear line; nothing is run."""

    async def scenario() -> None:
        manager = lab.manager()

        async def refused(text: str, error: type[DrupeError], words: str, *ports: PortMapping, **attachment) -> None:
            path = tmp_path / "x.conf"
            path.write_text(text)
            with pytest.raises(error, match=words):
                await manager.attach("p", "p", spec(str(path), *ports, **attachment), "/nowhere")

        good = {"cniVersion": "1.0.0", "name": "n", "type": "bridge"}
        await refused("{", InvalidArgument, "not JSON")
        await refused("[]", InvalidArgument, "not a JSON object")
        await refused(json.dumps(good | {"cniVersion": "0.2.0"}), Unsupported, "version '0.2.0' is not supported")
        await refused(json.dumps(good | {"type": "../../bin/sh"}), InvalidArgument, "bad plug-in type")
        await refused(json.dumps(good | {"type": "nope"}), NotFound, "no CNI plug-in 'nope'")
        await refused(json.dumps(good | {"name": ""}), InvalidArgument, "no name")
        await refused(json.dumps(good | {"plugins": []}), InvalidArgument, "plugins must be")
        port = PortMapping(container_port=80)
        await refused(json.dumps(good), Unsupported, "capability portMappings", port)
        await refused(json.dumps(good), Unsupported, "capability mac", mac="02:00:00:00:00:01")
        with pytest.raises(NotFound, match="no CNI configuration in"):
            await manager.attach("p", "p", spec("", directory=str(tmp_path / "none")), "/nowhere")
        with pytest.raises(NotFound, match="no CNI network 'other'"):
            await manager.attach("p", "p", spec("other", directory=str(tmp_path)), "/nowhere")
        assert lab.keeper.runs == []
        assert lab.records.all("network.pod") == {}
        await manager.close()

    asyncio.run(scenario())


def test_a_refused_del_can_be_tried_again(lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later plug-ins are deleted all the same; the record stays until all are."""

    async def scenario() -> None:
        manager = lab.manager()
        await manager.attach("pod-1", "one", spec(conflist(tmp_path)), lab.pod().netns)
        run = lab.keeper.run

        async def refusing(argv, **more):
            if Path(argv[0]).name == "portmap":
                return Finished(1, '{"code": 11, "msg": "try again later"}', "")
            return await run(argv, **more)

        monkeypatch.setattr(lab.keeper, "run", refusing)
        with pytest.raises(HelperFailed, match="try again later"):
            await manager.detach("pod-1")
        assert leases(tmp_path) == []
        assert list(lab.records.all("network.pod")) == ["pod-1"]
        monkeypatch.undo()
        await manager.detach("pod-1")
        assert lab.records.all("network.pod") == {}
        await manager.close()

    asyncio.run(scenario())
