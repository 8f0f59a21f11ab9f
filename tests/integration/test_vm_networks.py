"""Machines on networks that others make: CNI's, and namespaces of all kinds of interfaces, filled late."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from framework import probes
from framework.daemon import Daemon
from framework.leaks import wait_until
from framework.netlab import Peer

pytestmark = [pytest.mark.root, pytest.mark.timeout(400)]
KINDS = {
    "mv0": "type macvlan mode bridge", "mt0": "type macvtap mode bridge", "ip0": "type ipvlan mode l2",
    "vlan0": "type vlan id 7",
}  # fmt: skip
SERVES = "echo hello >/tmp/index.html; exec httpd -f -p 80 -h /tmp"


@pytest.fixture
def daemon(machine_daemon: Daemon) -> Iterator[Daemon]:
    yield machine_daemon
    machine_daemon.delete_pods()


def out(daemon: Daemon, *argv: str) -> str:
    said: str = daemon.command(*argv, check=True, timeout_s=120).stdout.strip()
    return said


def run(daemon: Daemon, name: str, network: str, *words: str, kind: str = "vm") -> None:
    flags = ("--sandbox", kind, "--network", network, *words)
    out(daemon, "run", "-d", "--name", name, *flags, "busybox", "sh", "-c", SERVES)


def pod(daemon: Daemon, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out(daemon, "inspect", "--type", "pod", name))[0]
    return found


def asks(daemon: Daemon, name: str, host: str) -> str:
    return daemon.command("exec", name, "timeout", "5", "wget", "-qO-", f"http://{host}", timeout_s=120).stdout.strip()


def test_machines_over_cni(daemon: Daemon, tmp_path: Path) -> None:
    """Debian's plug-ins make it; two machines and a container speak to one another by both families of addresses."""
    probes.needs_path("/usr/lib/cni/bridge", package="containernetworking-plugins")
    ranges = [[{"subnet": "10.67.0.0/24"}], [{"subnet": "fd67::/64"}]]
    ipam = {"type": "host-local", "dataDir": str(tmp_path / "leases"), "ranges": ranges}
    bridge = {"type": "bridge", "bridge": "cni-vm0", "isGateway": True, "mtu": 9000, "ipam": ipam}
    config = tmp_path / "lab.conflist"
    config.write_text(json.dumps({"cniVersion": "1.0.0", "name": "lab", "plugins": [bridge]}))
    for name, kind in (("one", "vm"), ("two", "vm"), ("plain", "runc")):
        run(daemon, name, f"cni:{config}", kind=kind)
    ends = {name: pod(daemon, name)["endpoints"][0] for name in ("one", "two", "plain")}
    for asking, asked in (("one", "two"), ("two", "plain"), ("plain", "one")):
        for host in (ends[asked]["ipv4"], f"[{ends[asked]['ipv6']}]"):
            assert asks(daemon, asking, host.replace("/24", "").replace("/64", "")) == "hello", (asking, asked)
    assert out(daemon, "exec", "one", "cat", "/sys/class/net/eth0/mtu") == "9000"
    big = ("ping", "-c", "1", "-W", "5", "-s", "8000", ends["two"]["ipv4"].partition("/")[0])
    assert "1 packets received" in out(daemon, "exec", "one", *big)  # a frame of that size goes through whole


@contextmanager
def peers(number: int) -> Iterator[list[Peer]]:
    made = [Peer() for _ in range(number)]
    try:
        yield made
    finally:
        for one in made:
            one.close()


def cable(pod_: Peer, world: Peer, name: str, net: int) -> None:
    """A veth pair: the world's end has address 1 of a network, the pod's end is named and has no address yet."""
    world.ip(f"link add far{net} type veth peer name {name} netns {pod_.pid}")
    world.ip(f"addr add 10.70.{net}.1/24 dev far{net}")
    world.ip(f"link set far{net} up")


