//! A container's figures: io.containerd.cgroups.v2.Metrics from the files of its cgroup.

use crate::cgroup::{keyed, Cgroup};
use crate::proto::cgroup2::*;
use crate::proto::wellknown::Any;
use crate::wire::Message;

pub const TYPE_URL: &str = "io.containerd.cgroups.v2.Metrics";

pub fn of(cgroup: &Cgroup) -> Any {
    let metrics = Metrics {
        pids: Some(PidsStat { current: number(cgroup, "pids.current"), limit: number(cgroup, "pids.max") }),
        cpu: Some(cpu(cgroup)),
        memory: Some(memory(cgroup)),
        memory_events: Some(memory_events(cgroup)),
        io: Some(IOStat { usage: io(&cgroup.read("io.stat")), psi: pressure(cgroup, "io.pressure") }),
        ..Metrics::default()
    };
    Any { type_url: TYPE_URL.into(), value: metrics.encode_to_vec() }
}

/// A file of one number; "max" is the largest, and what is not there is 0.
fn number(cgroup: &Cgroup, name: &str) -> u64 {
    match cgroup.read(name).trim() {
        "max" => u64::MAX,
        text => text.parse().unwrap_or(0),
    }
}

fn cpu(cgroup: &Cgroup) -> CPUStat {
    let text = cgroup.read("cpu.stat");
    let of = |key| keyed(&text, key);
    CPUStat {
        usage_usec: of("usage_usec"),
        user_usec: of("user_usec"),
        system_usec: of("system_usec"),
        nr_periods: of("nr_periods"),
        nr_throttled: of("nr_throttled"),
        throttled_usec: of("throttled_usec"),
        nr_bursts: of("nr_bursts"),
        burst_usec: of("burst_usec"),
        psi: pressure(cgroup, "cpu.pressure"),
    }
}

fn memory(cgroup: &Cgroup) -> MemoryStat {
    let text = cgroup.read("memory.stat");
    let of = |key| keyed(&text, key);
    MemoryStat {
        anon: of("anon"),
        file: of("file"),
        kernel_stack: of("kernel_stack"),
        slab: of("slab"),
        sock: of("sock"),
        shmem: of("shmem"),
        file_mapped: of("file_mapped"),
        file_dirty: of("file_dirty"),
        file_writeback: of("file_writeback"),
        anon_thp: of("anon_thp"),
        inactive_anon: of("inactive_anon"),
        active_anon: of("active_anon"),
        inactive_file: of("inactive_file"),
        active_file: of("active_file"),
        unevictable: of("unevictable"),
        slab_reclaimable: of("slab_reclaimable"),
        slab_unreclaimable: of("slab_unreclaimable"),
        pgfault: of("pgfault"),
        pgmajfault: of("pgmajfault"),
        workingset_nodereclaim: of("workingset_nodereclaim"),
        workingset_refault_anon: of("workingset_refault_anon"),
        workingset_refault_file: of("workingset_refault_file"),
        workingset_activate_anon: of("workingset_activate_anon"),
        workingset_activate_file: of("workingset_activate_file"),
        pgrefill: of("pgrefill"),
        pgscan: of("pgscan"),
        pgsteal: of("pgsteal"),
        pgactivate: of("pgactivate"),
        pgdeactivate: of("pgdeactivate"),
        pglazyfree: of("pglazyfree"),
        pglazyfreed: of("pglazyfreed"),
        thp_fault_alloc: of("thp_fault_alloc"),
        thp_collapse_alloc: of("thp_collapse_alloc"),
        usage: number(cgroup, "memory.current"),
        usage_limit: number(cgroup, "memory.max"),
        max_usage: number(cgroup, "memory.peak"),
        swap_usage: number(cgroup, "memory.swap.current"),
        swap_limit: number(cgroup, "memory.swap.max"),
        psi: pressure(cgroup, "memory.pressure"),
        ..MemoryStat::default()
    }
}

fn memory_events(cgroup: &Cgroup) -> MemoryEvents {
    let text = cgroup.read("memory.events");
    let of = |key| keyed(&text, key);
    MemoryEvents {
        low: of("low"),
        high: of("high"),
        max: of("max"),
        oom: of("oom"),
        oom_kill: of("oom_kill"),
        oom_group_kill: of("oom_group_kill"),
    }
}

/// Lines as "254:0 rbytes=1 wbytes=2 rios=3 wios=4 …".
fn io(text: &str) -> Vec<IOEntry> {
    let entry = |line: &str| {
        let (device, figures) = line.split_once(' ')?;
        let (major, minor) = device.split_once(':')?;
        let of = |key: &str| {
            let value = figures.split(' ').find_map(|figure| figure.strip_prefix(key)?.strip_prefix('='));
            value.and_then(|value| value.parse().ok()).unwrap_or(0)
        };
        Some(IOEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            rbytes: of("rbytes"),
            wbytes: of("wbytes"),
            rios: of("rios"),
            wios: of("wios"),
        })
    };
    text.lines().filter_map(entry).collect()
}

/// Lines as "some avg10=0.00 avg60=0.00 avg300=0.00 total=0".
fn pressure(cgroup: &Cgroup, name: &str) -> Option<PSIStats> {
    let text = cgroup.read(name);
    let of = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
        let value = |key: &str| line.split(' ').find_map(|part| part.strip_prefix(key)?.strip_prefix('='));
        let average = |key: &str| value(key).and_then(|text| text.parse().ok()).unwrap_or(0.0);
        let total = value("total").and_then(|text| text.parse().ok()).unwrap_or(0);
        Some(PSIData { avg10: average("avg10"), avg60: average("avg60"), avg300: average("avg300"), total })
    };
    (!text.is_empty()).then(|| PSIStats { some: of("some"), full: of("full") })
}
