//! Interfaces of the pod: found by their device, named, addressed and started, by rtnetlink(7).

use crate::agent::Agent;
use crate::cidr::{family, from_octets, mac_text, octets, parse_mac, Cidr};
use crate::devices;
use crate::fault::{fault, invalid, not_found, Code, During, Reply};
use crate::netlink::{attribute, put_attribute, u32_at, Netlink, CREATE, REPLACE};
use crate::proto::guest::{Device, Interface};
use crate::streams::Patience;
use std::net::IpAddr;

const IFINFO: usize = 16; // struct ifinfomsg
const IFADDR: usize = 8; // struct ifaddrmsg
const IFF_UP: u32 = libc::IFF_UP as u32;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// Addresses of containers are there at once: nobody waits for the search for duplicates.
const IFA_F_NODAD: u8 = 0x02;

/// An interface as the kernel has it.
pub struct Link {
    pub index: u32,
    pub name: String,
    pub mac: String,
    pub mtu: u32,
    pub is_up: bool,
}

/// Brings each into the state that is wanted; waits for devices that are still to come.
pub fn set(agent: &Agent, interfaces: &[Interface], patience: &Patience) -> Reply<()> {
    let mut netlink = open()?;
    for wanted in interfaces {
        let name = await_name(agent, wanted, patience)?;
        let words = || format!("interface {}", if wanted.name.is_empty() { &name } else { &wanted.name });
        configure(&mut netlink, &name, wanted).map_err(|one| fault(one.code, format!("{}: {}", words(), one.words)))?;
    }
    Ok(())
}

/// Takes addresses from interfaces and stops them, before their devices go. Idempotent.
pub fn quit(names: &[String]) -> Reply<()> {
    let mut netlink = open()?;
    for name in names {
        let Some(link) = list(&mut netlink)?.into_iter().find(|link| link.name == *name) else { continue };
        set_addresses(&mut netlink, &link, &[])?;
        set_up(&mut netlink, link.index, false)?;
    }
    Ok(())
}

pub fn open() -> Reply<Netlink> {
    Netlink::route().during(|| "cannot talk to rtnetlink")
}

/// By the device that it belongs to (also when it has its new address already), or by its name.
fn await_name(agent: &Agent, wanted: &Interface, patience: &Patience) -> Reply<String> {
    let Some(device) = &wanted.device else { return Ok(wanted.name.clone()) };
    if device.mac.is_some() && !wanted.mac.is_empty() {
        if let Some(name) = devices::find_interface(&wanted.mac) {
            return Ok(name);
        }
    }
    if device.disk_serial.is_some() {
        return Err(invalid("a disk is no interface"));
    }
    if device.mac.as_ref().is_some_and(|mac| devices::find_interface(mac).is_none()) {
        devices::rescan();
    }
    let found = devices::await_there(agent, device, patience)?;
    match &device.pci {
        Some(slots) => {
            devices::interface_of_pci(slots).ok_or_else(|| not_found(format!("pci {slots} is no interface")))
        }
        None => Ok(found.name),
    }
}

fn configure(netlink: &mut Netlink, name: &str, wanted: &Interface) -> Reply<()> {
    let links = list(netlink)?;
    let link =
        links.iter().find(|link| link.name == name).ok_or_else(|| not_found(format!("it is not there: {name}")))?;
    let new_name = Some(&wanted.name).filter(|new| !new.is_empty() && **new != link.name);
    let new_mac = Some(&wanted.mac).filter(|new| !new.is_empty() && !new.eq_ignore_ascii_case(&link.mac));
    if link.is_up && (new_name.is_some() || new_mac.is_some()) {
        set_up(netlink, link.index, false)?;
    }
    if let Some(other) = new_name.and_then(|new| links.iter().find(|link| link.name == *new)) {
        make_way(netlink, other)?;
    }
    let mut body = header(link.index, 0, 0);
    if let Some(name) = new_name {
        put_attribute(&mut body, libc::IFLA_IFNAME, format!("{name}\0").as_bytes());
    }
    if let Some(mac) = new_mac {
        put_attribute(&mut body, libc::IFLA_ADDRESS, &parse_mac(mac)?);
    }
    if wanted.mtu > 0 {
        put_attribute(&mut body, libc::IFLA_MTU, &wanted.mtu.to_ne_bytes());
    }
    netlink.change(libc::RTM_NEWLINK, 0, &body).during(|| "cannot set name, MAC address or MTU")?;
    let addresses: Vec<Cidr> = wanted.addresses.iter().map(|text| Cidr::parse(text)).collect::<Reply<_>>()?;
    set_addresses(netlink, link, &addresses)?;
    set_up(netlink, link.index, wanted.up)
}

/// Gives another interface a name of its own for a while: two may be to change their names.
fn make_way(netlink: &mut Netlink, other: &Link) -> Reply<()> {
    set_up(netlink, other.index, false)?;
    let mut body = header(other.index, 0, 0);
    put_attribute(&mut body, libc::IFLA_IFNAME, format!("was{}\0", other.index).as_bytes());
    netlink.change(libc::RTM_NEWLINK, 0, &body).during(|| format!("the name {} is taken", other.name))
}

