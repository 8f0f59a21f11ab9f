//! Routes of the pod: the main table, but what the kernel and router advertisements put there.

use crate::cidr::{family, from_octets, octets, parse_address, Cidr};
use crate::fault::{fault, invalid, During, Reply};
use crate::links;
use crate::netlink::{attribute, put_attribute, u32_at, Netlink, CREATE, REPLACE};
use crate::proto::guest::Route;
use std::net::IpAddr;

const RTMSG: usize = 12; // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags u32
const TABLE_MAIN: u8 = 254;
const PROTOCOL_KERNEL: u8 = 2;
const PROTOCOL_STATIC: u8 = 4;
const PROTOCOL_RA: u8 = 9;
const SCOPE_LINK: u8 = 253;
const UNICAST: u8 = 1;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;

/// Replaces those that are ours by these. Those without a gateway come first: they are the way to the gateways.
pub fn set(routes: &[Route]) -> Reply<()> {
    let mut netlink = links::open()?;
    let mut bodies = Vec::new();
    for route in routes {
        let named = |one: crate::fault::Fault| fault(one.code, format!("route {}: {}", words(route), one.words));
        bodies.push((!route.gateway.is_empty(), body_of(&mut netlink, route).map_err(named)?, route));
    }
    bodies.sort_by_key(|(has_gateway, ..)| *has_gateway);
    for old in ours(&mut netlink)? {
        let _ = netlink.change(libc::RTM_DELROUTE, 0, &old); // one that went with its interface is gone already
    }
    for (_, body, route) in bodies {
        let result = netlink.change(libc::RTM_NEWROUTE, CREATE | REPLACE, &body);
        result.during(|| format!("cannot add the route {}", words(route)))?;
    }
    Ok(())
}

fn words(route: &Route) -> String {
    let destination = if route.destination.is_empty() { "default" } else { &route.destination };
    let parts = [("via", &route.gateway), ("dev", &route.interface), ("src", &route.source)];
    let parts = parts.iter().filter(|(_, value)| !value.is_empty()).map(|(word, value)| format!(" {word} {value}"));
    destination.to_string() + &parts.collect::<String>()
}

fn body_of(netlink: &mut Netlink, route: &Route) -> Reply<Vec<u8>> {
    let gateway = Some(&route.gateway).filter(|text| !text.is_empty()).map(|text| parse_address(text)).transpose()?;
    let source = Some(&route.source).filter(|text| !text.is_empty()).map(|text| parse_address(text)).transpose()?;
    let destination = match route.destination.as_str() {
        "" | "default" => Cidr::everything(gateway.or(source).unwrap_or(IpAddr::from([0; 4]))),
        text => Cidr::parse(text)?,
    };
    // The next hop of an IPv4 route may be of IPv6 (RTA_VIA); nobody has asked for that here.
    if gateway.is_some_and(|gateway| gateway.is_ipv4() != destination.address.is_ipv4()) {
        return Err(invalid("its gateway is of another family"));
    }
    let scope = match (route.scope, gateway) {
        (0, None) if destination.address.is_ipv4() => SCOPE_LINK,
        (scope, _) => u8::try_from(scope).map_err(|_| invalid(format!("{scope} is no scope")))?,
    };
    let mut body =
        vec![family(destination.address), destination.length, 0, 0, TABLE_MAIN, PROTOCOL_STATIC, scope, UNICAST];
    body.extend_from_slice(&[0; 4]);
    if destination.length > 0 {
        put_attribute(&mut body, RTA_DST, &octets(destination.address));
    }
    for (kind, address) in [(RTA_GATEWAY, gateway), (RTA_PREFSRC, source)] {
        if let Some(address) = address {
            put_attribute(&mut body, kind, &octets(address));
        }
    }
    if !route.interface.is_empty() {
        put_attribute(&mut body, RTA_OIF, &links::index_of(netlink, &route.interface)?.to_ne_bytes());
    }
    if route.metric > 0 {
        put_attribute(&mut body, RTA_PRIORITY, &route.metric.to_ne_bytes());
    }
    Ok(body)
}

/// The kernel's words for the routes that are not its own.
fn ours(netlink: &mut Netlink) -> Reply<Vec<Vec<u8>>> {
    let messages = netlink.dump(libc::RTM_GETROUTE, &[0; RTMSG]).during(|| "cannot list routes")?;
    let is_ours = |body: &Vec<u8>| {
        let (table, protocol, kind) = (body[4], body[5], body[7]);
        table == TABLE_MAIN && ![PROTOCOL_KERNEL, PROTOCOL_RA].contains(&protocol) && kind == UNICAST
    };
    Ok(messages.into_iter().filter(|body| body.len() >= RTMSG && is_ours(body)).collect())
}

/// As the host words them.
pub fn described() -> Reply<Vec<Route>> {
    let mut netlink = links::open()?;
    let names = links::list(&mut netlink)?;
    let name = |index: u32| names.iter().find(|link| link.index == index).map(|link| link.name.clone());
    let text = |bytes: Option<&[u8]>| bytes.and_then(from_octets).map(|one| one.to_string()).unwrap_or_default();
    let number = |bytes: Option<&[u8]>| bytes.filter(|bytes| bytes.len() == 4).map_or(0, |bytes| u32_at(bytes, 0));
    let described = |body: &Vec<u8>| {
        let of = |kind| attribute(body, RTMSG, kind);
        let any: IpAddr = if i32::from(body[0]) == libc::AF_INET { [0; 4].into() } else { [0; 16].into() };
        let address = of(RTA_DST).and_then(from_octets).unwrap_or(any);
        Route {
            destination: Cidr { address, length: body[1] }.to_string(),
            gateway: text(of(RTA_GATEWAY)),
            interface: name(number(of(RTA_OIF))).unwrap_or_default(),
            source: text(of(RTA_PREFSRC)),
            scope: u32::from(body[6]),
            metric: number(of(RTA_PRIORITY)),
        }
    };
    Ok(ours(&mut netlink)?.iter().map(described).collect())
}
