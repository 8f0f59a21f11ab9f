//! Addresses as bytes (struct sockaddr) and back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use drupe_appkernel_abi::{Errno, Result};

use super::Family;

const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const AF_NETLINK: u16 = 16;
const PATH_MAX_BYTES: usize = 108;

/// Where a socket is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Address {
    /// AF_UNSPEC.
    #[default]
    None,
    /// A unix socket that was not bound; to bind: choose an abstract name.
    Unnamed,
    Path(Vec<u8>),
    Abstract(Vec<u8>),
    Inet(SocketAddr),
    Netlink {
        port: u32,
        groups: u32,
    },
}

impl Address {
    /// From struct sockaddr. EINVAL; EAFNOSUPPORT.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let (family, rest) = bytes.split_first_chunk::<2>().ok_or(Errno::INVAL)?;
        match u16::from_ne_bytes(*family) {
            0 => Ok(Self::None),
            AF_UNIX => Self::decode_unix(rest),
            AF_INET => Self::decode_v4(rest),
            AF_INET6 => Self::decode_v6(rest),
            AF_NETLINK => Self::decode_netlink(rest),
            _ => Err(Errno::AFNOSUPPORT),
        }
    }

    fn decode_unix(path: &[u8]) -> Result<Self> {
        if path.len() > PATH_MAX_BYTES {
            return Err(Errno::INVAL);
        }
        Ok(match path.split_first() {
            None => Self::Unnamed,
            Some((0, name)) => Self::Abstract(name.to_vec()),
            Some(_) => Self::Path(path.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()),
        })
    }

    fn decode_v4(rest: &[u8]) -> Result<Self> {
        let port = rest.first_chunk::<2>().ok_or(Errno::INVAL)?;
        let ip = rest.get(2..6).and_then(|ip| ip.first_chunk::<4>()).ok_or(Errno::INVAL)?;
        Ok(Self::Inet((Ipv4Addr::from(*ip), u16::from_be_bytes(*port)).into()))
    }

    fn decode_v6(rest: &[u8]) -> Result<Self> {
        let port = rest.first_chunk::<2>().ok_or(Errno::INVAL)?;
        let ip = rest.get(6..22).and_then(|ip| ip.first_chunk::<16>()).ok_or(Errno::INVAL)?;
        let word = |at: usize| rest.get(at..at + 4).and_then(|word| word.first_chunk::<4>());
        let flow = word(2).map_or(0, |flow| u32::from_be_bytes(*flow));
        let scope = word(22).map_or(0, |scope| u32::from_ne_bytes(*scope));
        Ok(Self::Inet(SocketAddrV6::new(Ipv6Addr::from(*ip), u16::from_be_bytes(*port), flow, scope).into()))
    }

    fn decode_netlink(rest: &[u8]) -> Result<Self> {
        let words = rest.get(2..10).and_then(|words| words.first_chunk::<8>()).ok_or(Errno::INVAL)?;
        let word = |at: usize| u32::from_ne_bytes([words[at], words[at + 1], words[at + 2], words[at + 3]]);
        Ok(Self::Netlink { port: word(0), groups: word(4) })
    }

    /// As struct sockaddr, with the zero after a path.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::None => 0_u16.to_ne_bytes().to_vec(),
            Self::Unnamed => AF_UNIX.to_ne_bytes().to_vec(),
            Self::Path(path) => [&AF_UNIX.to_ne_bytes()[..], path, &[0]].concat(),
            Self::Abstract(name) => [&AF_UNIX.to_ne_bytes()[..], &[0], name].concat(),
            Self::Inet(SocketAddr::V4(v4)) => {
                let port = v4.port().to_be_bytes();
                [&AF_INET.to_ne_bytes()[..], &port, &v4.ip().octets(), &[0; 8]].concat()
            }
            Self::Inet(SocketAddr::V6(v6)) => {
                let port = v6.port().to_be_bytes();
                let (flow, scope) = (v6.flowinfo().to_be_bytes(), v6.scope_id().to_ne_bytes());
                [&AF_INET6.to_ne_bytes()[..], &port, &flow, &v6.ip().octets(), &scope].concat()
            }
            Self::Netlink { port, groups } => {
                [&AF_NETLINK.to_ne_bytes()[..], &[0; 2], &port.to_ne_bytes(), &groups.to_ne_bytes()].concat()
            }
        }
    }

    /// The address that a socket of this family has before it is bound.
    pub(super) fn unbound(family: Family) -> Self {
        match family {
            Family::Unix => Self::Unnamed,
            Family::V4 => Self::Inet((Ipv4Addr::UNSPECIFIED, 0).into()),
            Family::V6 => Self::Inet((Ipv6Addr::UNSPECIFIED, 0).into()),
        }
    }

    /// As a socket of this family sees it: IPv4 addresses mapped for an IPv6 socket.
    pub(super) fn seen_by(&self, family: Family) -> Self {
        match self {
            Self::Inet(SocketAddr::V4(v4)) if family == Family::V6 => {
                Self::Inet(SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into())
            }
            other => other.clone(),
        }
    }
}

/// An address without the mapping of IPv4 into IPv6.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Whether what is sent to `to` reaches a socket bound to `bound`.
pub(super) fn reaches(to: IpAddr, bound: IpAddr) -> bool {
    match bound {
        IpAddr::V4(ip) if ip.is_unspecified() => to.is_ipv4(),
        IpAddr::V6(ip) if ip.is_unspecified() => true,
        ip => ip == to,
    }
}
