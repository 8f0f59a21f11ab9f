"""Model tc-filter: what arrives at the interface leaves by the tap, and the other way, without a bridge between."""

from __future__ import annotations

import errno

from drupe.linux import tc
from drupe.linux.netlink import Message, Netlink, NetlinkError

_ABSENT = (errno.ENOENT, errno.EINVAL, errno.ENODEV)


def join(netlink: Netlink, one: int, other: int) -> None:
    """Redirects all frames both ways; a filter place that somebody made before is shared. Raises NetlinkError."""
    for source in (one, other):
        try:
            netlink.batch([tc.new_ingress(source)])
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise
    netlink.batch([tc.redirect(one, other), tc.redirect(other, one)])


def part(netlink: Netlink, index: int) -> None:
    """Undoes `join` at an interface that stays. Idempotent."""
    _quietly(netlink, tc.delete_redirect(index))
    if not tc.is_filtered(netlink, index):
        _quietly(netlink, tc.delete_ingress(index))


def _quietly(netlink: Netlink, message: Message) -> None:
    try:
        netlink.batch([message])
    except NetlinkError as error:
        if error.errno not in _ABSENT:
            raise
