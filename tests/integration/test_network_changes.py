"""Pods join further networks and leave them while they run: the same on the host's kernel and in machines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from framework import machines
from framework.daemon import Daemon
from framework.leaks import wait_until

pytestmark = [pytest.mark.root, pytest.mark.timeout(400)]
SERVES = "echo from the back >/tmp/index.html; exec httpd -f -p 80 -h /tmp"


@pytest.fixture(scope="module")
def network_daemon(open_daemon: Daemon) -> Daemon:
    return machines.prepared(open_daemon)


@pytest.fixture
def daemon(network_daemon: Daemon) -> Iterator[Daemon]:
    """With a network `back`, and a pod there that serves."""
    out(network_daemon, "network", "create", "--mtu", "1400", "back")
    out(
        network_daemon,
        "run",
        "-d",
        "--sandbox",
        "runc",
        "--name",
        "server",
        "--network",
        "back",
        "busybox",
        "sh",
        "-c",
        SERVES,
    )
    yield network_daemon
    network_daemon.delete_pods()
    out(network_daemon, "network", "rm", "back")


def out(daemon: Daemon, *argv: str) -> str:
    said: str = daemon.command(*argv, check=True, timeout_s=120).stdout.strip()
    return said


def pod(daemon: Daemon, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out(daemon, "inspect", "--type", "pod", name))[0]
    return found


@pytest.mark.parametrize("kind", ["runc", "appkernel", "vm"])
def test_a_network_is_joined_and_left(daemon: Daemon, kind: str) -> None:
    """By name and by both families of addresses; the interface is there in the workload, and has gone again."""
    out(daemon, "run", "-d", "--name", "mover", "--sandbox", kind, "busybox", "sleep", "1000")
    server = pod(daemon, "server")["endpoints"][0]
    hosts = ("server", server["ipv4"], f"[{server['ipv6']}]")

    def asks(host: str, *, within_s: int = 5) -> str:
        argv = ("exec", "mover", "timeout", str(within_s), "wget", "-qO-", f"http://{host}")
        return daemon.command(*argv, timeout_s=120).stdout.strip()

    def faces() -> set[str]:
        lines = out(daemon, "exec", "mover", "cat", "/proc/net/dev").splitlines()[2:]
        return {line.partition(":")[0].strip() for line in lines}

    assert asks(server["ipv4"], within_s=2) == ""
    out(daemon, "network", "connect", "--ip", server["ipv4"].rpartition(".")[0] + ".77", "back", "mover")
    assert faces() == {"lo", "eth0", "eth1"}
    assert [asks(host) for host in hosts] == ["from the back"] * 3
    assert [e["network"] for e in pod(daemon, "mover")["endpoints"]] == ["default", "back"]
    assert pod(daemon, "mover")["endpoints"][1]["ipv4"].endswith(".77")
    assert " mtu 1400 " in out(daemon, "exec", "mover", "ip", "link", "show", "eth1")
    assert daemon.command("network", "connect", "back", "mover").returncode != 0  # it is there already

    out(daemon, "network", "disconnect", "default", "mover")
    assert faces() == {"lo", "eth1"}
    assert asks("server") == "from the back"
    assert "default via" in out(daemon, "exec", "mover", "ip", "route")
    refused = daemon.command("network", "disconnect", "back", "mover")
    assert (refused.returncode != 0, "only network" in refused.stderr) == (True, True)

    out(daemon, "restart", "-t", "0", "mover")
    wait_until(lambda: asks("server") == "from the back", what="it has the network after a restart")
    assert faces() == {"lo", "eth1"}


def test_a_kind_that_cannot_says_so(daemon: Daemon) -> None:
    able = json.loads(out(daemon, "system", "capabilities", "--json"))
    assert "network-change" in json.dumps(able)