def make_kinds(space: Peer, world: Peer) -> dict[str, int]:
    """An interface of each kind that this kernel has, on a cable of its own; names to numbers of their networks."""
    made = {"eth0": 1}
    cable(space, world, "eth0", 1)
    for net, (name, words) in enumerate(KINDS.items(), 2):
        cable(world, world, f"low{net}", net)  # what is below lies outside, as on a host
        world.ip(f"link set low{net} up")
        try:
            world.ip(f"link add link low{net} name {name} netns {space.pid} {words}")
        except AssertionError as error:
            print(f"this kernel has no {name}: {error}")
            continue
        if name == "vlan0":
            world.ip(f"addr del 10.70.{net}.1/24 dev far{net}")
            world.ip(f"link add link far{net} name vlan1 type vlan id 7")
            world.ip(f"addr add 10.70.{net}.1/24 dev vlan1")
            world.ip("link set vlan1 up")
        made[name] = net
    for name, net in made.items():
        space.ip(f"addr add 10.70.{net}.2/24 dev {name}")
        space.ip(f"link set {name} up")
    return made


def test_a_namespace_of_many_kinds_that_is_filled_late(daemon: Daemon) -> None:
    """The machine runs before there is anything; each interface comes to it as it is made, and reaches the world."""
    with peers(2) as (space, world):
        run(daemon, "late", f"ns:{space.netns}")

        def faces() -> set[str]:
            table = out(daemon, "exec", "late", "cat", "/proc/net/dev")  # in one go: names change meanwhile
            return {line.partition(":")[0].strip() for line in table.splitlines()[2:]}

        assert faces() == {"lo"}
        made = make_kinds(space, world)
        space.ip("link add vx0 type vxlan id 5 dstport 4789")
        space.ip("tuntap add tun0 mode tun")
        for name in ("vx0", "tun0"):
            space.ip(f"link set {name} up")
        wait_until(lambda: {*made, "vx0"} <= faces(), what=f"{set(made)} are there", timeout_s=60)
        for net in made.values():
            ping = ("exec", "late", "ping", "-c", "1", "-W", "3", f"10.70.{net}.1")
            wait_until(lambda ping=ping: daemon.command(*ping).returncode == 0, what=f"10.70.{net}.1", timeout_s=30)
        wait_until(lambda: "vx0" in str(pod(daemon, "late")["machine"]["notes"]), what="the unknown kind is named")
        notes = " ".join(pod(daemon, "late")["machine"]["notes"])
        assert ("'vxlan'" in notes, "tun0" in notes) == (True, True)
        assert "tun0" not in faces()
        space.ip("link del eth0")
        wait_until(lambda: "eth0" not in faces(), what="it has gone again", timeout_s=60)
        out(daemon, "rm", "-f", "late")


@pytest.mark.parametrize("model", ["macvtap", "bridged", "none"])
def test_each_model(daemon: Daemon, model: str) -> None:
    """An interface joined otherwise than by redirecting; joined to nothing, it is there and reaches nobody."""
    probes.needs_full("a machine for each model")
    with peers(2) as (space, world):
        cable(space, world, "eth0", 1)
        space.ip("addr add 10.70.1.2/24 dev eth0")
        space.ip("link set eth0 up")
        run(daemon, "model", f"ns:{space.netns}", "--annotation", f"drupe.vm.network={model}")
        ping = ("exec", "model", "ping", "-c", "1", "-W", "2", "10.70.1.1")
        assert "10.70.1.2" in out(daemon, "exec", "model", "ip", "addr", "show", "eth0")
        if model == "none":
            assert daemon.command(*ping).returncode != 0
        else:
            wait_until(lambda: daemon.command(*ping).returncode == 0, what="the world answers", timeout_s=30)
        out(daemon, "rm", "-f", "model")
        assert "drupe-" not in space.ip("link")
        assert not list(Path("/dev/drupe").glob("*")) if Path("/dev/drupe").exists() else True
