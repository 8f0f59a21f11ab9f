"""Join a pod's interfaces to devices that a VMM opens, and undo it."""

from __future__ import annotations

from pathlib import Path

from drupe.errors import NotFound
from drupe.linux import rtnetlink
from drupe.linux.netlink import Netlink
from drupe.linux.rtnetlink import Link
from drupe.resources.network.bridge import explained
from drupe.resources.network.endpoints import tcfilter
from drupe.resources.network.endpoints.contract import Endpoint, Joined, Wanted
from drupe.resources.network.endpoints.discover import discover
from drupe.resources.network.endpoints.taps import make_tap, tap_name
from drupe.resources.network.records import MACHINE_LINKS, Keeper
from drupe.resources.network.scan import open_netlink


async def find(keeper: Keeper, netns: Path | str, *, vhost_user: Path | None = None) -> list[Endpoint]:
    """The interfaces that a guest would take over. Raises NotFound when the namespace is gone."""
    with await open_netlink(keeper, netns) as netlink, explained(f"cannot read network namespace {netns}"):
        return discover(netlink, vhost_user=vhost_user)


async def join(keeper: Keeper, netns: Path | str, endpoint: Endpoint, wanted: Wanted) -> Joined:
    """Makes what joins `endpoint` to a machine; made before, it is found again. Raises DrupeError, nothing left."""
    with await open_netlink(keeper, netns) as netlink, explained(f"cannot join {endpoint.name} to a machine"):
        try:
            tap = await make_tap(keeper, netns, netlink, endpoint.link, queues=wanted.queues, owner=wanted.owner)
            tcfilter.join(netlink, endpoint.link.index, tap.index)
        except BaseException:
            _part(netlink, endpoint.link)
            raise
        return Joined(endpoint, "tc-filter", tap=tap.name, queues=wanted.queues)


async def part(keeper: Keeper, netns: Path | str, name: str = "") -> None:
    """Undoes `join` for one interface, or for all of the namespace. Idempotent; a namespace that is gone is fine."""
    try:
        netlink = await open_netlink(keeper, netns)
    except NotFound:
        return
    with netlink, explained(f"cannot part interfaces of {netns} from their machine"):
        for link in rtnetlink.links(netlink):
            if link.group != MACHINE_LINKS and name in ("", link.name):
                _part(netlink, link)


def _part(netlink: Netlink, link: Link) -> None:
    if found := rtnetlink.link(netlink, tap_name(link)):
        tcfilter.part(netlink, link.index)
        netlink.batch([rtnetlink.delete_link(found.index)])
