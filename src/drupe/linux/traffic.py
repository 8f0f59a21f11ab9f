"""Traffic control by rtnetlink(7): an ingress queue, and a filter that hands every frame to another interface
(tc-u32(8), tc-mirred(8)).

Numbers and structs: linux/pkt_sched.h, pkt_cls.h, tc_act/tc_mirred.h.
"""

from __future__ import annotations

import struct

from drupe.linux.netlink import NLM_F_CREATE, NLM_F_EXCL, Message, attribute, nested, text

_RTM_NEWQDISC, _RTM_NEWTFILTER = 36, 44
_TCMSG = struct.Struct("=BxxxiIII")
_TCA_KIND, _TCA_OPTIONS = 1, 2
_INGRESS_PARENT, _INGRESS_HANDLE = 0xFFFFFFF1, 0xFFFF0000
_U32_SEL, _U32_ACT = 5, 7
_ACT_KIND, _ACT_OPTIONS = 1, 2
_MIRRED_PARMS = 2
_TC_ACT_STOLEN, _EGRESS_REDIRECT = 4, 1
_ETH_P_ALL_BE = 0x0300
_TERMINAL = 1  # TC_U32_TERMINAL
_PRIORITY = 1


def ingress_queue(index: int) -> Message:
    """What comes in through an interface can be filtered from now on. EEXIST when it can already."""
    body = _TCMSG.pack(0, index, _INGRESS_HANDLE, _INGRESS_PARENT, 0) + text(_TCA_KIND, "ingress")
    return Message(_RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, body)


def redirect_all(index: int, to: int) -> Message:
    """Every frame that comes in through one interface goes out through another, and nowhere else."""
    # struct tc_u32_sel with one key that every packet matches
    selector = struct.pack("=BBBBHHhhI", _TERMINAL, 0, 1, 0, 0, 0, 0, 0, 0) + struct.pack("=IIii", 0, 0, 0, 0)
    # struct tc_mirred: index, capab, action, refcnt, bindcnt, eaction, ifindex
    mirred = struct.pack("=IIiiiiI", 0, 0, _TC_ACT_STOLEN, 0, 0, _EGRESS_REDIRECT, to)
    action = nested(1, text(_ACT_KIND, "mirred"), nested(_ACT_OPTIONS, attribute(_MIRRED_PARMS, mirred)))
    options = nested(_TCA_OPTIONS, attribute(_U32_SEL, selector), nested(_U32_ACT, action))
    info = (_PRIORITY << 16) | _ETH_P_ALL_BE
    body = _TCMSG.pack(0, index, 0, _INGRESS_HANDLE, info) + text(_TCA_KIND, "u32") + options
    return Message(_RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, body)
