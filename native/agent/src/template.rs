//! A machine that is about to be saved as a template: what keeps those that go on from it from work which is the same for
//! all, and from memory that holds nothing.
//!
//! A machine with a share cannot be saved, and to find a new device takes a guest long: ACPI's methods, the bus, the
//! device's registers. So the device is there while the template is made, and is let go of by its driver alone. Linux
//! suspends a device without a driver, which means that it writes its registers down, and writes them again when a
//! driver takes it (pci_pm_runtime_suspend in drivers/pci/pci-driver.c). Meanwhile the machine may have lost it, and have
//! got another like it in the same place.

use crate::agent::Agent;
use crate::devices::{base_name, entries, read};
use crate::fault::{fault, Code, During, Reply};
use crate::proto::guest::PutAwayResponse;
use std::fs;
use std::hint::black_box;
use std::ops::Range;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

const SHARES: &str = "/sys/bus/virtio/drivers/virtiofs";
const DRIVER: &str = "/sys/bus/pci/drivers/virtio-pci";
const DEVICES: &str = "/sys/bus/pci/devices";
/// QEMU tells by this event of ACPI that a device was plugged in or is to go.
const PLUGGED: &str = "/sys/firmware/acpi/interrupts/gpe01";
const MEMORY_MAP: &str = "/proc/iomem";
const SUSPENDS_WITHIN: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Free memory that is left as it is, so that nothing else wants for it.
const LEFT_BYTES: u64 = 8 << 20;
const PAGE_BYTES: usize = 4096;

/// Before the machine is saved. Nothing is mounted of a share.
pub fn put_away(agent: &Agent) -> Reply<PutAwayResponse> {
    for device in entries(SHARES).iter().filter(|path| base_name(path).starts_with("virtio")) {
        let slot = device.canonicalize().during(|| "cannot tell a share's place")?;
        let slot = base_name(slot.parent().unwrap_or(Path::new("")));
        let_go(&slot)?;
        agent.state().put_away.push(slot);
    }
    if !agent.state().put_away.is_empty() {
        tell("disable").during(|| format!("cannot switch {PLUGGED} off"))?;
        agent.state().is_deaf = true;
    }
    clear_free_memory();
    let code = fs::read_to_string(MEMORY_MAP).ok().and_then(|map| kernel_code(&map)).unwrap_or_default();
    Ok(PutAwayResponse { code_begin: code.start, code_end: code.end })
}

/// Whole pages of the kernel's instructions: `  01000000-01e02146 : Kernel code` (proc_iomem(5)). Only where memory begins at
/// address 0.
fn kernel_code(map: &str) -> Option<Range<u64>> {
    let line = map.lines().find(|line| line.ends_with(" : Kernel code")).filter(|_| cfg!(target_arch = "x86_64"))?;
    let (begin, last) = line.trim_start().split_once(' ')?.0.split_once('-')?;
    let address = |word| u64::from_str_radix(word, 16).ok();
    let (begin, end) = (address(begin)?, address(last)? + 1);
    Some(begin.next_multiple_of(PAGE_BYTES as u64)..end / PAGE_BYTES as u64 * PAGE_BYTES as u64)
}

/// The kernel clears what it hands out, when it is written to for the first time.
fn clear_free_memory() {
    let size = free_bytes().saturating_sub(LEFT_BYTES) as usize;
    let mut taken: Vec<u8> = Vec::new();
    if taken.try_reserve_exact(size).is_ok() {
        taken.spare_capacity_mut().iter_mut().step_by(PAGE_BYTES).for_each(|byte| {
            black_box(byte.write(0));
        });
    }
}

fn free_bytes() -> u64 {
    let told = rustix::system::sysinfo();
    told.freeram as u64 * u64::from(told.mem_unit)
}

/// Takes a device from its driver, and waits until the kernel has written its registers down.
fn let_go(slot: &str) -> Reply<()> {
    let (device, power) = (Path::new(DEVICES).join(slot), Path::new(DEVICES).join(slot).join("power"));
    fs::write(format!("{DRIVER}/unbind"), slot).during(|| format!("cannot take {slot} from its driver"))?;
    // What it takes to find its interrupt is done now, and not by the next driver.
    fs::write(device.join("enable"), "1").during(|| format!("cannot enable {slot}"))?;
    fs::write(power.join("control"), "auto").during(|| format!("cannot suspend {slot}"))?;
    let late = Instant::now() + SUSPENDS_WITHIN;
    while read(&power.join("runtime_status")).as_deref() != Some("suspended") {
        if Instant::now() > late {
            return Err(fault(Code::DeadlineExceeded, format!("the kernel does not suspend {slot}")));
        }
        sleep(LOOK_AGAIN);
    }
    Ok(())
}

/// In a machine that goes on from such a one: its share has its driver again. Nothing where none was put away.
pub fn take_out(agent: &Agent) -> Reply<()> {
    let slots = std::mem::take(&mut agent.state().put_away);
    slots.iter().try_for_each(|slot| {
        fs::write(format!("{DRIVER}/bind"), slot).during(|| format!("the driver does not take {slot}"))
    })
}

/// Devices that come and go are told of again. Of those that are there by now nobody needs to hear: whoever had them
/// plugged in waits for them by name, and has the bus looked at (`devices::rescan`).
pub fn hear(agent: &Agent) -> Reply<()> {
    if !std::mem::take(&mut agent.state().is_deaf) {
        return Ok(());
    }
    let _ = tell("clear"); // refused where there is nothing to clear
    tell("enable").during(|| format!("cannot switch {PLUGGED} on"))
}

fn tell(word: &str) -> std::io::Result<()> {
    fs::write(PLUGGED, format!("{word}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_instructions_are_whole_pages() {
        let map = "00001000-0009fbff : System RAM\n00100000-14ffffff : System RAM\n  01000800-01e02146 : Kernel code\n";
        assert_eq!(kernel_code(map), Some(0x0100_1000..0x01e0_2000));
        assert_eq!(kernel_code("00100000-14ffffff : System RAM\n"), None);
    }
}
