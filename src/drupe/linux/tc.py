"""tc(8) by rtnetlink: all frames that arrive at one interface leave by another (tc-u32, tc-mirred)."""

from __future__ import annotations

import socket
import struct

from drupe.linux.netlink import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Message, Netlink, attribute, nested, text

_RTM_NEWQDISC, _RTM_DELQDISC = 36, 37
_RTM_NEWTFILTER, _RTM_DELTFILTER, _RTM_GETTFILTER = 44, 45, 46
_TC_H_INGRESS = 0xFFFFFFF1
_INGRESS_HANDLE = 0xFFFF0000
_PARENT = 0xFFFFFFF2  # of what arrives, below qdiscs "ingress" and "clsact" alike
_TCMSG = struct.Struct("=BxxxiIII")
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_U32_SEL, _TCA_U32_ACT = 5, 7
_TCA_ACT_KIND, _TCA_ACT_OPTIONS = 1, 2
_TCA_MIRRED_PARMS = 2
_TCA_EGRESS_REDIR = 1
_TC_ACT_STOLEN = 4
_ETH_P_ALL = 3
_TERMINAL = 1  # TC_U32_TERMINAL: what matches goes no further
_PRIORITY = 0xD20  # ours; lower numbers come first
_U32_SEL = struct.Struct("=BBBxHHHhhxxI")  # flags, offshift, nkeys, offmask, off, offoff, hoff, hmask
_U32_KEY = struct.Struct("=IIii")  # mask, value, offset, offset mask
_MIRRED = struct.Struct("=IIiiiiI")  # index, capab, action, refcnt, bindcnt, eaction, ifindex


def new_ingress(index: int) -> Message:
    """The place at which frames that arrive can be filtered. EEXIST when there is one."""
    body = _TCMSG.pack(socket.AF_UNSPEC, index, _INGRESS_HANDLE, _TC_H_INGRESS, 0) + text(_TCA_KIND, "ingress")
    return Message(_RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, body)


def delete_ingress(index: int) -> Message:
    """Takes it away with all its filters. ENOENT or EINVAL when there is none."""
    body = _TCMSG.pack(socket.AF_UNSPEC, index, _INGRESS_HANDLE, _TC_H_INGRESS, 0)
    return Message(_RTM_DELQDISC, 0, body)


def redirect(source: int, target: int) -> Message:
    """Every frame that arrives at `source` leaves by `target`, unseen by the IP stack. Needs `new_ingress(source)`.

    u32 with a match of nothing rather than matchall, which not every kernel has.
    """
    body = _filters(source) + text(_TCA_KIND, "u32")
    body += nested(_TCA_OPTIONS, attribute(_TCA_U32_SEL, _match_all()), nested(_TCA_U32_ACT, _mirred(target)))
    return Message(_RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_REPLACE, body)


def delete_redirect(source: int) -> Message:
    """Undoes `redirect`. ENOENT or EINVAL when there is none."""
    return Message(_RTM_DELTFILTER, 0, _filters(source))


def is_filtered(netlink: Netlink, index: int) -> bool:
    """Whether any filter looks at what arrives at an interface."""
    body = _TCMSG.pack(socket.AF_UNSPEC, index, 0, _PARENT, 0)
    return bool(netlink.dump(Message(_RTM_GETTFILTER, 0, body)))


def _filters(index: int) -> bytes:
    return _TCMSG.pack(socket.AF_UNSPEC, index, 0, _PARENT, _PRIORITY << 16 | socket.htons(_ETH_P_ALL))


def _match_all() -> bytes:
    return _U32_SEL.pack(_TERMINAL, 0, 1, 0, 0, 0, 0, 0, 0) + _U32_KEY.pack(0, 0, 0, 0)


def _mirred(target: int) -> bytes:
    parameters = _MIRRED.pack(0, 0, _TC_ACT_STOLEN, 0, 0, _TCA_EGRESS_REDIR, target)
    options = nested(_TCA_ACT_OPTIONS, attribute(_TCA_MIRRED_PARMS, parameters))
    return nested(1, text(_TCA_ACT_KIND, "mirred"), options)
