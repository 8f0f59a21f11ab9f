//! /proc/net: the network as the pod's processes see it.

use std::sync::Arc;

use super::Source;
use crate::pseudo::{Directory, Fixed, Item, Listed};

const SOCKETS: &str =
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
const DEVICES: &str = "Inter-|   Receive                                                |  Transmit\n \
face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0\n";

/// Names, and what they say of a network that does not lead beyond the pod.
const FILES: [(&str, &str); 21] = [
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
    ("sockstat6", ""),
    ("snmp6", ""),
    ("raw", SOCKETS),
    ("raw6", SOCKETS),
    ("udplite", SOCKETS),
    ("udplite6", SOCKETS),
    ("igmp", "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n"),
    ("protocols", ""),
];
/// Of the pod's own sockets, whatever its network.
const OWN: &str = "unix";

fn directory(source: &Source) -> Fixed {
    Fixed::new(FILES.map(|(name, empty)| {
        let source = Arc::clone(source);
        let told = move || match source.network_file(name) {
            Some(text) if name != OWN => Ok(text),
            _ => Ok(empty.as_bytes().to_vec()),
        };
        (name, Item::text(told))
    }))
}

/// /proc/PID/net.
pub(super) struct Network(pub Source);

impl Directory for Network {
    fn child(&self, name: &[u8]) -> Option<Item> {
        directory(&self.0).child(name)
    }

    fn list(&self) -> Vec<Listed> {
        directory(&self.0).list()
    }
}