fn header(index: u32, flags: u32, change: u32) -> Vec<u8> {
    [&[0; 4][..], &index.to_ne_bytes(), &flags.to_ne_bytes(), &change.to_ne_bytes()].concat()
}

fn set_up(netlink: &mut Netlink, index: u32, is_up: bool) -> Reply<()> {
    let body = header(index, if is_up { IFF_UP } else { 0 }, IFF_UP);
    netlink.change(libc::RTM_NEWLINK, 0, &body).during(|| if is_up { "cannot start it" } else { "cannot stop it" })
}

/// Adds what is missing before it removes what is too much: an address that stays keeps its connections.
fn set_addresses(netlink: &mut Netlink, link: &Link, wanted: &[Cidr]) -> Reply<()> {
    add_addresses(netlink, link, wanted)?;
    let there = addresses(netlink, link.index)?;
    for one in there.iter().filter(|one| !wanted.contains(one) && !is_link_local(one)) {
        let result = netlink.change(libc::RTM_DELADDR, 0, &address_body(link.index, *one));
        let is_gone = result.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EADDRNOTAVAIL));
        (if is_gone { Ok(()) } else { result }).during(|| format!("cannot remove the address {one}"))?;
    }
    // With an IPv4 address went those of its network that came later.
    add_addresses(netlink, link, wanted)
}

fn add_addresses(netlink: &mut Netlink, link: &Link, wanted: &[Cidr]) -> Reply<()> {
    let there = addresses(netlink, link.index)?;
    for one in wanted.iter().filter(|one| !there.contains(one)) {
        let result = netlink.change(libc::RTM_NEWADDR, CREATE | REPLACE, &address_body(link.index, *one));
        result.during(|| format!("cannot add the address {one}"))?;
    }
    Ok(())
}

/// What the kernel gives an interface itself.
fn is_link_local(one: &Cidr) -> bool {
    matches!(one.address, IpAddr::V6(address) if address.segments()[0] & 0xffc0 == 0xfe80)
}

fn address_body(index: u32, one: Cidr) -> Vec<u8> {
    let flags = if one.address.is_ipv6() { IFA_F_NODAD } else { 0 };
    let mut body = [&[family(one.address), one.length, flags, 0][..], &index.to_ne_bytes()].concat();
    let bytes = octets(one.address);
    put_attribute(&mut body, IFA_LOCAL, &bytes);
    put_attribute(&mut body, IFA_ADDRESS, &bytes);
    body
}

pub fn addresses(netlink: &mut Netlink, index: u32) -> Reply<Vec<Cidr>> {
    let messages = netlink.dump(libc::RTM_GETADDR, &[0; IFADDR]).during(|| "cannot list addresses")?;
    let ours = messages.iter().filter(|one| one.len() >= IFADDR && u32_at(one, 4) == index);
    let found = ours.filter_map(|one| {
        let of = |kind| attribute(one, IFADDR, kind);
        let address = from_octets(of(IFA_LOCAL).or_else(|| of(IFA_ADDRESS))?)?;
        Some(Cidr { address, length: one[1] })
    });
    Ok(found.collect())
}

pub fn list(netlink: &mut Netlink) -> Reply<Vec<Link>> {
    let messages = netlink.dump(libc::RTM_GETLINK, &[0; IFINFO]).during(|| "cannot list interfaces")?;
    Ok(messages.iter().filter(|one| one.len() >= IFINFO).map(|one| link_of(one)).collect())
}

fn link_of(body: &[u8]) -> Link {
    let of = |kind| attribute(body, IFINFO, kind).unwrap_or_default();
    let name = of(libc::IFLA_IFNAME);
    Link {
        index: u32_at(body, 4),
        name: String::from_utf8_lossy(name.strip_suffix(b"\0").unwrap_or(name)).into_owned(),
        mac: mac_text(of(libc::IFLA_ADDRESS)),
        mtu: of(libc::IFLA_MTU).get(..4).map_or(0, |bytes| u32_at(bytes, 0)),
        is_up: u32_at(body, 8) & IFF_UP != 0,
    }
}

/// As the host words them.
pub fn described() -> Reply<Vec<Interface>> {
    let mut netlink = open()?;
    let mut found = Vec::new();
    for link in list(&mut netlink)? {
        let addresses = addresses(&mut netlink, link.index)?.iter().map(ToString::to_string).collect();
        let device = Some(Device { mac: Some(link.mac.clone()), ..Device::default() });
        found.push(Interface { device, name: link.name, mac: link.mac, mtu: link.mtu, addresses, up: link.is_up });
    }
    Ok(found)
}

/// Its index. NotFound.
pub fn index_of(netlink: &mut Netlink, name: &str) -> Reply<u32> {
    let found = list(netlink)?.into_iter().find(|link| link.name == name);
    found.map(|link| link.index).ok_or_else(|| fault(Code::NotFound, format!("there is no interface {name:?}")))
}
