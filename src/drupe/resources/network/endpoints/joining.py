"""Join a pod's interfaces to devices that a VMM opens, and undo it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from drupe.errors import NotFound
from drupe.linux import rtnetlink
from drupe.linux.netlink import Netlink
from drupe.linux.rtnetlink import Link
from drupe.resources.network.bridge import explained
from drupe.resources.network.endpoints import bridged, macvtap, tcfilter
from drupe.resources.network.endpoints.contract import Endpoint, Joined, Model, Wanted
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
    if endpoint.kind == "vhost-user":
        return Joined(endpoint, "vhost-user", socket=endpoint.socket, queues=wanted.queues)
    if endpoint.pci and wanted.vfio:
        return Joined(endpoint, "vfio", pci=endpoint.pci)
    if endpoint.kind == "tap":
        return Joined(endpoint, "direct", tap=endpoint.name, queues=endpoint.link.queues)
    if endpoint.kind == "layer 3":
        note = f"{endpoint.name} ({endpoint.detail}) carries no Ethernet frames: the guest does not get it"
        return Joined(endpoint, "left out", note=note)
    return await _by_model(keeper, netns, endpoint, wanted)


async def _by_model(keeper: Keeper, netns: Path | str, endpoint: Endpoint, wanted: Wanted) -> Joined:
    how, note = choose(endpoint, wanted.model)
    link = endpoint.link
    with await open_netlink(keeper, netns) as netlink, explained(f"cannot join {endpoint.name} to a machine"):
        try:
            if how == "macvtap":
                _, node = await macvtap.join(keeper, netns, netlink, link, wanted)
                return Joined(endpoint, how, node=node, queues=wanted.queues, note=note)
            own = _own_mac(netlink, link)
            alias = own if how == "bridged" else ""
            queues, owner = wanted.queues, wanted.owner
            tap = await make_tap(keeper, netns, netlink, link, queues=queues, owner=owner, alias=alias)
            if how == "tc-filter":
                tcfilter.join(netlink, link.index, tap.index)
            elif how == "bridged":
                bridged.join(netlink, replace(link, mac=own), tap)
        except BaseException:
            _part(netlink, link)
            raise
        found = replace(endpoint, link=replace(link, mac=own))
        return Joined(found, how, tap=tap.name, queues=wanted.queues, note=note)


def choose(endpoint: Endpoint, model: Model) -> tuple[Model, str]:
    """The model for an interface, and why it is not the one asked for. tc-filter goes with whatever carries frames."""
    if endpoint.kind == "other":
        return "tc-filter", f"{endpoint.name} is of kind {endpoint.detail!r}, unknown here: joined by tc-filter"
    if model in ("macvtap", "bridged") and endpoint.kind in ("macvlan", "macvtap", "ipvlan", "tuntap"):
        return "tc-filter", f"{endpoint.name} ({endpoint.kind}) cannot be joined by {model}: tc-filter instead"
    return model, ""


def _own_mac(netlink: Netlink, link: Link) -> str:
    """The address that the guest gets: the interface's, which it may have lent away."""
    tap = rtnetlink.link(netlink, tap_name(link))
    return tap.alias if tap and tap.alias else link.mac


async def part(keeper: Keeper, netns: Path | str, name: str = "", *, directory: Path | None = None) -> None:
    """Undoes `join` for one interface, or for all of the namespace. directory: `Wanted.dir`, where nodes are.
    Idempotent; a namespace that is gone is fine."""
    for node in directory.glob("drupe-tap*") if directory else ():
        if not name:
            node.unlink(missing_ok=True)
    try:
        netlink = await open_netlink(keeper, netns)
    except NotFound:
        return
    with netlink, explained(f"cannot part interfaces of {netns} from their machine"):
        for link in rtnetlink.links(netlink):
            if link.group != MACHINE_LINKS and name in ("", link.name):
                _part(netlink, link)
                if directory:
                    (directory / tap_name(link)).unlink(missing_ok=True)


async def part_orphans(keeper: Keeper, netns: Path | str) -> None:
    """Removes taps whose interface has gone. Idempotent."""
    with await open_netlink(keeper, netns) as netlink, explained(f"cannot remove taps of {netns}"):
        links = rtnetlink.links(netlink)
        standing = {tap_name(link) for link in links if link.group != MACHINE_LINKS}
        gone = [
            link for link in links if link.group == MACHINE_LINKS and link.kind == "tun" and link.name not in standing
        ]
        if gone:
            netlink.batch([rtnetlink.delete_link(link.index) for link in gone])


def _part(netlink: Netlink, link: Link) -> None:
    if found := rtnetlink.link(netlink, tap_name(link)):
        tcfilter.part(netlink, link.index)
        bridged.part(netlink, link, found)
        netlink.batch([rtnetlink.delete_link(found.index)])
