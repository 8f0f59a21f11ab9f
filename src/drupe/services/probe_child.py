"""Probes of the network, run as `python -m drupe.services.probe_child NAME` inside a fresh network namespace.

Exit 0 when it works; else the last line of standard error is "cause | mend".
"""

from __future__ import annotations

import os
import socket
import sys

_LOOPBACK_INDEX = 1
_MTU = 1500


def nftables() -> None:
    """Make a table with a masquerading chain."""
    from drupe.linux.nftables import Nftables, NftablesError

    try:
        context = Nftables()
    except OSError as error:
        fail(str(error), "apt-get install libnftables1")
    chain = "{ type nat hook postrouting priority 100; }"
    try:
        context.run(f"add table inet probe; add chain inet probe out {chain}; add rule inet probe out masquerade")
    except NftablesError as error:
        fail(str(error).replace("\n", " "), "modprobe nf_tables nft_masq, or use a kernel with them")
    finally:
        context.close()


def bridge() -> None:
    """Make a bridge with one end of a veth pair in it."""
    from drupe.linux import rtnetlink
    from drupe.linux.netlink import Netlink, NetlinkError

    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        with Netlink() as netlink:
            netlink.batch([rtnetlink.new_bridge("probe0", mac="02:00:00:00:00:01", mtu=_MTU)])
            made = rtnetlink.link(netlink, "probe0")
            master = made.index if made else 0
            pair = rtnetlink.new_veth(
                "probe1", master=master, mtu=_MTU, peer_netns=own, peer="probe2", peer_mac="02:00:00:00:00:02"
            )
            netlink.batch([pair])
    except NetlinkError as error:
        fail(str(error), "modprobe bridge veth, or use a kernel with them")


def ipv6() -> None:
    """Bind a socket to ::1."""
    from drupe.linux import rtnetlink
    from drupe.linux.netlink import Netlink

    try:
        with Netlink() as netlink:
            netlink.batch([rtnetlink.set_up(_LOOPBACK_INDEX, link_local=True)])
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        fail(
            f"IPv6 does not work: {error.strerror}",
            "sysctl -w net.ipv6.conf.all.disable_ipv6=0; boot without ipv6.disable=1",
        )


def fail(cause: str, mend: str) -> None:
    """End as a failed probe."""
    sys.stderr.write(f"{cause} | {mend}\n")
    sys.exit(1)


if __name__ == "__main__":
    {"nftables": nftables, "bridge": bridge, "ipv6": ipv6}[sys.argv[1]]()
