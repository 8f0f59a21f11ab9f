//! /proc/sys and /sys: settings that programs look at. They are what holds here, and cannot be changed.

use std::sync::Arc;

use super::{Source, System};
use crate::file::Timestamp;
use crate::pipe::MAX_CAPACITY_BYTES;
use crate::pseudo::{Fixed, Item, PseudoFs};

const SYSFS_MAGIC: u64 = 0x6265_6572;

/// Path below /proc/sys, and the value.
const SETTINGS: [(&str, &str); 78] = [
    ("fs/epoll/max_user_watches", "65536"),
    ("fs/file-max", "1048576"),
    ("fs/inotify/max_queued_events", "16384"),
    ("fs/inotify/max_user_instances", "128"),
    ("fs/inotify/max_user_watches", "65536"),
    ("fs/mqueue/msg_default", "10"),
    ("fs/mqueue/msg_max", "10"),
    ("fs/mqueue/msgsize_default", "8192"),
    ("fs/mqueue/msgsize_max", "8192"),
    ("fs/mqueue/queues_max", "256"),
    ("fs/nr_open", "1048576"),
    ("fs/overflowgid", "65534"),
    ("fs/overflowuid", "65534"),
    ("fs/protected_fifos", "0"),
    ("fs/protected_hardlinks", "1"),
    ("fs/protected_regular", "0"),
    ("fs/protected_symlinks", "0"),
    ("fs/suid_dumpable", "0"),
    ("kernel/arch", "x86_64"),
    ("kernel/cap_last_cap", "40"),
    ("kernel/core_pattern", "core"),
    ("kernel/core_uses_pid", "0"),
    ("kernel/dmesg_restrict", "1"),
    ("kernel/msgmax", "8192"),
    ("kernel/msgmnb", "16384"),
    ("kernel/msgmni", "32000"),
    ("kernel/ngroups_max", "65536"),
    ("kernel/numa_balancing", "0"),
    ("kernel/ostype", "Linux"),
    ("kernel/overflowgid", "65534"),
    ("kernel/overflowuid", "65534"),
    ("kernel/perf_event_paranoid", "2"),
    ("kernel/pid_max", "4194304"),
    ("kernel/printk", "4\t4\t1\t7"),
    ("kernel/random/entropy_avail", "256"),
    ("kernel/random/poolsize", "256"),
    ("kernel/randomize_va_space", "2"),
    ("kernel/sched_rt_period_us", "1000000"),
    ("kernel/sched_rt_runtime_us", "950000"),
    ("kernel/sem", "32000\t1024000000\t500\t32000"),
    ("kernel/shm_rmid_forced", "0"),
    ("kernel/shmall", "18446744073692774399"),
    ("kernel/shmmax", "18446744073692774399"),
    ("kernel/shmmni", "4096"),
    ("kernel/tainted", "0"),
    ("kernel/threads-max", "65536"),
    ("kernel/unprivileged_bpf_disabled", "2"),
    ("net/core/somaxconn", "4096"),
    ("net/ipv4/ip_default_ttl", "64"),
    ("net/ipv4/ip_forward", "0"),
    ("net/ipv4/ip_local_port_range", "32768\t60999"),
    ("net/ipv4/ip_nonlocal_bind", "0"),
    ("net/ipv4/ip_unprivileged_port_start", "1024"),
    ("net/ipv4/tcp_fin_timeout", "60"),
    ("net/ipv4/tcp_keepalive_intvl", "75"),
    ("net/ipv4/tcp_keepalive_probes", "9"),
    ("net/ipv4/tcp_keepalive_time", "7200"),
    ("net/ipv4/tcp_max_syn_backlog", "4096"),
    ("net/ipv4/tcp_rmem", "4096\t131072\t6291456"),
    ("net/ipv4/tcp_sack", "1"),
    ("net/ipv4/tcp_syncookies", "0"),
    ("net/ipv4/tcp_timestamps", "1"),
    ("net/ipv4/tcp_window_scaling", "1"),
    ("net/ipv4/tcp_wmem", "4096\t16384\t4194304"),
    ("net/ipv6/bindv6only", "0"),
    ("net/ipv6/conf/all/disable_ipv6", "0"),
    ("net/ipv6/conf/default/disable_ipv6", "0"),
    ("net/ipv6/conf/lo/disable_ipv6", "0"),
    ("user/max_user_namespaces", "0"),
    ("vm/max_map_count", "65530"),
    ("vm/mmap_min_addr", "65536"),
    ("vm/nr_hugepages", "0"),
    ("vm/overcommit_kbytes", "0"),
    ("vm/overcommit_memory", "0"),
    ("vm/overcommit_ratio", "50"),
    ("vm/panic_on_oom", "0"),
    ("vm/swappiness", "60"),
    ("vm/zone_reclaim_mode", "0"),
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

/// Of one processor: each is a core, and all are in one socket.
fn processor(source: &Source, at: u32) -> Vec<(String, Item)> {
    let home = format!("devices/system/cpu/cpu{at}/topology");
    let fixed = [
        ("core_id", format!("{at}\n")),
        ("physical_package_id", "0\n".into()),
        ("thread_siblings", format!("{:x}\n", 1u128 << at.min(127))),
        ("thread_siblings_list", format!("{at}\n")),
    ];
    let mut items: Vec<_> = fixed.map(|(name, text)| (format!("{home}/{name}"), Item::fixed(&text))).to_vec();
    let live: [(&str, Make); 2] = [
        ("core_siblings", |_, system| format!("{:x}", u128::MAX >> (128 - system.processors.clamp(1, 128)))),
        ("core_siblings_list", |_, system| processor_range(system)),
    ];
    items.extend(live.map(|(name, make)| (format!("{home}/{name}"), self::live(source, make))));
    items
}

/// A sysfs with what programs look for: processors, huge pages, the clock, and the place for cgroups.
pub fn sysfs(source: &Source, since: Timestamp) -> Arc<PseudoFs> {
    let mut items: Vec<(String, Item)> = ["online", "possible", "present"]
        .iter()
        .map(|name| (format!("devices/system/cpu/{name}"), live(source, |_, system| processor_range(system))))
        .collect();
    items.extend((0..source.system().processors).flat_map(|at| processor(source, at)));
    let fixed = [
        ("devices/system/cpu/isolated", "\n"),
        ("devices/system/cpu/offline", "\n"),
        ("devices/system/node/has_cpu", "0\n"),
        ("devices/system/node/online", "0\n"),
        ("devices/system/node/possible", "0\n"),
        ("devices/system/clocksource/clocksource0/current_clocksource", "tsc\n"),
        ("devices/system/clocksource/clocksource0/available_clocksource", "tsc\n"),
        ("kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n"),
        ("kernel/mm/transparent_hugepage/defrag", "always defer defer+madvise [madvise] never\n"),
        ("kernel/mm/transparent_hugepage/hpage_pmd_size", "2097152\n"),
    ];
    items.extend(fixed.map(|(path, text)| (path.to_string(), Item::fixed(text))));
    let empty = [
        "block",
        "bus",
        "class/block",
        "class/net",
        "dev/block",
        "dev/char",
        "devices/virtual",
        "firmware",
        "fs/cgroup",
        "kernel/mm/hugepages",
        "module",
        "power",
    ];
    items.extend(empty.map(|path| (path.to_string(), Item::directory(Fixed::default()))));
    PseudoFs::new("sysfs", SYSFS_MAGIC, Arc::new(Fixed::tree(items)), since)
}
