"""Taps in a pod's namespace: made through a file that was opened there, and lasting until they are deleted."""

from __future__ import annotations

import os
from pathlib import Path

from drupe.linux import rtnetlink, tuntap
from drupe.linux.netlink import Netlink
from drupe.linux.rtnetlink import Link
from drupe.resources.network.records import MACHINE_LINKS, Keeper


def tap_name(link: Link) -> str:
    """The tap that stands for an interface: follows from its index, which is unique in the namespace."""
    return f"drupe-tap{link.index}"


async def make_tap(
    keeper: Keeper, netns: Path | str, netlink: Netlink, link: Link, *, queues: int, owner: int, alias: str = ""
) -> Link:
    """The tap for `link`, up, with its MTU. One that is there is taken as it is. Raises OSError, DrupeError."""
    name = tap_name(link)
    if found := rtnetlink.link(netlink, name):
        return found
    fd = await keeper.netns_open(netns, tuntap.DEVICE)
    try:
        tuntap.attach_tap(fd, name, queues=queues)
        made = rtnetlink.link(netlink, name)
        if made is None:
            raise FileNotFoundError(f"tap {name} went as it came")
        netlink.batch(
            [
                rtnetlink.adjust(made.index, mtu=link.mtu, group=MACHINE_LINKS, alias=alias),
                rtnetlink.set_up(made.index),
            ]
        )
        tuntap.make_lasting(fd, owner=owner)
    finally:
        os.close(fd)
    return made
