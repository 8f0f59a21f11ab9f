//! Connections to other machines, dropped by sock_diag(7): in a copy of a machine they are the original's.

use crate::cidr::from_octets;
use crate::fault::{During, Reply};
use crate::links;
use crate::netlink::Netlink;
use std::collections::BTreeSet;
use std::net::IpAddr;

const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
const PROTOCOLS: [i32; 2] = [libc::IPPROTO_TCP, libc::IPPROTO_UDP];
const FAMILIES: [i32; 2] = [libc::AF_INET, libc::AF_INET6];
const TCP_LISTEN: u32 = 10;
const ALL_BUT_LISTENING: u32 = !(1 << TCP_LISTEN);
// struct inet_diag_msg begins with family, state, timer, retrans, and then has struct inet_diag_sockid
const ID: std::ops::Range<usize> = 4..52;
const DESTINATION: usize = 4 + 20;

/// Whoever reads or writes on them gets ECONNABORTED. Those within this machine stay. Answers how many there were.
pub fn drop_connections() -> Reply<u32> {
    let own = own_addresses()?;
    let mut netlink = Netlink::diag().during(|| "cannot talk to sock_diag")?;
    let mut count = 0;
    for (protocol, family) in PROTOCOLS.into_iter().flat_map(|one| FAMILIES.map(|family| (one, family))) {
        let words = || "cannot list connections";
        for message in netlink.dump(BY_FAMILY, &request(family, protocol, None)).during(words)? {
            let Some(id) = message.get(ID).filter(|_| is_foreign(&message, family, &own)) else { continue };
            let result = netlink.change(DESTROY, 0, &request(family, protocol, Some(id)));
            let is_gone = result.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::ENOENT));
            (if is_gone { Ok(()) } else { result }).during(|| "cannot drop a connection")?;
            count += 1;
        }
    }
    Ok(count)
}

fn own_addresses() -> Reply<BTreeSet<IpAddr>> {
    let mut netlink = links::open()?;
    let mut own = BTreeSet::new();
    for link in links::list(&mut netlink)? {
        own.extend(links::addresses(&mut netlink, link.index)?.iter().map(|one| one.address));
    }
    Ok(own)
}

/// struct inet_diag_req_v2.
fn request(family: i32, protocol: i32, id: Option<&[u8]>) -> Vec<u8> {
    let mut body = vec![family as u8, protocol as u8, 0, 0];
    body.extend_from_slice(&ALL_BUT_LISTENING.to_ne_bytes());
    body.extend_from_slice(id.unwrap_or(&[0; 48]));
    body
}

fn is_foreign(body: &[u8], family: i32, own: &BTreeSet<IpAddr>) -> bool {
    let size = if family == libc::AF_INET { 4 } else { 16 };
    let peer = body.get(DESTINATION..DESTINATION + size).and_then(from_octets);
    let plain = |peer: IpAddr| match peer {
        IpAddr::V6(address) => address.to_ipv4_mapped().map_or(peer, IpAddr::V4),
        IpAddr::V4(_) => peer,
    };
    peer.map(plain).is_some_and(|peer| !peer.is_unspecified() && !peer.is_loopback() && !own.contains(&peer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_peers_elsewhere_are_foreign() {
        let own = BTreeSet::from([IpAddr::from([10, 0, 0, 2])]);
        let of = |peer: [u8; 4]| is_foreign(&[&[0; DESTINATION][..], &peer, &[0; 40]].concat(), libc::AF_INET, &own);
        assert!(of([10, 0, 0, 3]) && of([93, 1, 2, 3]));
        assert!(!of([10, 0, 0, 2]) && !of([127, 0, 0, 1]) && !of([0; 4]));
        let mapped = [&[0; DESTINATION][..], &[0; 10], &[0xff; 2], &[10, 0, 0, 2], &[0; 40]].concat();
        assert!(!is_foreign(&mapped, libc::AF_INET6, &own));
    }

    #[test]
    fn the_request_has_the_kernels_size() {
        assert_eq!(request(libc::AF_INET, libc::IPPROTO_TCP, None).len(), 56);
    }
}
