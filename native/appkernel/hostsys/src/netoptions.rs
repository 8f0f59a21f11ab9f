//! Which options and control messages of sockets go on to the host: values without pointers and descriptors, of no
//! effect beyond the socket. The filter of the kernel's process (`kernel_calls`) is made of the same tables.

/// Levels and their names.
pub type Table = [(u32, &'static [u32])];

pub const SOL_SOCKET: u32 = 1;
const IP: u32 = 0;
const TCP: u32 = 6;
const UDP: u32 = 17;
const IPV6: u32 = 41;
const ICMPV6: u32 = 58;
const UDP_LITE: u32 = 136;
const NETLINK: u32 = 270;

/// (level, names): what may be set. Never among them: filters, marks, devices, IPsec, TLS, repair, zero copies.
pub(crate) const SETTABLE: &Table = &[
    // reuseaddr, dontroute, broadcast, buffers, keepalive, oobinline, priority, linger, reuseport, rcvlowat, timestamps, overflows
    (SOL_SOCKET, &[2, 5, 6, 7, 8, 9, 10, 12, 13, 15, 18, 19, 29, 35, 37, 40]),
    // tos, ttl, recvopts, pktinfo, mtu_discover, recverr, recvttl, recvtos, freebind, no_port, multicast, minttl
    (IP, &[1, 2, 6, 8, 10, 11, 12, 13, 15, 20, 21, 24, 32, 33, 34, 35, 36, 37, 38, 39, 40, 49]),
    // nodelay, maxseg, cork, keepalives, syncnt, linger2, defer_accept, window_clamp, quickack, congestion, user_timeout,
    // fastopen, notsent_lowat, fastopen_connect
    (TCP, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 18, 23, 25, 30, 34]),
    (UDP, &[1, 103, 104]),
    // hops, multicast, mtu_discover, recverr, v6only, recvpktinfo, recvhoplimit, recvtclass, tclass, autoflowlabel
    (IPV6, &[16, 17, 18, 19, 20, 21, 23, 25, 26, 29, 49, 51, 66, 67, 70, 78]),
    (ICMPV6, &[1]),
    // how much of a datagram the checksum covers, sent and received
    (UDP_LITE, &[10, 11]),
    // pktinfo, broadcast errors, ext_ack, strict checks
    (NETLINK, &[3, 4, 10, 11, 12]),
];

/// What can only be asked: kind, error, acceptconn, protocol, domain, peer's name of a socket; mtu; tcp_info, mtu of IPv6.
pub(crate) const READABLE: &Table =
    &[(SOL_SOCKET, &[3, 4, 30, 38, 39, 49, 57]), (IP, &[14]), (TCP, &[11, 26]), (IPV6, &[24])];

/// pktinfo, tos, ttl; segment size; pktinfo, hop limit, traffic class.
const CONTROL: &Table = &[(IP, &[1, 2, 8]), (UDP, &[103]), (IPV6, &[50, 52, 67])];

fn is_in(table: &Table, level: u32, name: u32) -> bool {
    table.iter().any(|(of, names)| *of == level && names.contains(&name))
}

pub fn may_set(level: u32, name: u32) -> bool {
    is_in(SETTABLE, level, name)
}

pub fn may_get(level: u32, name: u32) -> bool {
    may_set(level, name) || is_in(READABLE, level, name)
}

pub fn may_send_control(level: u32, kind: u32) -> bool {
    is_in(CONTROL, level, kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_reaches_beyond_the_socket_is_not_passed_on() {
        let dangerous = [(SOL_SOCKET, 25), (SOL_SOCKET, 26), (SOL_SOCKET, 36), (SOL_SOCKET, 60), (TCP, 19), (TCP, 31)];
        assert!(dangerous.iter().all(|(level, name)| !may_set(*level, *name) && !may_get(*level, *name)));
        assert!(may_set(TCP, 1) && may_get(TCP, 11) && !may_set(TCP, 11));
        assert!(!may_send_control(SOL_SOCKET, 1));
    }
}
