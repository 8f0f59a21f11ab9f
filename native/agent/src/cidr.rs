//! Addresses as the protocol words them: "10.0.0.2/24", "fd00::2/64".

use crate::fault::{invalid, Reply};
use std::net::IpAddr;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    pub address: IpAddr,
    pub length: u8,
}

impl Cidr {
    /// Without a length it is a single address.
    pub fn parse(text: &str) -> Reply<Self> {
        let (address, length) = text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
        let address: IpAddr = parse_address(address)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let length = length.map_or(Ok(most), str::parse).ok().filter(|length| *length <= most);
        length.map(|length| Cidr { address, length }).ok_or_else(|| invalid(format!("{text:?} is no address")))
    }

    pub fn everything(like: IpAddr) -> Self {
        let zero = if like.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
        Cidr { address: zero, length: 0 }
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, to: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(to, "{}/{}", self.address, self.length)
    }
}

pub fn parse_address(text: &str) -> Reply<IpAddr> {
    text.parse().map_err(|_| invalid(format!("{text:?} is no address")))
}

pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// From the kernel's bytes.
pub fn from_octets(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

pub fn family(address: IpAddr) -> u8 {
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

/// "52:54:00:12:34:56".
pub fn parse_mac(text: &str) -> Reply<Vec<u8>> {
    let bytes: Result<Vec<u8>, _> = text.split(':').map(|part| u8::from_str_radix(part, 16)).collect();
    bytes.ok().filter(|bytes| bytes.len() == 6).ok_or_else(|| invalid(format!("{text:?} is no MAC address")))
}

pub fn mac_text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for text in ["10.0.0.2/24", "fd00::2/64", "0.0.0.0/0"] {
            assert_eq!(Cidr::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Cidr::parse("::1").unwrap().length, 128);
        for text in ["", "10.0.0.2/33", "fd00::/129", "10.0.0/8", "10.0.0.1/-1", "10.0.0.1/"] {
            assert!(Cidr::parse(text).is_err(), "{text}");
        }
        assert_eq!(mac_text(&parse_mac("52:54:00:Ab:34:56").unwrap()), "52:54:00:ab:34:56");
        assert!(parse_mac("52:54").is_err() && parse_mac("52:54:00:12:34:5g").is_err());
    }
}
