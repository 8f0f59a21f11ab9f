"""Pods in machines as a user meets them: what two containers share, the network, and forks that are not alike."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from framework import machines
from framework.daemon import Daemon
from framework.leaks import wait_until

pytestmark = [pytest.mark.root]
BLOCK = ("--annotation", "drupe.vm.rootfs=block")


@pytest.fixture(scope="module")
def machine_daemon(open_daemon: Daemon) -> Daemon:
    return machines.prepared(open_daemon)


@pytest.fixture
def daemon(machine_daemon: Daemon) -> Iterator[Daemon]:
    yield machine_daemon
    machine_daemon.delete_pods()


def out(daemon: Daemon, *argv: str) -> str:
    return daemon.command(*argv, check=True).stdout.strip()


def run(daemon: Daemon, name: str, *words: str, script: str = "exec sleep 1000") -> None:
    out(daemon, "run", "-d", "--name", name, "--sandbox", "vm", *words, "busybox", "sh", "-c", script)


def test_the_kernel_is_another(daemon: Daemon) -> None:
    release = out(daemon, "run", "--rm", "--sandbox", "vm", "--network", "none", "busybox", "uname", "-r")
    told = json.loads(out(daemon, "guest", "inspect", "default"))[0]
    assert release == told["release"]


def test_pods_on_the_bridge_and_a_published_port(daemon: Daemon) -> None:
    """A machine serves, another asks it by its address, and the host by the published port; both families."""
    script = "echo from a machine >/tmp/index.html; exec httpd -f -p 80 -h /tmp"
    run(daemon, "server", "-p", "8081:80", script=script)
    endpoint = json.loads(out(daemon, "inspect", "--type", "pod", "server"))[0]["endpoints"][0]
    ask = "for n in $(seq 50); do wget -qO- http://{} && exit; sleep 0.2; done"
    for address in (endpoint["ipv4"], f"[{endpoint['ipv6']}]"):
        asked = ask.format(address.partition("/")[0] if address[0] != "[" else f"{address[1:].partition('/')[0]}")
        if ":" in address:
            asked = ask.format(f"[{address[1:-1].partition('/')[0]}]")
        assert out(daemon, "run", "--rm", "--sandbox", "vm", "busybox", "sh", "-c", asked) == "from a machine"
    wait_until(
        lambda: "from a machine" in daemon.on_host("busybox", "wget", "-qO-", "http://127.0.0.1:8081").stdout,
        what="the published port answers",
    )


def identity(daemon: Daemon, name: str) -> dict[str, str]:
    """What must not be the same in two machines; random: drawn by a process that was there before the fork."""
    asks = "hostname; cat /sys/class/net/eth0/address; ip -4 -o addr show eth0 | awk '{print $4}'; cat /proc/sys/kernel/random/uuid"
    lines = out(daemon, "exec", name, "sh", "-c", asks).splitlines()
    wait_until(lambda: "drawn" in out(daemon, "exec", name, "sh", "-c", "ls /tmp"), what="it has drawn", timeout_s=30)
    drawn = out(daemon, "exec", name, "cat", "/tmp/drawn")
    return dict(zip(("hostname", "mac", "address", "uuid", "drawn"), [*lines, drawn], strict=True))


def test_forks_are_not_alike(daemon: Daemon) -> None:
    """What runs goes on in each, and each has its own random numbers, from the kernel and in a process that was there
    before, host name, MAC and address."""
    script = "while [ ! -e /tmp/go ]; do sleep 0.2; done; head -c 16 /dev/urandom | od -An -tx1 >/tmp/x; mv /tmp/x /tmp/drawn; sleep 1000"
    run(daemon, "origin", *BLOCK, script=f"echo begun >/tmp/begun; {script}")
    for name in ("one", "two"):
        out(daemon, "fork", "--name", name, "origin")
    found: list[dict[str, Any]] = []
    for name in ("origin", "one", "two"):
        assert out(daemon, "exec", name, "cat", "/tmp/begun") == "begun"
        out(daemon, "exec", name, "touch", "/tmp/go")
        found.append(identity(daemon, name))
    for what in found[0]:
        assert len({one[what] for one in found}) == 3, what
