//! /proc/net: the network as the pod's processes see it.

use std::sync::Arc;

use super::Source;
use crate::pseudo::{Fixed, Item};

const SOCKETS: &str =
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
const DEVICES: &str = "Inter-|   Receive                                                |  Transmit\n \
face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0\n";

/// Names, and what they say of a network that does not lead beyond the pod.
const FILES: [(&str, &str); 13] = [
    ("dev", DEVICES),
    ("tcp", SOCKETS),
    ("tcp6", SOCKETS),
    ("udp", SOCKETS),
    ("udp6", SOCKETS),
    ("unix", "Num       RefCount Protocol Flags    Type St Inode Path\n"),
    ("route", "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"),
    ("if_inet6", ""),
    ("ipv6_route", ""),
    ("arp", "IP address       HW type     Flags       HW address            Mask     Device\n"),
    ("snmp", ""),
    ("netstat", ""),
    ("sockstat", ""),
];
/// Of the pod's own sockets, whatever its network.
const OWN: &str = "unix";

pub(super) fn directory(source: &Source) -> Fixed {
    Fixed::new(FILES.map(|(name, empty)| {
        let source = Arc::clone(source);
        let told = move || match source.network_file(name) {
            Some(text) if name != OWN => Ok(text),
            _ => Ok(empty.as_bytes().to_vec()),
        };
        (name, Item::text(told))
    }))
}
