//! Devices as the host names them, and the kernel's word that some came or went.

use crate::agent::Agent;
use crate::fault::{invalid, During, Reply};
use crate::modules;
use crate::proto::guest::{AwaitDeviceResponse, Device};
use crate::streams::Patience;
use crate::threads;
use rustix::net::netlink::{SocketAddrNetlink, KOBJECT_UEVENT};
use rustix::net::{bind, recv, socket_with, AddressFamily, RecvFlags, SocketFlags, SocketType};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Waits until it is there.
pub fn await_there(agent: &Agent, device: &Device, patience: &Patience) -> Reply<AwaitDeviceResponse> {
    check(device)?;
    if device.mac.is_some() {
        modules::load_for("virtio_net"); // while the interface is on its way
    }
    agent.await_some(Some(patience.link), patience.deadline, |_| find(device))
}

/// Waits until it is not there any more.
pub fn await_gone(agent: &Agent, device: &Device, patience: &Patience) -> Reply<()> {
    check(device)?;
    agent.await_some(Some(patience.link), patience.deadline, |_| find(device).is_none().then_some(()))
}

fn check(device: &Device) -> Reply<()> {
    let named = [&device.disk_serial, &device.mac, &device.pci].into_iter().flatten().filter(|name| !name.is_empty());
    match named.count() {
        1 => Ok(()),
        _ => Err(invalid("a device is named by one of disk_serial, mac and pci")),
    }
}

fn find(device: &Device) -> Option<AwaitDeviceResponse> {
    if let Some(serial) = &device.disk_serial {
        return find_disk(serial);
    }
    if let Some(mac) = &device.mac {
        return find_interface(mac).map(|name| AwaitDeviceResponse { name, ..AwaitDeviceResponse::default() });
    }
    let path = pci_path(device.pci.as_ref()?)?;
    Some(AwaitDeviceResponse { name: base_name(&path), ..AwaitDeviceResponse::default() })
}

pub fn find_disk(serial: &str) -> Option<AwaitDeviceResponse> {
    let path = entries("/sys/block").into_iter().find(|path| read(&path.join("serial")).as_deref() == Some(serial))?;
    let numbers = read(&path.join("dev"))?;
    let (major, minor) = numbers.split_once(':')?;
    let name = base_name(&path);
    // devtmpfs makes the node a moment before or after.
    Path::new("/dev").join(&name).exists().then_some(())?;
    Some(AwaitDeviceResponse { name, major: major.parse().ok()?, minor: minor.parse().ok()? })
}

/// The name of the interface with this address.
pub fn find_interface(mac: &str) -> Option<String> {
    let is_it = |path: &PathBuf| read(&path.join("address")).is_some_and(|found| found.eq_ignore_ascii_case(mac));
    entries("/sys/class/net").iter().find(|path| is_it(path)).map(|path| base_name(path))
}

/// "02/00": slot 02 of the root bus is a bridge, and slot 00 of the bus behind it the device.
fn pci_path(slots: &str) -> Option<PathBuf> {
    let mut path = PathBuf::from("/sys/devices/pci0000:00");
    for slot in slots.split('/') {
        let ending = format!(":{slot}.0");
        path = entries(&path).into_iter().find(|path| base_name(path).ends_with(&ending))?;
    }
    Some(path)
}

/// Of the device in these slots, or of the virtio device that it is.
pub fn interface_of_pci(slots: &str) -> Option<String> {
    let path = pci_path(slots)?;
    let inner = entries(&path).into_iter().filter(|path| base_name(path).starts_with("virtio"));
    let homes = [path.clone()].into_iter().chain(inner);
    homes.flat_map(|home| entries(home.join("net"))).next().map(|path| base_name(&path))
}

pub fn entries(directory: impl AsRef<Path>) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

pub fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim_end().to_string())
}

pub fn base_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Looks again at what is plugged in: a machine that was made of another's memory has devices that its kernel was never
/// told of.
pub fn rescan() {
    let _ = fs::write("/sys/bus/pci/rescan", "1"); // a machine without PCI has none to look for
}

/// Listens to the kernel's uevents: loads the modules that new devices want, and tells who waits for a device.
pub fn start_watch(agent: &Arc<Agent>) -> Reply<()> {
    let words = || "cannot listen to uevents";
    let kind = Some(KOBJECT_UEVENT);
    let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, SocketFlags::CLOEXEC, kind).during(words)?;
    bind(&socket, &SocketAddrNetlink::new(0, 1)).during(words)?;
    let agent = agent.clone();
    let work = move || {
        let mut buffer = vec![0; 16 << 10];
        loop {
            match recv(&socket, &mut buffer[..], RecvFlags::empty()) {
                Ok((count, _)) => take(&agent, &buffer[..count]),
                // Some were lost: who waits looks for itself.
                Err(rustix::io::Errno::NOBUFS | rustix::io::Errno::INTR) => agent.wake(),
                Err(_) => return,
            }
        }
    };
    threads::start("uevents", 64 << 10, work).during(words)
}

/// "add@/devices/…" and then KEY=value, each ended by NUL.
fn take(agent: &Agent, message: &[u8]) {
    let text = String::from_utf8_lossy(message);
    let value = |key: &str| text.split('\0').find_map(|part| part.strip_prefix(key)?.strip_prefix('='));
    if let (Some("add"), Some(alias)) = (value("ACTION"), value("MODALIAS")) {
        modules::load_for(alias);
    }
    let Some(path) = value("DEVPATH").filter(|_| ["block", "net", "pci"].map(Some).contains(&value("SUBSYSTEM")))
    else {
        return agent.wake();
    };
    match value("ACTION") {
        Some("add") => agent.change(|state| state.events.device(path, true)),
        Some("remove") => agent.change(|state| state.events.device(path, false)),
        _ => agent.wake(),
    }
}

/// The modules for devices that were there before anybody listened; a bus's driver brings further devices.
pub fn load_present() {
    let mut known = BTreeSet::new();
    loop {
        let devices = entries("/sys/bus").into_iter().flat_map(|bus| entries(bus.join("devices")));
        let aliases: BTreeSet<String> = devices.filter_map(|device| read(&device.join("modalias"))).collect();
        let new: Vec<&String> = aliases.difference(&known).collect();
        if new.is_empty() {
            return;
        }
        new.into_iter().for_each(|alias| modules::load_for(alias));
        known.extend(aliases);
    }
}

/// The node of a virtio serial port, by its name.
pub fn find_port(name: &str) -> Option<PathBuf> {
    let ports = entries("/sys/class/virtio-ports");
    let port = ports.iter().find(|path| read(&path.join("name")).as_deref() == Some(name))?;
    let node = Path::new("/dev").join(base_name(port));
    node.exists().then_some(node)
}
