"""Model macvtap: a macvtap in passthru mode on the interface, opened by its character device once for each queue."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

from drupe.errors import Unavailable
from drupe.linux import rtnetlink, uevents
from drupe.linux.netlink import Netlink
from drupe.linux.rtnetlink import Link
from drupe.resources.network.endpoints.contract import Wanted
from drupe.resources.network.endpoints.taps import tap_name
from drupe.resources.network.records import MACHINE_LINKS, Keeper

_TIMEOUT_S = 5.0


async def join(keeper: Keeper, netns: Path | str, netlink: Netlink, link: Link, wanted: Wanted) -> tuple[Link, Path]:
    """The macvtap and its node in `wanted.dir`. The kernel tells the device's number by an event alone: the file system
    that also has it is another namespace's. Raises OSError, DrupeError."""
    name = tap_name(link)
    node = wanted.dir / name
    if (found := rtnetlink.link(netlink, name)) and node.exists():
        return found, node
    if found:
        netlink.batch([rtnetlink.delete_link(found.index)])
    fd = await keeper.netns_socket(netns, socket.AF_NETLINK, socket.SOCK_RAW, uevents.NETLINK_KOBJECT_UEVENT)
    with uevents.UeventSocket(fd) as events:
        netlink.batch([rtnetlink.new_macvtap(name, lower=link.index, mtu=link.mtu, queues=wanted.queues)])
        made = rtnetlink.link(netlink, name)
        if made is None:
            raise FileNotFoundError(f"macvtap {name} went as it came")
        netlink.batch(
            [
                rtnetlink.adjust(made.index, mtu=link.mtu, group=MACHINE_LINKS),
                rtnetlink.set_up(made.index),
            ]
        )
        number = events.device_number(f"tap{made.index}", timeout_s=_TIMEOUT_S)
    if number is None:
        raise Unavailable(f"the kernel did not tell the device of {name}", stage="network")
    make_node(node, number, wanted.owner)
    return made, node


def make_node(node: Path, number: int, owner: int) -> None:
    """A character device for its owner alone."""
    node.unlink(missing_ok=True)
    os.mknod(node, stat.S_IFCHR | 0o600, number)
    os.chown(node, owner, -1)
