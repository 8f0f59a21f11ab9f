//! What /proc says of the system.

use std::sync::Arc;

use super::sys::kernel_settings;
use super::{Source, System};
use crate::pseudo::{Fixed, Item};

const PAGE_BYTES: u64 = 4096;
const HUGE_PAGE_BYTES: u64 = 2 << 20;

const FILE_SYSTEMS: &str =
    "nodev\tsysfs\nnodev\ttmpfs\nnodev\tproc\nnodev\tdevpts\nnodev\toverlay\nnodev\tmqueue\n\terofs\n";
const DEVICES: &str =
    "Character devices:\n  1 mem\n  5 /dev/tty\n  5 /dev/console\n  5 /dev/ptmx\n136 pts\n\nBlock devices:\n";

/// Everything beside the processes.
pub(super) fn entries(source: &Source) -> Fixed {
    let text = |make: fn(&System) -> String| {
        let source = Arc::clone(source);
        Item::text(move || Ok(make(&source.system()).into_bytes()))
    };
    Fixed::new([
        ("cpuinfo", text(cpuinfo)),
        ("meminfo", text(meminfo)),
        ("stat", text(stat)),
        ("uptime", text(uptime)),
        ("vmstat", text(vmstat)),
        ("cgroups", Item::fixed("#subsys_name\thierarchy\tnum_cgroups\tenabled\n")),
        ("loadavg", text(loadavg)),
        ("version", text(version)),
        ("filesystems", Item::fixed(FILE_SYSTEMS)),
        ("devices", Item::fixed(DEVICES)),
        ("cmdline", Item::fixed("\n")),
        ("swaps", Item::fixed("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n")),
        ("partitions", Item::fixed("")),
        ("diskstats", Item::fixed("")),
        ("modules", Item::fixed("")),
        ("mounts", Item::link_to("self/mounts")),
        ("net", Item::link_to("self/net")),
        ("sys", Item::directory(kernel_settings(source))),
    ])
}

fn cpuinfo(system: &System) -> String {
    let (model, flags, mhz) = (&system.processor_model, &system.processor_flags, system.processor_mhz);
    let count = system.processors;
    let one = |at: u32| {
        format!(
            "processor\t: {at}\nmodel name\t: {model}\ncpu MHz\t\t: {mhz}.000\nphysical id\t: 0\nsiblings\t: {count}\n\
             core id\t\t: {at}\ncpu cores\t: {count}\nflags\t\t: {flags}\n\n"
        )
    };
    (0..count).map(one).collect()
}

fn meminfo(system: &System) -> String {
    let available = system.memory_free_bytes;
    let used = system.memory_bytes.saturating_sub(available);
    let rows = [
        ("MemTotal", system.memory_bytes),
        ("MemFree", system.memory_free_bytes),
        ("MemAvailable", available),
        ("Buffers", 0),
        ("Cached", system.shared_bytes),
        ("SwapCached", 0),
        ("Active", used),
        ("Inactive", 0),
        ("Unevictable", 0),
        ("Mlocked", 0),
        ("SwapTotal", 0),
        ("SwapFree", 0),
        ("Dirty", 0),
        ("Writeback", 0),
        ("AnonPages", used),
        ("Mapped", 0),
        ("Shmem", system.shared_bytes),
        ("Slab", 0),
        ("SReclaimable", 0),
        ("SUnreclaim", 0),
        ("CommitLimit", system.memory_bytes),
        ("Committed_AS", used),
        ("AnonHugePages", 0),
        ("Hugepagesize", HUGE_PAGE_BYTES),
    ];
    rows.iter().map(|(name, bytes)| format!("{:<15}{:>9} kB\n", format!("{name}:"), bytes / 1024)).collect()
}

/// What of Linux's counters is known here: pages, not what has been done with them.
fn vmstat(system: &System) -> String {
    let free = system.memory_free_bytes / PAGE_BYTES;
    let shared = system.shared_bytes / PAGE_BYTES;
    let used = system.memory_bytes.saturating_sub(system.memory_free_bytes) / PAGE_BYTES;
    let rows = [("nr_free_pages", free), ("nr_anon_pages", used), ("nr_shmem", shared), ("pswpin", 0), ("pswpout", 0)];
    rows.iter().map(|(name, count)| format!("{name} {count}\n")).collect()
}

fn stat(system: &System) -> String {
    let (user, kernel) = (system.user_ticks, system.system_ticks);
    let idle = system.idle.as_millis() / 10;
    let mut text = format!("cpu  {user} 0 {kernel} {idle} 0 0 0 0 0 0\n");
    let share = u64::from(system.processors.max(1));
    for at in 0..share {
        let (user, kernel, idle) = (user / share, kernel / share, idle / u128::from(share));
        text.push_str(&format!("cpu{at} {user} 0 {kernel} {idle} 0 0 0 0 0 0\n"));
    }
    let (switches, boot, forks, running) =
        (system.context_switches, system.boot_seconds, system.forks, system.running.max(1));
    text + &format!(
        "intr 0\nctxt {switches}\nbtime {boot}\nprocesses {forks}\nprocs_running {running}\nprocs_blocked 0\n"
    )
}

fn hundredths(duration: std::time::Duration) -> String {
    format!("{}.{:02}", duration.as_secs(), duration.subsec_millis() / 10)
}

fn uptime(system: &System) -> String {
    format!("{} {}\n", hundredths(system.since_boot), hundredths(system.idle))
}

fn loadavg(system: &System) -> String {
    let [one, five, fifteen] = system.loads_percent.map(|load| format!("{}.{:02}", load / 100, load % 100));
    let (running, threads, last) = (system.running, system.threads, system.last_pid);
    format!("{one} {five} {fifteen} {running}/{threads} {last}\n")
}

fn version(system: &System) -> String {
    format!("Linux version {} (drupe) {}\n", system.release, system.version)
}
