"""The connection tracking table, over nfnetlink (linux/netfilter/nfnetlink_conntrack.h)."""

from __future__ import annotations

import errno
import socket
import struct

from drupe.linux.netlink import (
    NETLINK_NETFILTER,
    Message,
    Netlink,
    NetlinkError,
    attribute,
    attributes,
    nested,
    u8,
    u32,
)

_GET, _DELETE = 0x101, 0x102  # NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_*
_CTA_TUPLE_ORIG, _CTA_ID, _CTA_FILTER = 1, 12, 25
_CTA_TUPLE_PROTO = 2
_CTA_PROTO_NUM, _CTA_PROTO_DST_PORT = 1, 3
_CTA_FILTER_ORIG_FLAGS, _CTA_FILTER_REPLY_FLAGS = 1, 2
_BY_PROTOCOL_AND_PORT = 1 << 3 | 1 << 5  # CTA_FILTER_F_CTA_PROTO_NUM, CTA_FILTER_F_CTA_PROTO_DST_PORT
_NFGENMSG = struct.Struct("=BBH")


def forget(protocol: int, port: int) -> int:
    """Deletes the entries whose first packet went to `port`; how many. Translations are then looked up anew.

    Raises NetlinkError. Needs Linux 5.8; without connection tracking there is nothing to do.
    """
    with Netlink(NETLINK_NETFILTER) as netlink:
        return sum(_forget(netlink, family, protocol, port) for family in (socket.AF_INET, socket.AF_INET6))


def _forget(netlink: Netlink, family: int, protocol: int, port: int) -> int:
    head = _NFGENMSG.pack(family, 0, 0)
    wanted = nested(
        _CTA_TUPLE_PROTO, u8(_CTA_PROTO_NUM, protocol), attribute(_CTA_PROTO_DST_PORT, struct.pack(">H", port))
    )
    chosen = nested(_CTA_FILTER, u32(_CTA_FILTER_ORIG_FLAGS, _BY_PROTOCOL_AND_PORT), u32(_CTA_FILTER_REPLY_FLAGS, 0))
    try:
        found = netlink.dump(Message(_GET, 0, head + nested(_CTA_TUPLE_ORIG, wanted) + chosen))
    except NetlinkError as error:
        if error.errno in (errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL):
            return 0
        raise
    gone = 0
    for _, body in found:
        values = dict(attributes(body[_NFGENMSG.size :]))
        entry = attribute(_CTA_TUPLE_ORIG | 0x8000, values[_CTA_TUPLE_ORIG]) + attribute(_CTA_ID, values[_CTA_ID])
        try:
            netlink.batch([Message(_DELETE, 0, head + entry)])
            gone += 1
        except NetlinkError as error:
            if error.errno != errno.ENOENT:  # it has just ended by itself
                raise
    return gone
