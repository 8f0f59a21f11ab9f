"""A network that fails, or whose daemon dies, at every step of attach and detach: nothing is left."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from drupe.errors import DrupeError
from drupe.linux.netlink import Netlink, NetlinkError
from drupe.linux.nftables import Nftables, NftablesError
from drupe.resources.network.manager import NetworkManager
from drupe.spec.network import Attachment, EgressPolicy, EgressRule, NetworkSpec, PortMapping
from drupe.spec.pod import PodSpec
from framework import netlab
from framework.netlab import LocalKeeper, MemoryRecords, Peer, ip, nft

pytestmark = [pytest.mark.root, pytest.mark.slow]
RULES = (EgressRule(dns="a.test"), EgressRule(cidr="10.0.0.0/8"))
SPEC = PodSpec(
    network=NetworkSpec(attachments=(Attachment(),), policy=EgressPolicy(default="deny", rules=RULES)),
    ports=(PortMapping(container_port=80, host_port=8080), PortMapping(container_port=53, protocol="udp")),
)
MANY = 60  # more steps than there are


class Died(BaseException):
    """The daemon is gone at once: no undo runs."""


class Steps:
    """Counts the steps that change something, and lets one of them go wrong."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.bad = -1
        self.dead = False
        self.die = False
        failure = NetlinkError(errno.ENOMEM, "made to fail")
        self._wrap(monkeypatch, Netlink, "batch", failure)
        self._wrap(monkeypatch, Nftables, "run", NftablesError("made to fail"))
        self._wrap(monkeypatch, MemoryRecords, "put", DrupeError("made to fail"))
        self._wrap(monkeypatch, MemoryRecords, "delete", DrupeError("made to fail"))

    def _wrap(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, failure: Exception) -> None:
        real: Callable[..., Any] = getattr(owner, name)

        def stepping(*arguments: Any, **more: Any) -> Any:
            if self.dead:
                raise Died
            self.count += 1
            if self.count == self.bad:
                self.dead = self.die
                raise Died if self.die else failure
            return real(*arguments, **more)

        monkeypatch.setattr(owner, name, stepping)

    def arm(self, step: int, *, die: bool) -> None:
        self.count, self.bad, self.die, self.dead = 0, step, die, False

    def disarm(self) -> bool:
        """Whether the bad step was reached."""
        reached = self.count >= self.bad > 0
        self.bad, self.dead = -1, False
        return reached


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Steps]:
    with netlab.private_host():
        yield Steps(monkeypatch)


def state() -> tuple[set[str], str]:
    """Interfaces, and all rules without their numbers."""
    links = {link["ifname"] for link in json.loads(ip("-j link"))}
    return links, nft("list ruleset")


def make(records: MemoryRecords, directory: Path) -> NetworkManager:
    return NetworkManager(run=directory, records=records, keeper=LocalKeeper())


def test_each_step_of_attach_may_fail(steps: Steps, tmp_path: Path) -> None:
    """The error is drupe's, the pod's traces are gone, and the next try works."""

    async def scenario() -> None:
        records = MemoryRecords()
        manager = make(records, tmp_path)
        pod = Peer()
        await manager.attach("warm", "warm", PodSpec(), pod.netns)
        await manager.detach("warm")
        before = state()
        for step in range(1, MANY):
            steps.arm(step, die=False)
            try:
                await manager.attach("p", "p", SPEC, pod.netns)
                reached = steps.disarm()
            except DrupeError as error:
                reached = steps.disarm()
                assert "made to fail" in str(error), error
            await manager.detach("p")
            assert state() == before, step
            assert records.all("network.pod") == {}
            if not reached:
                break
        else:
            raise AssertionError("more steps than expected")
        assert step > 6
        await manager.close()
        pod.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("phase", ["attach", "detach", "create"])
def test_the_daemon_may_die_at_each_step(steps: Steps, tmp_path: Path, phase: str) -> None:
    """A new one with the records alone brings everything back to what it was."""

    async def scenario() -> None:
        pod, live = Peer(), Peer()
        for step in range(1, MANY):
            records = MemoryRecords()
            manager = make(records, tmp_path)
            if phase != "create":
                await manager.attach("live", "live", PodSpec(), live.netns)
            before = state()
            if phase == "detach":
                await manager.attach("p", "p", SPEC, pod.netns)
            steps.arm(step, die=True)
            with suppress(Died):
                await (manager.detach("p") if phase == "detach" else manager.attach("p", "p", SPEC, pod.netns))
            reached = steps.disarm()
            await manager.close()
            again = make(records, tmp_path)
            await again.recover({"live"})
            if phase == "create":
                for network in await again.list():
                    await again.delete(network.name)
            assert state() == before, (phase, step)
            assert "p" not in records.all("network.pod")
            await again.attach("p", "p", SPEC, pod.netns)
            await again.check("p")
            await again.detach("p")
            await again.detach("live")
            await again.delete("default")
            await again.close()
            assert state() == ({"lo"}, ""), (phase, step)
            if not reached:
                break
        else:
            raise AssertionError("more steps than expected")
        assert step > 2
        pod.close()
        live.close()

    asyncio.run(scenario())
