"""Addresses of a network namespace that runsc takes away.

Its netstack answers for the pod's addresses by itself; so that the host's kernel does not answer too, runsc removes
them from the interfaces, once it has read them, and with them the routes. A sandbox that is made a second time in the
same namespace (a container that is started again) would find none. They are noted before the first, and put back before
each further one.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import msgspec

from drupe.errors import HelperFailed
from drupe.keeper.client import Keeper
from drupe.linux.netlink import Message, Netlink, NetlinkError
from drupe.linux.rtnetlink import as_set_again


async def put_back_or_note(keeper: Keeper, netns: str, note: Path) -> None:
    """Put back what is in `note`, or write the note when there is none."""
    descriptor = await keeper.netns_socket(netns, socket.AF_NETLINK, socket.SOCK_RAW)
    with Netlink(fd=descriptor) as netlink:
        try:
            if note.exists():
                await asyncio.to_thread(_put_back, netlink, note)
            else:
                await asyncio.to_thread(_note, netlink, note)
        except NetlinkError as error:
            raise HelperFailed("the pod's addresses cannot be set again", stage="network", cause=str(error)) from None


def _note(netlink: Netlink, note: Path) -> None:
    note.write_bytes(msgspec.json.encode([tuple(message) for message in as_set_again(netlink)]))


def _put_back(netlink: Netlink, note: Path) -> None:
    rows = msgspec.json.decode(note.read_bytes(), type=list[tuple[int, int, bytes]])
    if rows:
        netlink.batch([Message(*row) for row in rows])
