//! /proc/sys and /sys: settings that programs look at. They are what holds here, and cannot be changed.

use std::sync::Arc;

use super::{Source, System};
use crate::file::Timestamp;
use crate::pipe::MAX_CAPACITY_BYTES;
use crate::pseudo::{Fixed, Item, PseudoFs};

const SYSFS_MAGIC: u64 = 0x6265_6572;

/// Path below /proc/sys, and the value.
const SETTINGS: [(&str, &str); 44] = [
    ("fs/file-max", "1048576"),
    ("fs/nr_open", "1048576"),
    ("fs/inotify/max_queued_events", "16384"),
    ("fs/inotify/max_user_instances", "128"),
    ("fs/inotify/max_user_watches", "65536"),
    ("fs/epoll/max_user_watches", "65536"),
    ("fs/mqueue/msg_default", "10"),
    ("fs/mqueue/msg_max", "10"),
    ("fs/mqueue/msgsize_default", "8192"),
    ("fs/mqueue/msgsize_max", "8192"),
    ("fs/mqueue/queues_max", "256"),
    ("fs/protected_hardlinks", "1"),
    ("fs/protected_symlinks", "0"),
    ("kernel/cap_last_cap", "40"),
    ("kernel/core_pattern", "core"),
    ("kernel/msgmax", "8192"),
    ("kernel/msgmnb", "16384"),
    ("kernel/msgmni", "32000"),
    ("kernel/ngroups_max", "65536"),
    ("kernel/ostype", "Linux"),
    ("kernel/overflowgid", "65534"),
    ("kernel/overflowuid", "65534"),
    ("kernel/pid_max", "4194304"),
    ("kernel/random/entropy_avail", "256"),
    ("kernel/random/poolsize", "256"),
    ("kernel/randomize_va_space", "2"),
    ("kernel/sem", "32000\t1024000000\t500\t32000"),
    ("kernel/shm_rmid_forced", "0"),
    ("kernel/shmall", "18446744073692774399"),
    ("kernel/shmmax", "18446744073692774399"),
    ("kernel/shmmni", "4096"),
    ("kernel/tainted", "0"),
    ("kernel/threads-max", "65536"),
    ("net/core/somaxconn", "4096"),
    ("net/ipv4/ip_forward", "0"),
    ("net/ipv4/ip_local_port_range", "32768\t60999"),
    ("net/ipv4/ip_unprivileged_port_start", "1024"),
    ("net/ipv4/tcp_fin_timeout", "60"),
    ("net/ipv4/tcp_keepalive_time", "7200"),
    ("net/ipv4/tcp_syncookies", "0"),
    ("vm/max_map_count", "65530"),
    ("vm/mmap_min_addr", "65536"),
    ("vm/overcommit_memory", "0"),
    ("vm/swappiness", "60"),
];

type Make = fn(&Source, &System) -> String;

fn live(source: &Source, make: Make) -> Item {
    let source = Arc::clone(source);
    Item::text(move || Ok((make(&source, &source.system()) + "\n").into_bytes()))
}

/// /proc/sys.
pub(super) fn kernel_settings(source: &Source) -> Fixed {
    let mut items: Vec<(String, Item)> =
        SETTINGS.iter().map(|(path, value)| (path.to_string(), Item::fixed(&format!("{value}\n")))).collect();
    items.push(("fs/pipe-max-size".into(), Item::fixed(&format!("{MAX_CAPACITY_BYTES}\n"))));
    let live: [(&str, Make); 7] = [
        ("kernel/hostname", |_, system| system.host_name.clone()),
        ("kernel/domainname", |_, system| system.domain_name.clone()),
        ("kernel/osrelease", |_, system| system.release.clone()),
        ("kernel/version", |_, system| system.version.clone()),
        ("kernel/random/boot_id", |_, system| system.boot_id.clone()),
        ("kernel/random/uuid", |source, _| source.uuid()),
        ("fs/file-nr", |_, system| format!("{}\t0\t1048576", system.open_files)),
    ];
    items.extend(live.map(|(path, make)| (path.to_string(), self::live(source, make))));
    let set = source.settings().into_iter();
    items.extend(set.map(|(path, value)| (path, Item::fixed(&format!("{value}\n")))));
    Fixed::tree(items)
}

/// "0-3" for four processors.
fn processor_range(system: &System) -> String {
    match system.processors {
        0 | 1 => "0".into(),
        count => format!("0-{}", count - 1),
    }
}

/// A sysfs with what programs look for: processors, huge pages, the clock, and the place for cgroups.
pub fn sysfs(source: &Source, since: Timestamp) -> Arc<PseudoFs> {
    let mut items: Vec<(String, Item)> = ["online", "possible", "present"]
        .iter()
        .map(|name| (format!("devices/system/cpu/{name}"), live(source, |_, system| processor_range(system))))
        .collect();
    items.extend(
        (0..source.system().processors)
            .map(|at| (format!("devices/system/cpu/cpu{at}/topology/core_id"), Item::fixed(&format!("{at}\n")))),
    );
    let fixed = [
        ("devices/system/node/online", "0\n"),
        ("devices/system/clocksource/clocksource0/current_clocksource", "tsc\n"),
        ("devices/system/clocksource/clocksource0/available_clocksource", "tsc\n"),
        ("kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n"),
        ("kernel/mm/transparent_hugepage/hpage_pmd_size", "2097152\n"),
    ];
    items.extend(fixed.map(|(path, text)| (path.to_string(), Item::fixed(text))));
    let empty = ["block", "bus", "class/net", "dev", "firmware", "fs/cgroup", "module", "power"];
    items.extend(empty.map(|path| (path.to_string(), Item::directory(Fixed::default()))));
    PseudoFs::new("sysfs", SYSFS_MAGIC, Arc::new(Fixed::tree(items)), since)
}
